//! Giving back pages of the program that were needed once.
//!
//! Most of what init ever runs is start-up and spawning, and the kernel maps sixteen pages around each one that is touched.
//! They stay in the page cache, where every init of the node shares them; only this process' mappings of them go, so that a
//! supervised container is charged for what init uses while it waits.

use std::ffi::{c_int, c_void};

/// Unmaps the pages of this program that can be mapped again as they were: those of its segments that nobody can write to.
pub(crate) fn shed() {
    // SAFETY: `segments` has the signature that is asked for and needs no data.
    unsafe { libc::dl_iterate_phdr(Some(segments), std::ptr::null_mut()) };
}

/// The first object is the program itself, and a static program has no other.
unsafe extern "C" fn segments(object: *mut libc::dl_phdr_info, _size: libc::size_t, _data: *mut c_void) -> c_int {
    // SAFETY: the C library passes a valid description of a loaded object.
    let object = unsafe { &*object };
    for index in 0..usize::from(object.dlpi_phnum) {
        // SAFETY: `dlpi_phdr` points to `dlpi_phnum` headers.
        let header = unsafe { &*object.dlpi_phdr.add(index) };
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        let page = 4096;
        let begin = (object.dlpi_addr + header.p_vaddr) / page * page;
        let end = (object.dlpi_addr + header.p_vaddr + header.p_memsz).next_multiple_of(page);
        // SAFETY: the segment is a private mapping of the program's file that was never written to (its relocations are in
        // writable segments), so what is dropped comes back from the file, unchanged, when it is touched. A refusal leaves the
        // pages where they are.
        unsafe { libc::madvise(begin as *mut c_void, (end - begin) as usize, libc::MADV_DONTNEED) };
    }
    1
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_program_goes_on_without_what_it_has_given_back() {
        static CONSTANTS: [u64; 1024] = [7; 1024];
        super::shed();
        assert_eq!(CONSTANTS.iter().sum::<u64>(), 7 * 1024);
    }
}
