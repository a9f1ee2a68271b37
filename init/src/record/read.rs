//! Reading what a container has written, on the node.

use super::{Line, MAX_FILE, MAX_LINE, NEW, OLD};
use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why a record can't be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// A file can't be opened or read.
    #[error("read the record {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There is something else in its place.
    #[error("{path:?} is not a regular file")]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
}

/// What a record says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Its lines, oldest first. At most as many as two files of [`MAX_FILE`] bytes can hold.
    pub lines: Vec<Line>,
    /// How many lines were none: torn, too long, or not init's.
    pub unsound: usize,
}

/// Reads the record in `directory`, which must be a directory that the container can't replace. A record that has not
/// begun is empty.
///
/// # Errors
/// [`ReadError`].
pub fn read(directory: &Path) -> Result<Reading, ReadError> {
    let mut reading = Reading::default();
    for name in [OLD, NEW] {
        take(&mut reading, &contents(&directory.join(name))?);
    }
    Ok(reading)
}

fn contents(path: &Path) -> Result<Vec<u8>, ReadError> {
    let failed = |source| ReadError::Read { path: path.to_owned(), source };
    // A link would lead out of the directory, and to open a pipe without a writer would take for ever.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            return Err(ReadError::NotAFile { path: path.to_owned() });
        }
        Err(error) => return Err(failed(error)),
    };
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(ReadError::NotAFile { path: path.to_owned() });
    }
    let mut contents = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut contents).map_err(failed)?;
    Ok(contents)
}

fn take(reading: &mut Reading, contents: &[u8]) {
    for text in contents.split_inclusive(|byte| *byte == b'\n') {
        match text.strip_suffix(b"\n") {
            // Where a torn line was ended so that the next one could begin.
            Some([]) => {}
            Some(text) if text.len() < MAX_LINE => match serde_json::from_slice::<Line>(text) {
                Ok(line) if line.is_sound() => reading.lines.push(line),
                _ => reading.unsound += 1,
            },
            _ => reading.unsound += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Outcome, WriteError, Writer};
    use super::*;
    use crate::decide::{Decision, Rule};
    use crate::exit::{Cause, Exit};
    use crate::machine::Stop;
    use proptest::prelude::*;
    use std::io::Write;
    use std::time::Duration;

    fn stop(exit: Exit) -> Stop {
        Stop {
            cause: Cause::UncleanSignal,
            exit,
            ran: Duration::from_millis(1500),
            decision: Decision::Restart { delay: Duration::from_millis(100), attempt: 3, rule: Rule::Policy },
            status: None,
            errno: None,
        }
    }

    const CRASH: Exit = Exit::Signal { number: 11, core: true };

    #[test]
    fn a_line_looks_as_documented() {
        let directory = tempfile::tempdir().unwrap();
        Writer::new(directory.path()).append(&stop(CRASH), 1_700_000_000_000).unwrap();
        assert_eq!(
            std::fs::read_to_string(directory.path().join(NEW)).unwrap(),
            "{\"version\":1,\"sequence\":1,\"atMillis\":1700000000000,\"cause\":\"uncleanSignal\",\"signal\":11,\
             \"core\":true,\"ranMillis\":1500,\"outcome\":{\"restart\":{\"delayMillis\":100,\"attempt\":3}},\
             \"rule\":\"policy\"}\n"
        );
        let line = read(directory.path()).unwrap().lines.remove(0);
        assert_eq!((line.signal, line.code, line.core), (Some(11), None, true));
        assert_eq!(line.outcome, Outcome::Restart { delay_millis: 100, attempt: 3 });
    }

    #[test]
    fn a_record_that_has_not_begun_is_empty() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read(directory.path()).unwrap(), Reading::default());
    }

    #[test]
    fn the_record_is_bounded_and_keeps_the_newest() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(directory.path());
        let mut long = stop(CRASH);
        // The worst that a status can be: each character takes six bytes in JSON or four in UTF-8.
        long.status = Some("\u{10FFFF}\"".repeat(100));
        for _ in 0..300 {
            writer.append(&long, u64::MAX).unwrap();
        }
        for name in [NEW, OLD] {
            assert!(directory.path().join(name).metadata().unwrap().len() <= MAX_FILE);
        }
        let reading = read(directory.path()).unwrap();
        let sequences: Vec<u64> = reading.lines.iter().map(|line| line.sequence).collect();
        assert_eq!(sequences.last(), Some(&300));
        assert!(sequences.windows(2).all(|pair| pair[0] + 1 == pair[1]) && sequences.len() > 30, "{sequences:?}");
        assert_eq!(reading.unsound, 0);
    }

    #[test]
    fn a_torn_line_costs_only_itself() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(directory.path());
        writer.append(&stop(CRASH), 1).unwrap();
        let mut file = OpenOptions::new().append(true).open(directory.path().join(NEW)).unwrap();
        file.write_all(br#"{"version":1,"seq"#).unwrap();
        assert_eq!(read(directory.path()).unwrap().unsound, 1);
        writer.append(&stop(Exit::Code(4)), 2).unwrap();
        let reading = read(directory.path()).unwrap();
        assert_eq!((reading.lines.len(), reading.unsound), (2, 1));
    }

    #[test]
    fn a_line_that_could_not_be_written_is_counted() {
        let directory = tempfile::tempdir().unwrap();
        let home = directory.path().join("home");
        let mut writer = Writer::new(&home);
        assert!(matches!(writer.append(&stop(CRASH), 1), Err(WriteError::Append { .. })));
        std::fs::create_dir(&home).unwrap();
        writer.append(&stop(CRASH), 2).unwrap();
        let line = read(&home).unwrap().lines.remove(0);
        assert_eq!((line.sequence, line.lost), (2, 1));
    }

    #[test]
    fn nothing_that_a_container_puts_there_leads_the_reader_astray() {
        let directory = tempfile::tempdir().unwrap();
        let new = directory.path().join(NEW);
        let secret = directory.path().join("secret");
        std::fs::write(&secret, "secret").unwrap();
        std::os::unix::fs::symlink(&secret, &new).unwrap();
        assert!(matches!(read(directory.path()), Err(ReadError::NotAFile { .. })));
        assert!(Writer::new(directory.path()).append(&stop(CRASH), 1).is_err());
        std::fs::remove_file(&new).unwrap();
        nix::unistd::mkfifo(&new, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(read(directory.path()), Err(ReadError::NotAFile { .. })));
        std::fs::remove_file(&new).unwrap();
        std::fs::create_dir(&new).unwrap();
        assert!(matches!(read(directory.path()), Err(ReadError::NotAFile { .. })));
        std::fs::remove_dir(&new).unwrap();
        // A sparse file of a terabyte costs no more than its bound.
        std::fs::File::create(&new).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(read(directory.path()).unwrap(), Reading { lines: vec![], unsound: 1 });
    }

    #[test]
    fn a_line_with_impossible_values_is_unsound() {
        let directory = tempfile::tempdir().unwrap();
        let sound = r#"{"version":1,"sequence":1,"atMillis":1,"cause":"clean","code":0,"ranMillis":1,"outcome":"exit","rule":"policy""#;
        for (more, lines) in [
            ("}", 1),
            (r#","signal":9}"#, 0),
            (r#","status":"a\u001b[2Jb"}"#, 0),
            (r#","colour":1}"#, 0),
            (r#","status":"fine"}"#, 1),
        ] {
            std::fs::write(directory.path().join(NEW), format!("{sound}{more}\n")).unwrap();
            assert_eq!(read(directory.path()).unwrap().lines.len(), lines, "{more}");
        }
    }

    #[test]
    fn only_the_start_limit_has_a_container_moved_or_restored_and_nothing_takes_years() {
        let directory = tempfile::tempdir().unwrap();
        let sound = r#"{"version":1,"sequence":1,"atMillis":1,"cause":"uncleanExitCode","code":7,"ranMillis":1"#;
        let migrate = |millis: u64| Outcome::Migrate { hold_millis: millis };
        for (more, outcome) in [
            (r#""outcome":{"migrate":{"holdMillis":180000}},"rule":"startLimit""#, Some(migrate(180_000))),
            (r#""outcome":{"migrate":{"holdMillis":31622400000}},"rule":"startLimit""#, Some(migrate(31_622_400_000))),
            (r#""outcome":{"migrate":{"holdMillis":31622400001}},"rule":"startLimit""#, None),
            (r#""outcome":{"migrate":{"holdMillis":180000}},"rule":"policy""#, None),
            (r#""outcome":{"migrate":{"holdMillis":180000,"node":"n"}},"rule":"startLimit""#, None),
            (r#""outcome":"migrate","rule":"startLimit""#, None),
            (r#""outcome":"restoreCheckpoint","rule":"startLimit""#, Some(Outcome::RestoreCheckpoint)),
            (r#""outcome":"restoreCheckpoint","rule":"policy""#, None),
            (r#""outcome":{"restart":{"delayMillis":31622400001,"attempt":1}},"rule":"policy""#, None),
        ] {
            std::fs::write(directory.path().join(NEW), format!("{sound},{more}}}\n")).unwrap();
            let lines = read(directory.path()).unwrap().lines;
            assert_eq!(lines.first().map(|line| line.outcome), outcome, "{more}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_bytes_make_the_reader_panic(contents in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let mut reading = Reading::default();
            take(&mut reading, &contents);
            prop_assert!(reading.lines.is_empty());
        }
    }
}
