//! A CRIU that has its request before the images are there.
//!
//! What CRIU does before it opens `inventory.img`, the first of its images, is the same whatever is in them: above all it looks again at
//! what of the kernel may have changed, with a child that it traces (`kerndat_try_load_new` in `criu/kerndat.c`). That is 1.5 ms of a
//! restore of 8. So in the place of that image is a FIFO at first, and CRIU waits for what is in it. Once it has the FIFO open, the
//! name is free for the image itself, and that is written into the FIFO when all images may be used. The relay has the one open
//! end for writing: where it ends, a CRIU that has the other finds an empty image, and fails.

use crate::criu::image::INVENTORY;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, mknodat, openat, statat, unlinkat};
use rustix::io::Errno;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use thiserror::Error;

/// Longest image that is written at once, bytes: so much goes into a pipe whatever else there is. It has some hundred.
/// Source: pipe(7), `PIPE_BUF`.
const MOST: u64 = 4096;

/// How long CRIU may take to come to its images, milliseconds. It takes some, and a second where it has to examine the kernel, both
/// many times longer under a small cpu limit.
const COMES_WITHIN_MILLIS: u16 = 60_000;

/// Why CRIU can't have its request before the images, or what it waits for.
#[derive(Debug, Error)]
pub(super) enum AheadError {
    #[error("put a FIFO in the place of {INVENTORY}")]
    Make(#[source] std::io::Error),
    #[error("wait until CRIU has opened {INVENTORY}")]
    Wait(#[source] std::io::Error),
    #[error("CRIU did not come to its images within {} s", COMES_WITHIN_MILLIS / 1000)]
    Silent,
    #[error("give CRIU {INVENTORY}")]
    Open(#[source] std::io::Error),
    #[error("the images ask for another request than the one that CRIU was given before they were there")]
    Changed,
}

/// A FIFO to which CRIU is about to come.
#[derive(Debug)]
pub(super) struct Fifo {
    fifo: File,
    /// Readable once somebody has opened it. The kernel takes ten milliseconds to let go of it.
    opened: OwnedFd,
}

/// What CRIU waits at. Dropped, it makes CRIU fail.
#[derive(Debug)]
pub(super) struct Gate(File);

impl Fifo {
    /// Puts it into the directory `images`; none where the image is there already.
    pub(super) fn make(images: BorrowedFd<'_>) -> Result<Option<Self>, AheadError> {
        let failed = |errno: Errno| AheadError::Make(errno.into());
        let make = || mknodat(images, INVENTORY, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0);
        match make() {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let found = statat(images, INVENTORY, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
                if FileType::from_raw_mode(found.st_mode) != FileType::Fifo {
                    return Ok(None);
                }
                // That of a relay which was killed in the moment that it was there.
                unlinkat(images, INVENTORY, AtFlags::empty()).map_err(failed)?;
                make().map_err(failed)?;
            }
            Err(errno) => return Err(failed(errno)),
        }
        // For both, so that neither this nor CRIU's own waits for the other.
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fifo = openat(images, INVENTORY, flags, Mode::empty()).map_err(failed)?;
        let opened = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(failed)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", images.as_raw_fd())).join(INVENTORY);
        inotify::add_watch(&opened, &path, WatchFlags::OPEN).map_err(failed)?;
        Ok(Some(Self { fifo: fifo.into(), opened }))
    }

    /// Waits until CRIU has it open, or has something to say on `criu`, which is that it has failed. The image's name is free then.
    pub(super) fn await_criu(self, images: BorrowedFd<'_>, criu: BorrowedFd<'_>) -> Result<Gate, AheadError> {
        let mut ready = [self.opened.as_fd(), criu].map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN));
        let waited = poll(&mut ready, PollTimeout::from(COMES_WITHIN_MILLIS));
        let freed = unlinkat(images, INVENTORY, AtFlags::empty());
        if waited.map_err(|errno| AheadError::Wait(errno.into()))? == 0 {
            return Err(AheadError::Silent);
        }
        freed.map(|()| Gate(self.fifo)).map_err(|errno| AheadError::Wait(errno.into()))
    }
}

impl Gate {
    /// Lets CRIU read the image, which is in the directory `images` now.
    pub(super) fn open(mut self, images: BorrowedFd<'_>) -> Result<(), AheadError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let image = openat(images, INVENTORY, flags, Mode::empty());
        let mut bytes = Vec::new();
        let image = image.map(File::from).map_err(|errno| AheadError::Open(errno.into()))?;
        let length = image.take(MOST + 1).read_to_end(&mut bytes).map_err(AheadError::Open)?;
        if length as u64 > MOST {
            return Err(AheadError::Open(std::io::Error::from(std::io::ErrorKind::FileTooLarge)));
        }
        self.0.write_all(&bytes).map_err(AheadError::Open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::sync::mpsc;
    use std::thread::JoinHandle;
    use std::time::Duration;

    /// Reads an image as CRIU does, until its end.
    fn criu(images: &Path) -> (JoinHandle<Vec<u8>>, mpsc::Receiver<()>) {
        let (path, (tell, came)) = (images.join(INVENTORY), mpsc::channel());
        let reading = std::thread::spawn(move || {
            let mut file = File::open(path).expect("open");
            tell.send(()).expect("tell");
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).expect("read");
            bytes
        });
        (reading, came)
    }

    fn fifo(images: &Path) -> (File, Fifo) {
        let directory = File::open(images).expect("directory");
        let fifo = Fifo::make(directory.as_fd()).expect("a FIFO").expect("no image yet");
        (directory, fifo)
    }

    /// The end of a connection on which nobody says anything, and the other one.
    fn silence() -> (OwnedFd, OwnedFd) {
        nix::unistd::pipe().expect("pipe")
    }

    #[test]
    fn criu_reads_the_image_that_came_after_it() {
        let images = tempfile::tempdir().expect("directory");
        let (directory, fifo) = fifo(images.path());
        let (reading, came) = criu(images.path());
        let (said, _criu) = silence();
        let gate = fifo.await_criu(directory.as_fd(), said.as_fd()).expect("it comes");
        came.recv_timeout(Duration::from_secs(10)).expect("open");
        // As what lands does: only where nothing has that name.
        File::create_new(images.path().join(INVENTORY)).and_then(|mut file| file.write_all(b"image")).expect("image");
        assert!(!reading.is_finished(), "it waits for the word");
        gate.open(directory.as_fd()).expect("open");
        assert_eq!(reading.join().expect("CRIU"), b"image");
    }

    #[test]
    fn criu_finds_nothing_where_the_restore_is_given_up() {
        let images = tempfile::tempdir().expect("directory");
        let (_directory, gate) = fifo(images.path());
        let (reading, came) = criu(images.path());
        came.recv_timeout(Duration::from_secs(10)).expect("open");
        drop(gate);
        assert_eq!(reading.join().expect("CRIU"), b"");
    }

    #[test]
    fn what_a_relay_has_left_that_was_killed_is_made_anew() {
        let images = tempfile::tempdir().expect("directory");
        drop(fifo(images.path()));
        let (_directory, gate) = fifo(images.path());
        let (reading, came) = criu(images.path());
        came.recv_timeout(Duration::from_secs(10)).expect("open");
        drop(gate);
        assert_eq!(reading.join().expect("CRIU"), b"");
    }

    #[test]
    fn a_criu_that_fails_before_its_images_is_not_waited_for() {
        let images = tempfile::tempdir().expect("directory");
        let (directory, fifo) = fifo(images.path());
        let (said, criu) = silence();
        drop(criu);
        fifo.await_criu(directory.as_fd(), said.as_fd()).expect("its end");
        assert!(!images.path().join(INVENTORY).exists(), "the name is free");
    }

    #[test]
    fn images_that_are_there_are_not_waited_for_and_one_that_is_too_long_is_refused() {
        let images = tempfile::tempdir().expect("directory");
        let (directory, fifo) = fifo(images.path());
        let (said, criu) = silence();
        drop(criu);
        let gate = fifo.await_criu(directory.as_fd(), said.as_fd()).expect("the name is free");
        std::fs::write(images.path().join(INVENTORY), vec![1; MOST as usize + 1]).expect("image");
        assert!(matches!(gate.open(directory.as_fd()), Err(AheadError::Open(_))));
        assert!(Fifo::make(directory.as_fd()).expect("a look").is_none());
    }
}
