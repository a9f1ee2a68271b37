//! Which memory of a process a restore can fetch later.
//!
//! At a restore CRIU skips every page that the images call lazy, whatever it belongs to, but hands only these mappings to
//! the page daemon (`vma_entry_can_be_lazy` in `criu/include/vma.h`, called by `vma_remap` in `criu/pie/restorer.c`). A
//! page that is called lazy outside of them is lost without a word: it reads as zeros, or as the file has it.

use super::error::PagemapError;
use super::image::{self, ImageError};
use super::ranges;
use prost::Message;
use std::ops::Range;
use std::path::Path;

/// `MM_MAGIC`. Source: CRIU's `criu/include/magic.h`.
const MM_MAGIC: u32 = 0x5749_2820;

/// `VMA_AREA_VSYSCALL`, `VMA_AREA_VDSO`, `VMA_AREA_VVAR`. Source: CRIU's `criu/include/image.h`.
const KERNEL_AREAS: u32 = 1 << 2 | 1 << 3 | 1 << 12;

/// Flags that a mapping needs, and flags that it may not have. Source: mmap(2).
const NEEDED: u32 = (libc::MAP_ANONYMOUS | libc::MAP_PRIVATE) as u32;
const FORBIDDEN: u32 = (libc::MAP_LOCKED | libc::MAP_HUGETLB) as u32;

/// `MADV_WIPEONFORK`. The kernel does not tell a page daemon that a child begins with zeros there, so the child would get
/// its parent's pages: a random number generator would repeat itself.
const WIPED: u64 = 1 << libc::MADV_WIPEONFORK;

/// `mm_entry`.
#[derive(Clone, PartialEq, prost::Message)]
struct Memory {
    #[prost(message, repeated, tag = "14")]
    vmas: Vec<Mapping>,
}

/// `vma_entry`.
#[derive(Clone, PartialEq, prost::Message)]
struct Mapping {
    #[prost(uint64, required, tag = "1")]
    start: u64,
    #[prost(uint64, required, tag = "2")]
    end: u64,
    #[prost(uint32, required, tag = "6")]
    flags: u32,
    #[prost(uint32, required, tag = "7")]
    status: u32,
    /// One bit for each advice of madvise(2).
    #[prost(uint64, optional, tag = "9")]
    madv: Option<u64>,
}

impl Mapping {
    fn can_be_lazy(&self) -> bool {
        let wiped = self.madv.unwrap_or_default() & WIPED != 0;
        self.flags & NEEDED == NEEDED && self.flags & FORBIDDEN == 0 && self.status & KERNEL_AREAS == 0 && !wiped
    }
}

/// The ranges of process `pid` that can be restored lazily, by its `mm-PID.img`: sorted and apart.
///
/// # Errors
/// [`PagemapError`].
pub fn lazy_ranges(images: &Path, pid: i32) -> Result<Vec<Range<u64>>, PagemapError> {
    let path = images.join(format!("mm-{pid}.img"));
    let image = image::read(&path).map_err(|source| PagemapError::Read { path: path.clone(), source })?;
    ranges_of(&image).map_err(|source| PagemapError::Image { path, source })
}

fn ranges_of(image: &[u8]) -> Result<Vec<Range<u64>>, ImageError> {
    let entries = image::entries(image, MM_MAGIC)?;
    let [entry] = entries[..] else { return Err(ImageError::Count(entries.len())) };
    let memory = Memory::decode(entry).map_err(|_| ImageError::Entry(0))?;
    let lazy: Vec<Range<u64>> =
        memory.vmas.iter().filter(|vma| vma.can_be_lazy()).map(|vma| vma.start..vma.end).collect();
    if ranges::is_sorted(&lazy) { Ok(lazy) } else { Err(ImageError::Entry(0)) }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "lists of ranges are meant")]
pub(super) mod tests {
    use super::super::ranges::PAGE;
    use super::*;

    const ANONYMOUS: u32 = 0x22;
    const FILE: u32 = 0x2;
    const LOCKED: u32 = 0x2022;
    const REGULAR: u32 = 1 | 1 << 9;
    const VDSO: u32 = 1 | 1 << 3 | 1 << 9;

    /// An `mm` image of one anonymous mapping a range.
    pub fn anonymous(ranges: &[Range<u64>]) -> Vec<u8> {
        let vmas = ranges.iter().map(|range| mapping(range.clone(), ANONYMOUS, REGULAR)).collect();
        image::assemble(MM_MAGIC, [Memory { vmas }.encode_to_vec()])
    }

    fn mapping(range: Range<u64>, flags: u32, status: u32) -> Mapping {
        Mapping { start: range.start, end: range.end, flags, status, madv: None }
    }

    #[test]
    fn only_plain_anonymous_private_memory_can_come_later() {
        let page = |number: u64| number * PAGE..(number + 1) * PAGE;
        let vmas = vec![
            mapping(page(1), ANONYMOUS, REGULAR),
            mapping(page(2), FILE, REGULAR),
            mapping(page(3), LOCKED, REGULAR),
            mapping(page(4), ANONYMOUS, VDSO),
            mapping(page(5), 0x21, 1 | 1 << 8),
            mapping(page(6), 0x40022, REGULAR),
            mapping(page(7), ANONYMOUS | 0x100, REGULAR),
            // What a child finds wiped.
            Mapping { madv: Some(1 << 18), ..mapping(page(8), ANONYMOUS, REGULAR) },
            // What is not dumped into a core file.
            Mapping { madv: Some(1 << 16), ..mapping(page(9), ANONYMOUS, REGULAR) },
        ];
        let image = image::assemble(MM_MAGIC, [Memory { vmas }.encode_to_vec()]);
        assert_eq!(ranges_of(&image).unwrap(), [page(1), page(7), page(9)]);
    }

    #[test]
    fn mappings_out_of_order_are_refused() {
        let image = anonymous(&[8 * PAGE..9 * PAGE, PAGE..2 * PAGE]);
        assert_eq!(ranges_of(&image), Err(ImageError::Entry(0)));
        assert_eq!(ranges_of(&image::assemble(MM_MAGIC, [])), Err(ImageError::Count(0)));
    }
}
