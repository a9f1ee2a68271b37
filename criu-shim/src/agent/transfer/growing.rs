//! An archive of files that is read while it lands, so that it is in place by the time the rest of its round has come.
//!
//! Its bytes lie in a file like those of any part, and are read there: a reader that is slow holds up nobody. That they are those
//! that were sent is known only at the end. Whoever reads it compares them then, and makes nothing of one that was broken off.

use crate::agent::transfer::manifest::Landed;
use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// For how long a read waits for more.
const LOOK: Duration = Duration::from_millis(50);

/// One that lands. Clones are of the same.
#[derive(Clone, Debug)]
pub struct Growing {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    so_far: Mutex<SoFar>,
    news: Condvar,
}

#[derive(Debug)]
enum SoFar {
    /// So many bytes are there, and more may come.
    Grows(u64),
    /// All of it.
    Landed(Landed),
    /// No more comes, and it is not whole.
    BrokenOff,
}

/// The end that it grows at. Dropped before it has landed, it is broken off.
#[derive(Debug)]
pub(in crate::agent) struct Grower(Growing);

impl Growing {
    /// One of which nothing has come yet, in the file at `path`, which is there.
    pub(in crate::agent) fn begin(path: PathBuf) -> (Grower, Self) {
        let shared = Shared { path, so_far: Mutex::new(SoFar::Grows(0)), news: Condvar::new() };
        let growing = Self { shared: Arc::new(shared) };
        (Grower(growing.clone()), growing)
    }

    /// The file that it lands in.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// What has landed. None where it was broken off, or is not whole yet.
    pub fn landed(&self) -> Option<Landed> {
        match &*self.so_far() {
            SoFar::Landed(landed) => Some(landed.clone()),
            SoFar::Grows(_) | SoFar::BrokenOff => None,
        }
    }

    /// Reads it from its beginning.
    ///
    /// # Errors
    /// Where its file can't be opened.
    pub fn open(&self) -> Result<Following> {
        Ok(Following { file: File::open(self.path())?, growing: self.clone(), at: 0 })
    }

    fn so_far(&self) -> MutexGuard<'_, SoFar> {
        // Nothing panics while it holds the lock.
        self.shared.so_far.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Grower {
    /// So many bytes are in the file by now.
    pub(in crate::agent) fn has(&self, bytes: u64) {
        self.turn(SoFar::Grows(bytes));
    }

    /// It is whole.
    pub(in crate::agent) fn landed(self, landed: Landed) {
        self.turn(SoFar::Landed(landed));
    }

    fn turn(&self, now: SoFar) {
        *self.0.so_far() = now;
        self.0.shared.news.notify_all();
    }
}

impl Drop for Grower {
    fn drop(&mut self) {
        if matches!(*self.0.so_far(), SoFar::Grows(_)) {
            self.turn(SoFar::BrokenOff);
        }
    }
}

/// The reading end. It waits for what has not come yet; where nothing does for a while, reading is [`ErrorKind::Interrupted`], so that
/// who reads can look whether anybody still wants it.
#[derive(Debug)]
pub struct Following {
    growing: Growing,
    file: File,
    at: u64,
}

impl Following {
    /// How many bytes there are that were not read. None at its end.
    fn wait(&self) -> Result<u64> {
        let nothing = |so_far: &mut SoFar| matches!(so_far, SoFar::Grows(bytes) if *bytes <= self.at);
        let waited = self.growing.shared.news.wait_timeout_while(self.growing.so_far(), LOOK, nothing);
        match &*waited.unwrap_or_else(PoisonError::into_inner).0 {
            SoFar::Grows(bytes) if *bytes > self.at => Ok(bytes - self.at),
            SoFar::Grows(_) => Err(ErrorKind::Interrupted.into()),
            SoFar::Landed(landed) => Ok(landed.bytes.saturating_sub(self.at)),
            SoFar::BrokenOff => Err(Error::other("it was broken off")),
        }
    }
}

impl Read for Following {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let there = usize::try_from(self.wait()?).unwrap_or(usize::MAX);
        let length = buffer.len().min(there);
        let count = self.file.read_at(&mut buffer[..length], self.at)?;
        if count == 0 && length > 0 {
            return Err(Error::other("it has become shorter"));
        }
        self.at += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::mpsc;

    fn begin(directory: &tempfile::TempDir) -> (File, Grower, Growing) {
        let path = directory.path().join("archive");
        let file = File::create_new(&path).expect("a file");
        let (grower, growing) = Growing::begin(path);
        (file, grower, growing)
    }

    fn landed(bytes: &[u8]) -> Landed {
        Landed { bytes: bytes.len() as u64, digest: blake3::hash(bytes).into() }
    }

    #[test]
    fn it_is_read_while_it_lands_and_to_its_end() {
        let directory = tempfile::tempdir().expect("dir");
        let (mut file, grower, growing) = begin(&directory);
        let (tell, told) = mpsc::channel();
        std::thread::scope(|scope| {
            let reading = scope.spawn(|| {
                let mut following = growing.open().expect("open");
                let mut bytes = [0; 3];
                following.read_exact(&mut bytes).expect("its beginning");
                tell.send(bytes).expect("somebody listens");
                let mut rest = Vec::new();
                following.read_to_end(&mut rest).map(|_| rest)
            });
            // What is in the file and was not announced may be half a write.
            file.write_all(b"abcdef").expect("write");
            grower.has(3);
            assert_eq!(told.recv().expect("read"), *b"abc", "before it has landed");
            assert_eq!(growing.landed(), None);
            grower.landed(landed(b"abcdef"));
            assert_eq!(reading.join().expect("no panic").expect("read"), b"def");
        });
        assert_eq!(growing.landed(), Some(landed(b"abcdef")));
    }

    #[test]
    fn one_that_is_broken_off_is_never_whole() {
        let directory = tempfile::tempdir().expect("dir");
        let (_file, grower, growing) = begin(&directory);
        drop(grower);
        growing.open().expect("open").read(&mut [0; 8]).expect_err("nothing more comes");
        assert_eq!(growing.landed(), None);
    }

    #[test]
    fn who_waits_in_vain_can_look_around() {
        let directory = tempfile::tempdir().expect("dir");
        let (_file, _grower, growing) = begin(&directory);
        let error = growing.open().expect("open").read(&mut [0; 8]).expect_err("nothing comes");
        assert_eq!(error.kind(), ErrorKind::Interrupted);
    }

    #[test]
    fn a_file_that_is_shorter_than_what_was_written_is_an_error_and_not_an_end() {
        let directory = tempfile::tempdir().expect("dir");
        let (_file, grower, growing) = begin(&directory);
        grower.landed(landed(b"abc"));
        growing.open().expect("open").read(&mut [0; 8]).expect_err("it is not there");
    }
}
