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

/// What process `pid` has in memory of files with a name. Nothing where that can't be told: before Linux 6.7, or of a process that has
/// ended. Blocking.
pub fn mapped_parts(pid: i32) -> Vec<MappedPart> {
    let directory = Path::new("/proc").join(pid.to_string());
    let maps = std::fs::read_to_string(directory.join("maps")).unwrap_or_default();
    let Ok(pagemap) = Pagemap::open(&directory.join("pagemap")) else { return Vec::new() };
    let mut parts = Vec::new();
    for vma in vma::parse(&maps).unwrap_or_default().iter().filter(|vma| is_file(vma)) {
        let wanted = Wanted { all: PRESENT, told: PRESENT, ..Wanted::default() };
        let found = pagemap.scan(vma.range, wanted).unwrap_or_default();
        parts.extend(found.iter().map(|region| {
            let in_file = |address: u64| address - vma.range.start + vma.offset;
            let (start, end) = (in_file(region.range().start), in_file(region.range().end));
            MappedPart { path: vma.name.clone(), start, end }
        }));
    }
    parts
}

/// Whether a file with a name is mapped, and no device.
fn is_file(vma: &Vma) -> bool {
    let gone = vma.name.ends_with(" (deleted)");
    vma.inode != 0 && vma.name.starts_with('/') && !vma.name.starts_with("/dev/") && !gone
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_process_runs_is_told() {
        let program = std::env::current_exe().expect("a program");
        let length = std::fs::metadata(&program).expect("its length").len();
        let parts = mapped_parts(std::process::id() as i32);
        let own: Vec<_> = parts.iter().filter(|part| Path::new(&part.path) == program).collect();
        assert!(!own.is_empty());
        let whole =
            |part: &&MappedPart| part.start < part.end && part.start.is_multiple_of(4096) && part.start < length;
        assert!(own.iter().all(whole), "{own:?}");
        assert!(parts.iter().all(|part| part.path.starts_with('/')), "{parts:?}");
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
    }
}
