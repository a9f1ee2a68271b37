//! Which files in a directory somebody else has written, and closed again.
//!
//! The kernel says so ([inotify(7)]): a file is told when the last descriptor by which it could be written is closed. What it forgets to
//! tell, because too much happens at once, is not told later either: who asks must do with less.
//!
//! [inotify(7)]: https://man7.org/linux/man-pages/man7/inotify.7.html

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::io::Error;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

/// Bytes of news that are read at once: a hundred files or more.
const AT_ONCE: usize = 8 << 10;

/// What watches a directory.
#[derive(Debug)]
pub(super) struct Closed {
    inotify: OwnedFd,
}

impl Closed {
    /// Watches `directory` from now on.
    ///
    /// # Errors
    /// Where it is not there, or as many are watched as may be.
    pub(super) fn watch(directory: &Path) -> Result<Self, Error> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&inotify, directory, WatchFlags::CLOSE_WRITE | WatchFlags::ONLYDIR)?;
        Ok(Self { inotify })
    }

    /// The names of files that were closed since this was asked last. It does not wait.
    pub(super) fn names(&self) -> BTreeSet<String> {
        let (mut buffer, mut names) = ([MaybeUninit::uninit(); AT_ONCE], BTreeSet::new());
        let mut news = Reader::new(&self.inotify, &mut buffer);
        loop {
            match news.next() {
                Ok(event) => names.extend(event.file_name().and_then(|name| name.to_str().ok()).map(str::to_owned)),
                Err(Errno::INTR) => {}
                // There is no more of it for now.
                Err(_) => return names,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;

    #[test]
    fn a_file_is_told_once_nobody_can_write_it_any_more() {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("before"), "").expect("a file");
        let closed = Closed::watch(directory.path()).expect("inotify");
        let mut file = File::create(directory.path().join("a")).expect("a file");
        file.write_all(b"some of it").expect("write");
        assert!(closed.names().is_empty(), "it is open");
        let other = file.try_clone().expect("another descriptor");
        drop(file);
        assert!(closed.names().is_empty(), "by another descriptor too");
        drop(other);
        for name in 0..1000 {
            std::fs::write(directory.path().join(format!("{name}.img")), "").expect("a file");
        }
        let names = closed.names();
        assert!(names.contains("a") && names.contains("999.img") && names.len() == 1001);
        assert!(closed.names().is_empty(), "it was told");
        Closed::watch(&directory.path().join("a")).expect_err("no directory");
    }
}
