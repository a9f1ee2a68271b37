//! Memory straight from the kernel. Owns every raw mapping of the ticker; none is ever unmapped.

use std::io;
use std::sync::atomic::AtomicU64;

const PAGE: usize = 4096;
/// Bytes of a scattered mapping. Mappings are followed from 64 KiB on.
const PIECE: usize = 60 << 10;

/// Shared anonymous memory of `words` words.
pub(crate) fn shared(words: usize) -> io::Result<&'static [AtomicU64]> {
    let memory = map(words * size_of::<u64>(), libc::MAP_SHARED)?;
    // SAFETY: a mapping of this length that nobody else has, aligned to a page. Zero means zero in every word, and it stays
    // for as long as the process lives.
    Ok(unsafe { std::slice::from_raw_parts(memory.cast(), words) })
}

/// `count` private mappings of a page each, that the kernel can't merge: every other one may not be written. Each has its
/// page. Returns where the first one begins; the others follow it.
pub(crate) fn many(count: usize) -> io::Result<usize> {
    let start = map(count * PAGE, libc::MAP_PRIVATE)?;
    for number in 0..count {
        // SAFETY: inside the mapping, whose memory nobody else knows of.
        unsafe {
            let page = start.add(number * PAGE);
            page.write(1);
            if number % 2 == 1 && libc::mprotect(page.cast(), PAGE, libc::PROT_READ) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(start as usize)
}

/// Makes a mapping of its own of every [`PIECE`] bytes of `memory`, by advice in which neighbours differ.
pub(crate) fn scatter(memory: &[AtomicU64]) -> io::Result<()> {
    let skip = memory.as_ptr().align_offset(PAGE);
    let pages = memory.get(skip..).unwrap_or_default();
    for piece in pages.chunks_exact(PIECE / size_of::<u64>()).step_by(2) {
        // SAFETY: whole pages of this process' own; all that changes is whether a core file would have them.
        if unsafe { libc::madvise(piece.as_ptr().cast_mut().cast(), PIECE, libc::MADV_DONTDUMP) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn map(length: usize, sharing: libc::c_int) -> io::Result<*mut u8> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at an address that the kernel chooses: no memory that is in use is changed.
    let memory = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, sharing | libc::MAP_ANONYMOUS, -1, 0) };
    if memory == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(memory.cast()) }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;

    #[test]
    fn scattered_memory_is_in_short_mappings() {
        let memory = shared((8 << 20) / 8).expect("memory");
        scatter(memory).expect("advice");
        let middle = memory.as_ptr() as usize + (4 << 20);
        assert_eq!(lengths(middle..middle + 1), [PIECE]);
    }

    #[test]
    fn each_of_many_mappings_is_one_to_the_kernel() {
        let start = many(200).expect("mappings");
        // The first and the last may have joined a neighbour.
        assert_eq!(lengths(start + PAGE..start + 199 * PAGE), [PAGE; 198]);
    }

    /// Bytes of each of this process' mappings that has a part of `range`, by address. Other tests map memory meanwhile, so that
    /// nothing can be said of all mappings together.
    fn lengths(range: Range<usize>) -> Vec<usize> {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
        let lengths = maps.lines().filter_map(|line| {
            let (start, end) = line.split(' ').next()?.split_once('-')?;
            let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
            (start < range.end && range.start < end).then_some(end - start)
        });
        lengths.collect()
    }
}
