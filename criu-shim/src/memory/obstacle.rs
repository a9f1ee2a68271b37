//! Descriptors with which memory changes behind the page table, so that writes can't be tracked.
//!
//! A transfer into pinned pages that was begun before they were protected ends after, without a fault: the write is
//! lost to tracking. Direct I/O pins for as long as a call takes, io_uring and RDMA for as long as buffers are registered.

use serde::{Deserialize, Serialize};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// A descriptor that stands in the way.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum Obstacle {
    /// A file open with O_DIRECT.
    #[error("descriptor {fd} does direct I/O on {target}")]
    DirectIo {
        /// Number of the descriptor.
        fd: String,
        /// What it leads to.
        target: PathBuf,
    },
    /// Buffers may be registered with the kernel or a device.
    #[error("descriptor {fd} is {target}, which writes to registered memory")]
    RegisteredMemory {
        /// Number of the descriptor.
        fd: String,
        /// What it leads to.
        target: PathBuf,
    },
    /// The process uses a userfaultfd itself, and scanning would take away what it tracks.
    #[error("descriptor {fd} is a userfaultfd of the process itself")]
    Userfaultfd {
        /// Number of the descriptor.
        fd: String,
    },
    /// The process clears soft-dirty marks itself, as collectors of garbage do, and would miss those that are cleared by others.
    #[error("by descriptor {fd} the process clears soft-dirty marks itself")]
    Marks {
        /// Number of the descriptor.
        fd: String,
    },
}

/// By what writes are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Write protection.
    Protection,
    /// Soft-dirty marks.
    Marks,
}

/// The first descriptor of process `pid` that stands in the way of finding writes `by` this.
pub fn find(pid: i32, by: By) -> io::Result<Option<Obstacle>> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    for entry in std::fs::read_dir(process.join("fd"))? {
        let fd = entry?.file_name().to_string_lossy().into_owned();
        match look(&process, &fd, by) {
            Ok(None) => {}
            Ok(found) => return Ok(found),
            // Closed meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

fn look(process: &Path, fd: &str, by: By) -> io::Result<Option<Obstacle>> {
    let target = std::fs::read_link(process.join("fd").join(fd))?;
    if let Some(obstacle) = by_target(fd, &target, by) {
        return Ok(Some(obstacle));
    }
    if !target.is_absolute() {
        return Ok(None);
    }
    let info = std::fs::read_to_string(process.join("fdinfo").join(fd))?;
    Ok(is_direct(&info).then(|| Obstacle::DirectIo { fd: fd.to_owned(), target }))
}

fn by_target(fd: &str, target: &Path, by: By) -> Option<Obstacle> {
    let name = target.to_string_lossy();
    if by == By::Marks && target.file_name().is_some_and(|name| name == "clear_refs") {
        return Some(Obstacle::Marks { fd: fd.to_owned() });
    }
    if name == "anon_inode:[userfaultfd]" {
        return Some(Obstacle::Userfaultfd { fd: fd.to_owned() });
    }
    let registers = ["anon_inode:[io_uring]", "/dev/infiniband/", "/dev/vfio/"];
    registers
        .iter()
        .any(|prefix| name.starts_with(prefix))
        .then(|| Obstacle::RegisteredMemory { fd: fd.to_owned(), target: target.to_owned() })
}

/// Source: proc_pid_fdinfo(5); the flags are octal.
fn is_direct(info: &str) -> bool {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok()).is_some_and(|flags| flags & libc::O_DIRECT != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_are_octal() {
        assert!(is_direct(&format!("pos:\t0\nflags:\t0{:o}\nmnt_id:\t1\n", libc::O_DIRECT | libc::O_RDWR)));
        assert!(!is_direct("pos:\t0\nflags:\t0100002\n"));
        assert!(!is_direct(""));
    }

    #[test]
    fn rings_and_devices_that_write_to_registered_memory_are_known() {
        for by in [By::Protection, By::Marks] {
            for target in ["anon_inode:[io_uring]", "/dev/infiniband/uverbs0", "/dev/vfio/12"] {
                assert!(matches!(by_target("3", Path::new(target), by), Some(Obstacle::RegisteredMemory { .. })));
            }
            let own = by_target("3", Path::new("anon_inode:[userfaultfd]"), by);
            assert!(matches!(own, Some(Obstacle::Userfaultfd { .. })));
            for target in ["socket:[1]", "/dev/null", "anon_inode:[eventpoll]"] {
                assert_eq!(by_target("3", Path::new(target), by), None);
            }
        }
    }

    #[test]
    fn who_clears_marks_itself_is_in_the_way_of_marks_only() {
        let target = Path::new("/proc/7/clear_refs");
        assert_eq!(by_target("3", target, By::Marks), Some(Obstacle::Marks { fd: "3".to_owned() }));
        assert_eq!(by_target("3", target, By::Protection), None);
    }
}
