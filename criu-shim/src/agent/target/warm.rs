//! Reads into memory what CRIU and the processes will want of the container's own files, before the freeze.

use crate::agent::transfer::message::MappedFile;
use rustix::fs::{Advice, FileType, Mode, OFlags, ResolveFlags, fadvise, fstat, openat2};
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::path::Path;

/// Most that is read of all files together, bytes.
const MOST: u64 = 512 << 20;
/// As much as the kernel reads by one such request on any disk, bytes: it takes no more than the disk's own read-ahead at a time
/// (`force_page_cache_ra` of its `mm/readahead.c`).
const AT_ONCE: u64 = 128 << 10;

/// Has the kernel read what is named by `files`, of those that are under `root`, a container's. It does not wait for the disk where the
/// disk takes more requests. Returns how many bytes were asked for; what is not there as it was on the source is passed over. Blocking.
pub(super) fn read_ahead(root: &Path, files: &[MappedFile]) -> u64 {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(root) = rustix::fs::open(root, flags, Mode::empty()) else { return 0 };
    let mut asked = 0;
    for file in files {
        let Some(open) = open(&root, &file.path) else { continue };
        for &(start, end) in &file.parts {
            let mut at = start;
            while at < end && asked < MOST {
                let length = (end - at).min(AT_ONCE);
                if fadvise(&open, at, NonZeroU64::new(length), Advice::WillNeed).is_err() {
                    break;
                }
                (at, asked) = (at + length, asked + length);
            }
        }
    }
    asked
}

/// The regular file that has this path in the container, also where a hostile name leads elsewhere on the node.
fn open(root: &OwnedFd, path: &str) -> Option<OwnedFd> {
    // Without waiting: what has a file's name here may be a pipe.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = openat2(root, path, flags, Mode::empty(), resolve).ok()?;
    let kind = FileType::from_raw_mode(fstat(&file).ok()?.st_mode);
    (kind == FileType::RegularFile).then_some(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::time::{Duration, Instant};

    const LENGTH: u64 = 1 << 20;

    /// How many pages of `file` are in memory.
    fn resident(file: &File) -> usize {
        let mut pages = vec![0_u8; (LENGTH / 4096) as usize];
        // SAFETY: the mapping is made here, of a file of that length, nobody touches it, and it is taken away again.
        unsafe {
            let length = LENGTH as usize;
            let at = libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0);
            assert_ne!(at, libc::MAP_FAILED);
            assert_eq!(libc::mincore(at, length, pages.as_mut_ptr()), 0);
            assert_eq!(libc::munmap(at, length), 0);
        }
        pages.iter().filter(|page| **page & 1 == 1).count()
    }

    fn file(path: &str, parts: &[(u64, u64)]) -> MappedFile {
        MappedFile { path: path.to_owned(), parts: parts.to_vec() }
    }

    #[test]
    fn what_was_not_in_memory_is_read() {
        // Not in /tmp, which may be memory itself.
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
        let path = directory.path().join("library");
        std::fs::write(&path, vec![7; LENGTH as usize]).expect("write");
        let open = File::open(&path).expect("open");
        open.sync_all().expect("sync");
        fadvise(&open, 0, None, Advice::DontNeed).expect("forget");
        assert_eq!(resident(&open), 0, "the file system keeps nothing in memory that may be forgotten");
        let half = (0, LENGTH / 2);
        assert_eq!(read_ahead(directory.path(), &[file("/library", &[half]), file("/gone", &[half])]), LENGTH / 2);
        let begun = Instant::now();
        while resident(&open) < (LENGTH / 2 / 4096) as usize {
            assert!(begun.elapsed() < Duration::from_secs(60), "{} pages are in memory", resident(&open));
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn nothing_but_files_of_the_container_is_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path().join("root");
        std::fs::create_dir(&root).expect("a root");
        std::fs::write(directory.path().join("outside"), "x").expect("write");
        std::os::unix::fs::symlink("../outside", root.join("link")).expect("a link");
        nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        let all = ["/../outside", "../outside", "/link", "/pipe", "/", ""];
        let files: Vec<MappedFile> = all.iter().map(|path| file(path, &[(0, 4096)])).collect();
        assert_eq!(read_ahead(&root, &files), 0);
        assert_eq!(read_ahead(&directory.path().join("none"), &files), 0);
    }
}
