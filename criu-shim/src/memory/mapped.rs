//! Which parts of which files a process has mapped and in memory.

use super::pagemap::{PRESENT, Pagemap, Wanted};
use super::vma::{self, Vma};
use std::path::Path;

/// A part of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappedPart {
    /// Path of the file, as the process sees it.
    pub path: String,
    /// First byte in the file.
    pub start: u64,
    /// First byte after it.
    pub end: u64,
}

/// What process `pid` has in memory of files that have a name and are mapped for itself, as programs and libraries are; what is no more
/// than `apart` bytes apart in one mapping is one part, and of a mapping of which it has nothing there is a part of no bytes. Nothing where that can't be told: before Linux 6.7, or of a process that has
/// ended. Blocking.
pub fn mapped_parts(pid: i32, apart: u64) -> Vec<MappedPart> {
    let directory = Path::new("/proc").join(pid.to_string());
    let maps = std::fs::read(directory.join("maps")).unwrap_or_default();
    let Ok(pagemap) = Pagemap::open(&directory.join("pagemap")) else { return Vec::new() };
    let mut parts: Vec<MappedPart> = Vec::new();
    for vma in vma::parse(&String::from_utf8_lossy(&maps)).unwrap_or_default().iter().filter(|vma| is_file(vma)) {
        let wanted = Wanted { all: PRESENT, told: PRESENT, ..Wanted::default() };
        let in_file = |address: u64| (address - vma.range.start).saturating_add(vma.offset);
        let found = pagemap.scan(vma.range, wanted).unwrap_or_default();
        let found = found.iter().map(|region| (in_file(region.range().start), in_file(region.range().end)));
        let part = |(start, end)| MappedPart { path: vma.name.clone(), start, end };
        let found = joined(found, apart);
        let none = found.is_empty().then_some((vma.offset, vma.offset));
        parts.extend(found.into_iter().chain(none).map(part));
    }
    parts
}

/// `parts` in ascending order, with those made one that overlap, or are no more than `apart` bytes apart.
pub fn joined(parts: impl IntoIterator<Item = (u64, u64)>, apart: u64) -> Vec<(u64, u64)> {
    let mut whole: Vec<(u64, u64)> = Vec::new();
    for (start, end) in parts {
        match whole.last_mut() {
            Some(last) if start <= last.1.saturating_add(apart) => last.1 = last.1.max(end),
            _ => whole.push((start, end)),
        }
    }
    whole
}

/// Whether a file of which the name can be told is mapped, for this process alone.
fn is_file(vma: &Vma) -> bool {
    vma::is_private_file_or_code(vma) && !vma.name.contains(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_process_runs_is_told() {
        let program = std::env::current_exe().expect("a program");
        let length = std::fs::metadata(&program).expect("its length").len();
        let parts = mapped_parts(std::process::id() as i32, 0);
        let own: Vec<_> = parts.iter().filter(|part| Path::new(&part.path) == program).collect();
        assert!(!own.is_empty());
        let whole =
            |part: &&MappedPart| part.start <= part.end && part.start.is_multiple_of(4096) && part.start < length;
        assert!(own.iter().all(whole) && own.iter().any(|part| part.start < part.end), "{own:?}");
        assert!(parts.iter().all(|part| part.path.starts_with('/')), "{parts:?}");
        let fewer = mapped_parts(std::process::id() as i32, u64::MAX);
        let of_program = fewer.iter().filter(|part| Path::new(&part.path) == program).count();
        assert!(of_program > 0 && of_program <= own.len(), "one for each mapping: {fewer:?}");
    }

    #[test]
    fn a_mapping_of_which_nothing_is_in_memory_is_told() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(8192).expect("two pages");
        // SAFETY: it is a mapping of its own that nobody touches, taken away again.
        let parts = unsafe {
            let descriptor = std::os::fd::AsRawFd::as_raw_fd(file.as_file());
            let at = libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, libc::MAP_PRIVATE, descriptor, 4096);
            assert_ne!(at, libc::MAP_FAILED);
            let parts = mapped_parts(std::process::id() as i32, 0);
            assert_eq!(libc::munmap(at, 4096), 0);
            parts
        };
        let path = file.path().to_str().expect("a name").to_owned();
        assert!(parts.contains(&MappedPart { path, start: 4096, end: 4096 }), "{parts:?}");
    }

    #[test]
    fn what_has_no_name_is_no_file() {
        let is = |line: &str| is_file(&vma::parse(line).expect("a mapping")[0]);
        assert!(is("10000000-10001000 r-xp 00000000 fd:01 9 /lib/x"));
        for other in
            ["fd:01 9 /lib/x (deleted)", "00:05 9 /dev/shm/x", "00:00 0", "00:00 0 [heap]", "00:01 9 anon_inode"]
        {
            assert!(!is(&format!("10000000-10001000 r-xp 00000000 {other}")), "{other}");
        }
        assert!(!is("10000000-10001000 rw-s 00000000 fd:01 9 /data"), "others write to it");
    }
}
