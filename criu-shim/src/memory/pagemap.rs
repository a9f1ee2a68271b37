//! The PAGEMAP_SCAN ioctl of `/proc/PID/pagemap`. It holds the `unsafe` of that call and nothing else.
//!
//! Source of the numbers: include/uapi/linux/fs.h and Documentation/admin-guide/mm/pagemap.rst of the kernel; the call
//! is there since 6.7.

use super::Range;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// The page's mapping is registered with a userfaultfd that resolves write protection by itself (WP_ASYNC).
pub const WP_ALLOWED: u64 = 1 << 0;
/// Written since it was protected; also true of what was never protected.
pub const WRITTEN: u64 = 1 << 1;
/// A page of a mapped file, which nobody has written to through this mapping.
pub const FILE: u64 = 1 << 2;
/// In memory.
pub const PRESENT: u64 = 1 << 3;
/// In swap. The kernel also says so of what only has a marker in the page table, as a guard page.
pub const SWAPPED: u64 = 1 << 4;
/// The one page of zeroes that stands for memory that was only read.
pub const ZERO: u64 = 1 << 5;
/// A guard page (MADV_GUARD_INSTALL). Kernels before 6.15 refuse the bit.
pub const GUARD: u64 = 1 << 8;

const WP_MATCHING: u64 = 1 << 0;

/// Regions that one call may return. The kernel goes on from where it stopped.
const BATCH: usize = 1024;

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

impl Region {
    /// Its addresses.
    pub fn range(&self) -> Range {
        Range { start: self.start, end: self.end }
    }

    /// True when all pages of the region are of this category, of those that were asked for.
    pub fn is(&self, category: u64) -> bool {
        self.categories & category != 0
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Arguments {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

nix::ioctl_readwrite!(pagemap_scan, b'f', 16, Arguments);

/// Which pages to return.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// Categories that a page must have.
    pub all: u64,
    /// Categories that a page must not have.
    pub none: u64,
    /// Categories of which it must have one; 0 asks for none.
    pub any: u64,
    /// Categories to tell apart in the answer.
    pub told: u64,
    /// Write-protect what is returned, in the same step. Mappings without [`WP_ALLOWED`] are passed over.
    pub protect: bool,
}

/// The page tables of the address space that a process had when this was opened.
#[derive(Debug)]
pub struct Pagemap(File);

impl Pagemap {
    /// Opens `/proc/PID/pagemap`.
    pub fn open(path: &Path) -> io::Result<Self> {
        File::open(path).map(Self)
    }

    /// The pages of `range` that are wanted, as regions of equal categories in ascending order.
    ///
    /// # Errors
    /// With `protect`, an error says nothing of how far the kernel came: pages may be protected that nobody was told of.
    pub fn scan(&self, range: Range, wanted: Wanted) -> io::Result<Vec<Region>> {
        let mut found = Vec::new();
        let mut regions = vec![Region::default(); BATCH];
        let mut start = range.start;
        while start < range.end {
            let (count, walked) = self.scan_some(Range { start, ..range }, wanted, 0, &mut regions)?;
            found.extend_from_slice(regions.get(..count).unwrap_or_default());
            if walked <= start {
                return Err(io::ErrorKind::InvalidData.into());
            }
            start = walked;
        }
        Ok(found)
    }

    /// True when the mapping at the start of `range` has this category. It takes the same time for any length.
    pub fn first_is(&self, range: Range, category: u64) -> io::Result<bool> {
        let wanted = Wanted { all: category, told: category, ..Wanted::default() };
        let mut regions = [Region::default()];
        let (count, _) = self.scan_some(range, wanted, 1, &mut regions)?;
        Ok(count == 1 && regions.iter().any(|region| region.start == range.start))
    }

    /// True when any page of `range` is wanted. The kernel looks no further than to the first.
    pub fn has_any(&self, range: Range, wanted: Wanted) -> io::Result<bool> {
        let mut regions = [Region::default()];
        self.scan_some(range, wanted, 1, &mut regions).map(|(count, _)| count > 0)
    }

    /// One call: how many regions it filled in, and the address up to which it looked.
    fn scan_some(&self, range: Range, wanted: Wanted, pages: u64, found: &mut [Region]) -> io::Result<(usize, u64)> {
        let mut arguments = Arguments {
            size: size_of::<Arguments>() as u64,
            flags: if wanted.protect { WP_MATCHING } else { 0 },
            start: range.start,
            end: range.end,
            vec: found.as_mut_ptr() as u64,
            vec_len: found.len() as u64,
            max_pages: pages,
            category_inverted: wanted.none,
            category_mask: wanted.all | wanted.none,
            category_anyof_mask: wanted.any,
            return_mask: wanted.told,
            ..Arguments::default()
        };
        // SAFETY: `arguments` has the layout and size that the kernel is told, and `vec` points to `vec_len` regions
        // that stay borrowed for the call.
        let count = unsafe { pagemap_scan(self.0.as_raw_fd(), &raw mut arguments) }?;
        Ok((usize::try_from(count).unwrap_or_default(), arguments.walk_end))
    }
}
