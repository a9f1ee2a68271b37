//! Appending.

use super::{Line, MAX_FILE, MAX_LINE, NEW, OLD};
use crate::machine::Stop;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why a line was not written.
#[derive(Debug, Error)]
pub enum WriteError {
    /// It could not be made.
    #[error("encode the end of a run")]
    Encode(#[source] serde_json::Error),
    /// The full file could not take the older one's place.
    #[error("rename the full record {path:?}")]
    Rotate {
        /// The full file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It could not be appended.
    #[error("append to the record {path:?}")]
    Append {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Appends lines.
///
/// The file is open only while a line is written: a descriptor that stays would have to be carried along by a live move.
#[derive(Debug)]
pub struct Writer {
    new: PathBuf,
    old: PathBuf,
    sequence: u64,
    lost: u64,
}

impl Writer {
    /// A record in `directory`.
    pub fn new(directory: &Path) -> Self {
        Self { new: directory.join(NEW), old: directory.join(OLD), sequence: 0, lost: 0 }
    }

    /// Appends the line for `stop`, which happened at `at_millis` (milliseconds since 1970).
    ///
    /// # Errors
    /// [`WriteError`]; the line is lost then, and the next one says so.
    pub fn append(&mut self, stop: &Stop, at_millis: u64) -> Result<(), WriteError> {
        self.sequence += 1;
        let written = self.write(&Line::new(stop, self.sequence, at_millis, self.lost));
        self.lost = if written.is_ok() { 0 } else { self.lost + 1 };
        written
    }

    fn write(&self, line: &Line) -> Result<(), WriteError> {
        let mut text = vec![b'\n'];
        serde_json::to_writer(&mut text, line).map_err(WriteError::Encode)?;
        text.push(b'\n');
        debug_assert!(text.len() <= MAX_LINE);
        let failed = |source| WriteError::Append { path: self.new.clone(), source };
        let (mut file, mut length) = self.open().map_err(failed)?;
        if length + text.len() as u64 > MAX_FILE {
            std::fs::rename(&self.new, &self.old)
                .map_err(|source| WriteError::Rotate { path: self.new.clone(), source })?;
            (file, length) = self.open().map_err(failed)?;
        }
        // What a crash has torn must not spoil this line too.
        let whole = length == 0 || ends_a_line(&file, length);
        file.write_all(&text[usize::from(whole)..]).map_err(failed)?;
        file.sync_data().map_err(failed)
    }

    fn open(&self) -> std::io::Result<(File, u64)> {
        // Whatever the application may have put there: not through a link, and not waiting for a reader of a pipe.
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&self.new)?;
        let length = file.metadata()?.len();
        Ok((file, length))
    }
}

fn ends_a_line(file: &File, length: u64) -> bool {
    let mut last = [0];
    file.read_exact_at(&mut last, length - 1).is_ok() && last == *b"\n"
}
