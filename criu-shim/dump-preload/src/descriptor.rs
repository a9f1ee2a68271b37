//! Whose file in `/proc` a descriptor of CRIU's is.

use std::cell::Cell;
use std::ffi::c_int;
use std::io::Write;

/// A file in the directory of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    device: u64,
    inode: u64,
    process: u64,
}

/// The file of one name that was asked about last. CRIU asks for each mapping of a process; to follow the link anew takes more than five
/// times as long as fstat(2).
pub(crate) struct Last {
    name: &'static [u8],
    seen: Cell<Option<Seen>>,
}

impl Last {
    /// Of files that have this name.
    pub(crate) const fn of(name: &'static [u8]) -> Self {
        Self { name, seen: Cell::new(None) }
    }

    /// The process in whose directory the file that `descriptor` is has this name; none where it is something else.
    ///
    /// The kernel does not give the number of such a file to another one before it has counted through 32 bits.
    /// Source: `get_next_ino` in linux `fs/inode.c`.
    pub(crate) fn process(&self, descriptor: c_int) -> Option<u64> {
        let (device, inode) = identity(descriptor)?;
        if let Some(seen) = self.seen.get()
            && (seen.device, seen.inode) == (device, inode)
        {
            return Some(seen.process);
        }
        let process = path_of(descriptor, |path| {
            let mut parts = path.rsplit(|byte| *byte == b'/');
            (parts.next()? == self.name).then(|| number(parts.next()?)).flatten()
        })?;
        self.seen.set(Some(Seen { device, inode, process }));
        Some(process)
    }
}

/// The process whose directory in `/proc` `descriptor` is.
pub(crate) fn process_directory(descriptor: c_int) -> Option<u64> {
    path_of(descriptor, |path| {
        let mut parts = path.rsplit(|byte| *byte == b'/');
        number(parts.next()?).filter(|_| parts.next() == Some(b"proc"))
    })
}

/// Device and inode of what `descriptor` is.
pub(crate) fn identity(descriptor: c_int) -> Option<(u64, u64)> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `stat` may be written, and is read only where the kernel has written it.
    let stat = unsafe {
        if libc::fstat(descriptor, stat.as_mut_ptr()) != 0 {
            return None;
        }
        stat.assume_init()
    };
    Some((stat.st_dev, stat.st_ino))
}

fn path_of<T>(descriptor: c_int, read: impl FnOnce(&[u8]) -> Option<T>) -> Option<T> {
    let (mut path, mut name) = ([0_u8; 64], [0_u8; 128]);
    write!(&mut path[..63], "/proc/self/fd/{descriptor}").ok()?;
    // SAFETY: a C string, and a buffer of the length that is named.
    let length = unsafe { libc::readlink(path.as_ptr().cast(), name.as_mut_ptr().cast(), name.len()) };
    read(name.get(..usize::try_from(length).ok()?)?)
}

fn number(part: &[u8]) -> Option<u64> {
    std::str::from_utf8(part).ok()?.parse().ok()
}
