//! How far the daemon is, for those who watch it.

use std::fmt;
use std::io::{self, ErrorKind};
use std::path::Path;

/// Name of the status file in the work directory.
const STATUS: &str = "pages.status";

/// What the status file says: one line of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// `listening`: CRIU may be started.
    Listening,
    /// `serving`: CRIU has handed over every process, and pages are missing.
    Serving,
    /// `complete`: every process has every page, or is gone. The only state in which no page can have been lost.
    Complete,
    /// `failed: why`: a process may lack pages, and must not go on.
    Failed(String),
}

impl Status {
    /// What the daemon in `work` says; nothing if it has said nothing yet. That a state other than
    /// [`Status::Complete`] and [`Status::Failed`] stands here says nothing about whether the daemon still runs.
    ///
    /// # Errors
    /// What reading the file says, or `InvalidData` for a line that is no status.
    pub fn read(work: &Path) -> io::Result<Option<Self>> {
        let text = match std::fs::read_to_string(work.join(STATUS)) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        match Self::parse(text.trim_end_matches('\n')) {
            Some(status) => Ok(Some(status)),
            None => Err(io::Error::new(ErrorKind::InvalidData, format!("{text:?} is no status"))),
        }
    }

    /// Says it in one piece: a reader finds the former status or this one.
    ///
    /// # Errors
    /// What the file system says.
    pub(super) fn write(&self, work: &Path) -> io::Result<()> {
        let path = work.join(STATUS);
        let aside = path.with_extension("status.new");
        std::fs::write(&aside, format!("{self}\n"))?;
        std::fs::rename(&aside, &path)
    }

    /// Takes away what a daemon of an earlier try in `work` has said: it says nothing of the next one.
    ///
    /// # Errors
    /// What the file system says.
    pub fn forget(work: &Path) -> io::Result<()> {
        match std::fs::remove_file(work.join(STATUS)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        match line {
            "listening" => Some(Self::Listening),
            "serving" => Some(Self::Serving),
            "complete" => Some(Self::Complete),
            _ => line.strip_prefix("failed: ").map(|why| Self::Failed(why.to_owned())),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listening => formatter.write_str("listening"),
            Self::Serving => formatter.write_str("serving"),
            Self::Complete => formatter.write_str("complete"),
            Self::Failed(why) => write!(formatter, "failed: {}", why.replace('\n', " ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_reads_back() {
        let work = tempfile::tempdir().unwrap();
        assert_eq!(Status::read(work.path()).unwrap(), None);
        for status in [Status::Listening, Status::Serving, Status::Complete, Status::Failed("no page".to_owned())] {
            status.write(work.path()).unwrap();
            assert_eq!(Status::read(work.path()).unwrap(), Some(status));
        }
        Status::Failed("two\nlines".to_owned()).write(work.path()).unwrap();
        assert_eq!(Status::read(work.path()).unwrap(), Some(Status::Failed("two lines".to_owned())));
    }

    #[test]
    fn what_was_said_of_an_earlier_restore_is_forgotten() {
        let work = tempfile::tempdir().unwrap();
        Status::forget(work.path()).unwrap();
        Status::Complete.write(work.path()).unwrap();
        Status::forget(work.path()).unwrap();
        assert_eq!(Status::read(work.path()).unwrap(), None);
    }

    #[test]
    fn a_line_that_is_no_status_is_no_status() {
        let work = tempfile::tempdir().unwrap();
        for text in ["", "completed", "failed"] {
            std::fs::write(work.path().join(STATUS), text).unwrap();
            assert_eq!(Status::read(work.path()).unwrap_err().kind(), ErrorKind::InvalidData);
        }
    }
}
