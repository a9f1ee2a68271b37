//! `/proc/PID/pagemap` without what is withheld.

use crate::list::Ranges;
use std::ffi::{c_int, c_long, c_ulong};

/// `PAGEMAP_SCAN`: `_IOWR('f', 16, struct pm_scan_arg)`. Source: `include/uapi/linux/fs.h`.
pub(crate) const SCAN: c_ulong = 3 << 30 | (size_of::<Scan>() as c_ulong) << 16 | (b'f' as c_ulong) << 8 | 16;

/// Bytes of a page, and of its word in a pagemap. Source: `Documentation/admin-guide/mm/pagemap.rst`. Where pages are larger,
/// nothing is withheld.
const PAGE: u64 = 4096;
const WORD: u64 = 8;

/// `struct pm_scan_arg`. Source: `include/uapi/linux/fs.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Scan {
    pub(crate) size: u64,
    pub(crate) flags: u64,
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) walk_end: u64,
    pub(crate) vec: u64,
    pub(crate) vec_len: u64,
    pub(crate) max_pages: u64,
    pub(crate) category_inverted: u64,
    pub(crate) category_mask: u64,
    pub(crate) category_anyof_mask: u64,
    pub(crate) return_mask: u64,
}

/// Bytes of a `struct page_region`, of which `vec` has room for `vec_len`.
const REGION: u64 = 24;

/// Answers `scan` by asking `kernel` for the parts that are not withheld. As the ioctl(2): the number of regions, and
/// `walk_end`; or -1.
///
/// Requests that do more than list regions, or ask for so many pages at most, are the kernel's alone.
pub(crate) fn scan(scan: &mut Scan, withheld: Ranges, mut kernel: impl FnMut(&mut Scan) -> c_long) -> c_int {
    if scan.flags != 0 || scan.max_pages != 0 || scan.vec == 0 || scan.size != size_of::<Scan>() as u64 {
        return kernel(scan) as c_int;
    }
    let (mut at, mut found) = (scan.start, 0);
    while at < scan.end && found < scan.vec_len {
        let (start, end) = withheld.after(at).unwrap_or((scan.end, scan.end));
        if start <= at {
            at = end.min(scan.end);
            continue;
        }
        let vec = scan.vec + found * REGION;
        let mut part = Scan { start: at, end: start.min(scan.end), vec, vec_len: scan.vec_len - found, ..*scan };
        let Ok(more) = u64::try_from(kernel(&mut part)) else { return -1 };
        found += more;
        at = part.walk_end;
        if part.walk_end < part.end {
            break;
        }
    }
    scan.walk_end = at;
    found as c_int
}

/// Makes `bytes` of a pagemap, which begin at `offset` in it, say of what is withheld that it is not there.
pub(crate) fn blank(bytes: &mut [u8], offset: u64, withheld: Ranges) {
    if !offset.is_multiple_of(WORD) {
        return;
    }
    let first = offset / WORD * PAGE;
    let mut after = withheld.after(first);
    for (word, address) in bytes.chunks_exact_mut(WORD as usize).zip((first..).step_by(PAGE as usize)) {
        if after.is_some_and(|(_, end)| end <= address) {
            after = withheld.after(address);
        }
        match after {
            None => return,
            Some((start, _)) if address >= start => word.fill(0),
            Some(_) => {}
        }
    }
}
