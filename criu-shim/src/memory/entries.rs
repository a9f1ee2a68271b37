//! `/proc/PID/pagemap` as a file: what every kernel says of each page of a process.

use super::Range;
use super::sent::PAGE;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes of an entry.
pub const ENTRY: usize = size_of::<u64>();

/// Entries that are read at once.
const BATCH: usize = 8 << 10;

// Source of the bits: Documentation/admin-guide/mm/{pagemap,soft-dirty}.rst of the kernel.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const EXCLUSIVE: u64 = 1 << 56;
const SOFT_DIRTY: u64 = 1 << 55;

/// What the kernel says of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry(pub u64);

impl Entry {
    /// It is in memory or in swap. The kernel also says so of the page of zeroes, and of what only has a marker, as a guard page.
    pub fn has_content(self) -> bool {
        self.0 & (PRESENT | SWAPPED) != 0
    }

    /// It is in memory, and no page table leads to it but this one. That is never said of the page of zeroes.
    pub fn is_exclusive(self) -> bool {
        self.0 & (PRESENT | EXCLUSIVE) == PRESENT | EXCLUSIVE
    }

    /// It is in memory, and another page table may lead to it too.
    pub fn is_shared(self) -> bool {
        self.0 & (PRESENT | EXCLUSIVE) == PRESENT
    }

    /// It was written, or its mapping was made, since somebody last cleared the marks. Always false where the kernel keeps none.
    pub fn is_soft_dirty(self) -> bool {
        self.0 & SOFT_DIRTY != 0
    }
}

/// Calls `see` with the number and the entry of each page of `range`, in ascending order.
///
/// # Errors
/// Of the file, and [`io::ErrorKind::UnexpectedEof`] where the address space is gone.
pub fn walk(pagemap: &File, range: Range, mut see: impl FnMut(u64, Entry)) -> io::Result<()> {
    let mut bytes = vec![0; BATCH * ENTRY];
    let mut page = range.start / PAGE;
    while page < range.end / PAGE {
        let wanted = BATCH.min((range.end / PAGE - page) as usize) * ENTRY;
        pagemap.read_exact_at(&mut bytes[..wanted], page * ENTRY as u64)?;
        for entry in bytes[..wanted].as_chunks().0 {
            see(page, Entry(u64::from_ne_bytes(*entry)));
            page += 1;
        }
    }
    Ok(())
}
