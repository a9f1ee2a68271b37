//! The objects that a container's processes have mapped or open.

use crate::memory::vma;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

/// Shorter objects are left to CRIU, bytes.
const MIN_LENGTH: u64 = 1 << 20;

/// Longer objects are left to CRIU, bytes: what is remembered of them would be too much for the agent.
const MAX_LENGTH: u64 = 64 << 30;

/// What the kernel calls a mapping of a System V segment. Its inode is the segment's id, by which CRIU dumps it; another object may
/// have the same number.
const SYSV: &str = "/SYSV";

/// What there is.
#[derive(Debug, Default)]
pub struct Found {
    /// Every object that can be followed, by inode.
    pub inodes: BTreeSet<u32>,
    /// Those that were not known before, opened for reading.
    pub new: BTreeMap<u32, File>,
}

/// The device of the kernel's own mount of shmem, on which all of these objects are.
///
/// # Errors
/// Where no memfd can be made, which is one.
pub fn device() -> io::Result<u64> {
    let memfd = rustix::fs::memfd_create("tideover", rustix::fs::MemfdFlags::CLOEXEC)?;
    Ok(File::from(memfd).metadata()?.dev())
}

/// The objects on `device` that processes `pids` have mapped or open, of 1 MiB to 64 GiB. A process that has ended has none;
/// what can't be looked at or opened is passed over, and so are two that have one number: CRIU dumps it.
pub fn find(pids: &[i32], device: u64, known: &BTreeSet<u32>) -> Found {
    let mut places: BTreeMap<u32, (PathBuf, bool)> = BTreeMap::new();
    let mut ambiguous: BTreeSet<u32> = BTreeSet::new();
    for pid in pids {
        let open = open(*pid, device).into_iter().map(|(inode, path)| (inode, path, false));
        for (inode, path, sysv) in mapped(*pid, device).into_iter().chain(open) {
            let (_, other) = places.entry(inode).or_insert((path, sysv));
            ambiguous.extend((*other != sysv).then_some(inode));
        }
    }
    let mut found = Found::default();
    for (inode, (path, _)) in places.into_iter().filter(|(inode, _)| !ambiguous.contains(inode)) {
        if known.contains(&inode) {
            found.inodes.insert(inode);
            continue;
        }
        // No time of access is changed, and what has become a pipe meanwhile is not waited for.
        let flags = libc::O_NOATIME | libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
        let file = file.and_then(|file| Ok((file.metadata()?, file)));
        if let Ok((metadata, file)) = file
            && (metadata.dev(), metadata.ino()) == (device, inode.into())
            && (MIN_LENGTH..=MAX_LENGTH).contains(&metadata.len())
        {
            found.inodes.insert(inode);
            found.new.insert(inode, file);
        }
    }
    found
}

/// Objects by the mappings of a process: inode, where it can be opened, and whether it is a System V segment.
fn mapped(pid: i32, device: u64) -> Vec<(u32, PathBuf, bool)> {
    let text = std::fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let vmas = vma::parse(&text).unwrap_or_default().into_iter().filter(|vma| vma.device == device);
    let objects = vmas.filter_map(|vma| {
        let path = format!("/proc/{pid}/map_files/{:x}-{:x}", vma.range.start, vma.range.end);
        Some((u32::try_from(vma.inode).ok()?, path.into(), vma.name.starts_with(SYSV)))
    });
    objects.collect()
}

/// Objects by the descriptors of a process: inode, and where it can be opened.
fn open(pid: i32, device: u64) -> Vec<(u32, PathBuf)> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let objects = entries.filter_map(|entry| {
        let path = entry.path();
        let metadata = path.metadata().ok().filter(|metadata| metadata.dev() == device && metadata.is_file())?;
        Some((u32::try_from(metadata.ino()).ok()?, path))
    });
    objects.collect()
}
