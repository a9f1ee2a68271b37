//! The mappings of a process, and which of them are tracked: parsing and deciding, no I/O.

use super::Range;
use std::fmt;

/// Shorter mappings are not tracked, bytes: CRIU dumps them in less time than their tracking takes. Where a server has many
/// processes, most of their memory is in mappings of some hundred KiB: a heap is two mappings once it has grown after the fork.
pub const MIN_LENGTH: u64 = 64 << 10;

/// The same of the first thread's stack. The kernel reads the command line and the environment there for whoever asks, and fails
/// where a page is still to come: a few pages at its end are better in the images.
const MIN_STACK: u64 = 1 << 20;

/// A mapping, from `/proc/PID/maps` or `/proc/PID/smaps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vma {
    /// Its addresses.
    pub range: Range,
    /// May be read by the process.
    pub readable: bool,
    /// May be executed by the process.
    pub executable: bool,
    /// Writes go to a file or to other processes.
    pub shared: bool,
    /// Where in the mapped file the first address is, bytes.
    pub offset: u64,
    /// Device of the mapped file, as stat(2) says it; 0 without one.
    pub device: u64,
    /// Inode of the mapped file, 0 without one.
    pub inode: u64,
    /// Path of the file, or the kernel's name in brackets; empty for most anonymous mappings.
    pub name: String,
    /// `VmFlags` of smaps, two letters each; none when read from maps.
    pub flags: Vec<[u8; 2]>,
}

/// Why a mapping is not tracked. CRIU dumps it in the plain way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Shorter than [`MIN_LENGTH`], or than [`MIN_STACK`] where it is that.
    Short,
    /// What is written to it does not stay in the process.
    Shared,
    /// The process itself may not read it, as an allocator's reserve.
    Unreadable,
    /// A file is mapped.
    File,
    /// Made by the kernel or for a device, or a shadow stack.
    Special,
    /// On huge pages of hugetlbfs.
    HugeTlb,
    /// The process asked for its pages not to be taken from under it.
    Locked,
    /// Registered with a userfaultfd already.
    Userfaultfd,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Short => "the mapping is short",
            Self::Shared => "the mapping is shared",
            Self::Unreadable => "the mapping may not be read",
            Self::File => "a file is mapped",
            Self::Special => "the mapping belongs to the kernel or a device",
            Self::HugeTlb => "the mapping is on huge pages of hugetlbfs",
            Self::Locked => "the mapping is locked in memory",
            Self::Userfaultfd => "the mapping is registered with another userfaultfd",
        })
    }
}

/// Whether a mapping can be tracked by any engine, and why not.
///
/// With the flags that only smaps has, the answer is final. Without them it is a sieve: what it refuses is refused,
/// what it takes needs a second look. Source of the flags: Documentation/filesystems/proc.rst of the kernel.
///
/// # Errors
/// The reason against it.
pub fn tracking(vma: &Vma) -> Result<(), Reason> {
    if is_private_file(vma) { Err(Reason::File) } else { protecting(vma) }
}

/// The same by write protection, which tells what was written to a private mapping of a file from the file's own pages.
///
/// Not where code is: nobody writes there, and the kernel would map its pages one by one instead of some together. Nor where the
/// file has no name any more, or is a device.
///
/// # Errors
/// The reason against it.
pub fn protecting(vma: &Vma) -> Result<(), Reason> {
    let flagged = |flags: &[&[u8; 2]]| flags.iter().any(|flag| vma.flags.contains(flag));
    if vma.shared || flagged(&[b"sh"]) {
        return Err(Reason::Shared);
    }
    if flagged(&[b"ht"]) {
        return Err(Reason::HugeTlb);
    }
    if flagged(&[b"io", b"pf", b"ss"]) {
        return Err(Reason::Special);
    }
    let file = vma.inode != 0 || vma.name.starts_with('/');
    if file && !is_private_file(vma) {
        return Err(Reason::File);
    }
    let anonymous = file
        || vma.name.is_empty()
        || ["[heap]", "[stack]"].contains(&vma.name.as_str())
        || ["[anon:", "[stack:"].iter().any(|prefix| vma.name.starts_with(prefix));
    if !anonymous {
        return Err(Reason::Special);
    }
    if !vma.readable {
        return Err(Reason::Unreadable);
    }
    if flagged(&[b"lo"]) {
        return Err(Reason::Locked);
    }
    if flagged(&[b"um", b"uw", b"ui"]) {
        return Err(Reason::Userfaultfd);
    }
    let least = match vma.name.as_str() {
        "[stack]" => MIN_STACK,
        // A library has a few pages in each of some short mappings, which are the same in every process.
        _ if file => 0,
        _ => MIN_LENGTH,
    };
    if vma.range.len() < least {
        return Err(Reason::Short);
    }
    Ok(())
}

/// Whether it is a private mapping of a file of which protection tells what was written.
pub fn is_private_file(vma: &Vma) -> bool {
    is_private_file_or_code(vma) && !vma.executable
}

/// Whether it is a private mapping of a file that has a name, and is no device.
pub fn is_private_file_or_code(vma: &Vma) -> bool {
    let named = vma.name.starts_with('/') && !vma.name.starts_with("/dev/") && !vma.name.ends_with(" (deleted)");
    vma.inode != 0 && named && !vma.shared
}

/// The mappings in the text of a maps or smaps file, in ascending order. The first line that is none of either is the
/// error: a mapping that was overlooked would be one that nobody refused. Source: proc_pid_maps(5), proc_pid_smaps(5).
pub fn parse(text: &str) -> Result<Vec<Vma>, &str> {
    let mut vmas: Vec<Vma> = Vec::new();
    for line in text.lines() {
        let first = line.split_ascii_whitespace().next().unwrap_or_default();
        if !first.ends_with(':') {
            vmas.push(header(line).ok_or(line)?);
        } else if let Some(flags) = line.strip_prefix("VmFlags:") {
            let vma = vmas.last_mut().ok_or(line)?;
            vma.flags = flags.split_ascii_whitespace().filter_map(|flag| flag.as_bytes().try_into().ok()).collect();
        }
    }
    Ok(vmas)
}

fn header(line: &str) -> Option<Vma> {
    let mut parts = line.splitn(6, ' ');
    let (start, end) = parts.next()?.split_once('-')?;
    let permissions = parts.next()?.as_bytes();
    let (offset, device, inode) = (parts.next()?, parts.next()?.split_once(':')?, parts.next()?);
    let number = |text| u32::from_str_radix(text, 16).ok();
    let &[read, _, execute, sharing] = permissions else { return None };
    let range = Range { start: u64::from_str_radix(start, 16).ok()?, end: u64::from_str_radix(end, 16).ok()? };
    Some(Vma {
        range,
        readable: read == b'r',
        executable: execute == b'x',
        shared: sharing == b's',
        offset: u64::from_str_radix(offset, 16).ok()?,
        device: libc::makedev(number(device.0)?, number(device.1)?),
        inode: inode.parse().ok()?,
        name: parts.next().unwrap_or_default().trim_start().to_owned(),
        flags: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d0c0a00000-55d0c0c00000 rw-p 00000000 00:00 0                          [heap]
Size:               2048 kB
ProtectionKey:         0
VmFlags: rd wr mr mw me ac uw
7f0000000000-7f0000100000 r-xp 00001000 fd:01 77                         /usr/lib/a b.so (deleted)
VmFlags: rd ex mr mw me
7f0000200000-7f0000400000 rw-p 00000000 00:00 0 
";

    fn check(line: &str, flags: &str, expected: Result<(), Reason>) {
        let vmas = parse(line).unwrap();
        let flags = flags.split_ascii_whitespace().map(|flag| flag.as_bytes().try_into().unwrap()).collect();
        let vma = Vma { flags, ..vmas[0].clone() };
        assert_eq!(tracking(&vma), expected, "{line} {flags:?}", flags = vma.flags);
    }

    #[test]
    fn smaps_is_read_with_names_and_flags() {
        let vmas = parse(SMAPS).unwrap();
        assert_eq!(vmas.len(), 3);
        assert_eq!(vmas[0].range, Range { start: 0x55d0_c0a0_0000, end: 0x55d0_c0c0_0000 });
        assert_eq!(vmas[0].name, "[heap]");
        assert!(vmas[0].flags.contains(b"uw") && !vmas[0].executable);
        assert_eq!(vmas[1].name, "/usr/lib/a b.so (deleted)");
        assert!(vmas[1].executable && (vmas[1].device, vmas[1].inode) == (0xfd01, 77));
        assert_eq!(vmas[1].offset, 0x1000);
        assert_eq!(vmas[2].name, "");
        assert!(vmas[2].flags.is_empty());
    }

    #[test]
    fn a_line_that_is_no_mapping_is_an_error() {
        assert_eq!(parse("7f00-zz rw-p 0 00:00 0"), Err("7f00-zz rw-p 0 00:00 0"));
        assert_eq!(parse("VmFlags: rd"), Err("VmFlags: rd"));
        assert_eq!(parse(""), Ok(Vec::new()));
    }

    #[test]
    fn own_mappings_can_be_read() {
        let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
        assert!(parse(&text).unwrap().iter().any(|vma| vma.name == "[vdso]"));
    }

    #[test]
    fn private_anonymous_memory_is_tracked() {
        check("10000000-10100000 rw-p 00000000 00:00 0", "rd wr mr mw me ac", Ok(()));
        check("10000000-10100000 r--p 00000000 00:00 0", "rd mr mw me ac", Ok(()));
        check("10000000-10200000 rw-p 00000000 00:00 0 [heap]", "rd wr", Ok(()));
        check("10000000-10010000 rw-p 00000000 00:00 0 [heap]", "rd wr", Ok(()));
        check("10000000-10200000 rw-p 00000000 00:00 0 [stack]", "rd wr gd", Ok(()));
        check("10000000-10200000 rw-p 00000000 00:00 0 [anon:arena]", "rd wr", Ok(()));
    }

    #[test]
    fn what_was_written_to_a_library_is_seen_by_protection_alone() {
        let protecting = |line: &str, flags: &str| {
            let vma = parse(line).unwrap().remove(0);
            assert_eq!(tracking(&vma), Err(Reason::File), "{line}");
            let flags = flags.split_ascii_whitespace().map(|flag| flag.as_bytes().try_into().unwrap()).collect();
            protecting(&Vma { flags, ..vma })
        };
        for permissions in ["rw-p", "r--p"] {
            let line = format!("10000000-10001000 {permissions} 00000000 fd:01 9 /lib/x");
            assert_eq!(protecting(&line, "rd wr mr mw me ac"), Ok(()));
            assert_eq!(protecting(&line, "rd wr lo"), Err(Reason::Locked));
            assert_eq!(protecting(&line, "rd wr ht"), Err(Reason::HugeTlb));
            assert_eq!(protecting(&line, "rd wr io"), Err(Reason::Special));
            assert_eq!(protecting(&line, "rd wr uw"), Err(Reason::Userfaultfd));
        }
        assert_eq!(protecting("10000000-10200000 ---p 00000000 fd:01 9 /lib/x", "mr mw"), Err(Reason::Unreadable));
        for other in
            ["r-xp 00000000 fd:01 9 /lib/x", "rw-p 00000000 fd:01 9 /lib/x (deleted)", "rw-p 00000000 00:05 9 /dev/mem"]
        {
            assert_eq!(protecting(&format!("10000000-10200000 {other}"), "rd wr"), Err(Reason::File));
        }
    }

    #[test]
    fn what_is_not_tracked_has_a_reason() {
        check("10000000-1000f000 rw-p 00000000 00:00 0", "rd wr", Err(Reason::Short));
        check("10000000-1000f000 rw-p 00000000 00:00 0 [heap]", "rd wr", Err(Reason::Short));
        check("10000000-100ff000 rw-p 00000000 00:00 0 [stack]", "rd wr gd", Err(Reason::Short));
        check("10000000-10200000 rw-s 00000000 00:01 9 /dev/zero (deleted)", "rd wr sh", Err(Reason::Shared));
        check("10000000-10200000 ---p 00000000 00:00 0", "mr mw me", Err(Reason::Unreadable));
        check("10000000-10200000 rw-p 00000000 fd:01 9 /lib/x", "rd wr", Err(Reason::File));
        check("10000000-10200000 r--p 00000000 00:00 0 [vvar]", "rd mr pf", Err(Reason::Special));
        check("10000000-10200000 r-xp 00000000 00:00 0 [vdso]", "rd ex", Err(Reason::Special));
        check("10000000-10200000 --xp 00000000 00:00 0 [vsyscall]", "ex", Err(Reason::Special));
        check("10000000-10200000 rw-p 00000000 00:00 0", "rd wr ss", Err(Reason::Special));
        check("10000000-10200000 rw-p 00000000 00:0f 9 /anon_hugepage (deleted)", "rd wr ht", Err(Reason::HugeTlb));
        check("10000000-10200000 rw-p 00000000 00:00 0", "rd wr lo", Err(Reason::Locked));
        for flag in ["um", "uw", "ui"] {
            check("10000000-10200000 rw-p 00000000 00:00 0", flag, Err(Reason::Userfaultfd));
        }
    }
}
