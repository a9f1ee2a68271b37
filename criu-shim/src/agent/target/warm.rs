//! Reads into memory what CRIU and the processes will want of the container's own files, while the container waits for its state.

use crate::agent::transfer::message::MappedFile;
use crate::cache;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Most that is read of all files together, bytes.
const MOST: u64 = 512 << 20;

/// The beginning of a file, bytes: CRIU looks there whether it is the file that was mapped on the source, by the build ID that a
/// linker writes behind the headers (`get_build_id` of its `criu/files-reg.c`).
const HEAD: u64 = 128 << 10;

/// Has the kernel read what is named by `files`, of those that are under `root`, a container's, until it is called `off`. It does not
/// wait for the disk where the disk takes more requests. Returns how many bytes were asked for; what is not there as it was on the
/// source is passed over. Blocking.
pub(super) fn read_ahead(root: &Path, files: &[MappedFile], off: &AtomicBool) -> u64 {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(root) = rustix::fs::open(root, flags, Mode::empty()) else { return 0 };
    let files: Vec<_> = files.iter().filter_map(|file| Some((file, open(&root, &file.path)?))).collect();
    // CRIU looks at the beginnings of all of them before it touches anything else.
    let heads = files.iter().map(|(_, open)| (open, (0, HEAD)));
    let parts = files.iter().flat_map(|(file, open)| file.parts.iter().map(move |part| (open, *part)));
    let mut asked = 0;
    for ((open, length), (start, end)) in heads.chain(parts) {
        let end = end.min(*length).min(start.saturating_add(MOST - asked));
        asked += cache::read_ahead(open, start..end, off);
    }
    asked
}

/// The regular file that has this path in the container, also where a hostile name leads elsewhere on the node, and its length, bytes.
fn open(root: &OwnedFd, path: &str) -> Option<(OwnedFd, u64)> {
    // Not to be read yet: what has a file's name here may be a device, which it does something to to open it.
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let place = openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve).ok()?;
    let stat = fstat(&place).ok()?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return None;
    }
    let again = format!("/proc/self/fd/{}", place.as_raw_fd());
    let file = rustix::fs::open(again, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    Some((file, u64::try_from(stat.st_size).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Wanted, resident};
    use rustix::fs::{Advice, fadvise};
    use std::fs::File;
    use std::time::{Duration, Instant};

    const LENGTH: u64 = 1 << 20;

    fn off_not() -> AtomicBool {
        AtomicBool::new(false)
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
        if resident(&open, LENGTH as usize) > 0 {
            return eprintln!("not tried: {} lies in memory", path.display());
        }
        let half = (LENGTH / 2, LENGTH);
        let files = [file("/library", &[half]), file("/gone", &[half])];
        let warming = Wanted::default();
        let off = warming.off();
        drop(warming);
        assert_eq!(read_ahead(directory.path(), &files, &off), 0, "nobody wants it");
        assert_eq!(read_ahead(directory.path(), &files, &off_not()), HEAD + LENGTH / 2);
        assert_eq!(read_ahead(directory.path(), &[file("/library", &[(LENGTH - 1, u64::MAX)])], &off_not()), HEAD + 1);
        let begun = Instant::now();
        while resident(&open, LENGTH as usize) < ((HEAD + LENGTH / 2) / 4096) as usize {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "{} pages are in memory",
                resident(&open, LENGTH as usize)
            );
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
        let null = rustix::fs::makedev(1, 3);
        rustix::fs::mknodat(rustix::fs::CWD, root.join("null"), FileType::CharacterDevice, Mode::RWXU, null)
            .expect("a device");
        let all = ["/../outside", "../outside", "/link", "/pipe", "/null", "/", ""];
        let files: Vec<MappedFile> = all.iter().map(|path| file(path, &[(0, 4096)])).collect();
        assert_eq!(read_ahead(&root, &files, &off_not()), 0);
        assert_eq!(read_ahead(&directory.path().join("none"), &files, &off_not()), 0);
    }
}
