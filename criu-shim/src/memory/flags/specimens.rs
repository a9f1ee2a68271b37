//! Mappings of the agent's own, with the flags that a program can give to its mappings. It holds the `unsafe` of making them and
//! nothing else.

use crate::memory::Range;
use crate::memory::uffd::Userfaultfd;
use rustix::io::Errno;
use rustix::mm::{
    Advice, MapFlags, MlockFlags, ProtFlags, UserfaultfdFlags, madvise, mlock, mlock_with, mmap_anonymous, munmap,
    userfaultfd,
};
use std::ffi::c_void;

/// The mappings, for as long as it lives. What a kernel refuses to make is not among them.
#[derive(Debug, Default)]
pub(super) struct Specimens {
    mapped: Vec<*mut c_void>,
    followed: Option<Userfaultfd>,
}

const LENGTH: usize = 4096;
const ADVICE: [Advice; 8] = [
    Advice::Sequential,
    Advice::Random,
    Advice::LinuxDontFork,
    Advice::LinuxDontDump,
    Advice::LinuxWipeOnFork,
    Advice::LinuxHugepage,
    Advice::LinuxNoHugepage,
    Advice::LinuxMergeable,
];
/// Flag of userfaultfd(2): no faults of the kernel are reported.
const USER_MODE_ONLY: UserfaultfdFlags = UserfaultfdFlags::from_bits_retain(1);

impl Specimens {
    pub(super) fn make() -> Self {
        let mut all = Self::default();
        for advice in ADVICE {
            // SAFETY: whole pages of a mapping that nobody uses.
            all.add(MapFlags::PRIVATE, |memory| unsafe { madvise(memory, LENGTH, advice) });
        }
        // SAFETY: as above.
        all.add(MapFlags::PRIVATE, |memory| unsafe { mlock(memory, LENGTH) });
        // SAFETY: as above.
        all.add(MapFlags::PRIVATE, |memory| unsafe { mlock_with(memory, LENGTH, MlockFlags::ONFAULT) });
        for flags in
            [MapFlags::SHARED, MapFlags::PRIVATE | MapFlags::NORESERVE, MapFlags::PRIVATE | MapFlags::GROWSDOWN]
        {
            all.add(flags, |_| Ok(()));
        }
        // SAFETY: it watches nothing but a mapping that nobody uses.
        let made = unsafe { userfaultfd(UserfaultfdFlags::CLOEXEC | USER_MODE_ONLY) };
        if let Some(tracking) = made.ok().and_then(|made| Userfaultfd::tracking(made).ok()) {
            all.add(MapFlags::PRIVATE, |memory| {
                let start = memory as u64;
                let range = Range { start, end: start + LENGTH as u64 };
                tracking.start(range).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
            });
            all.followed = Some(tracking);
        }
        all
    }

    fn add(&mut self, flags: MapFlags, change: impl FnOnce(*mut c_void) -> Result<(), Errno>) {
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses: no memory that is in use is changed.
        let Ok(memory) = (unsafe { mmap_anonymous(std::ptr::null_mut(), LENGTH, rights, flags) }) else { return };
        self.mapped.push(memory);
        // A flag that this kernel does not have, nobody's mapping has.
        change(memory).ok();
    }
}

impl Drop for Specimens {
    fn drop(&mut self) {
        drop(self.followed.take());
        for memory in &self.mapped {
            // SAFETY: mapped in `add`, with this length, and known to nobody else. It can't fail for such a range.
            unsafe { munmap(*memory, LENGTH) }.ok();
        }
    }
}
