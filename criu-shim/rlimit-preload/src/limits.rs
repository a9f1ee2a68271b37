//! `/proc/PID/limits`, read without allocating.

use std::cell::RefCell;
use std::ffi::c_int;

/// Names of the limits, by number. Source: linux `fs/proc/base.c` (`lnames`), `asm-generic/resource.h`.
const NAMES: [&[u8]; 16] = [
    b"Max cpu time",
    b"Max file size",
    b"Max data size",
    b"Max stack size",
    b"Max core file size",
    b"Max resident set",
    b"Max processes",
    b"Max open files",
    b"Max locked memory",
    b"Max address space",
    b"Max file locks",
    b"Max pending signals",
    b"Max msgqueue size",
    b"Max nice priority",
    b"Max realtime priority",
    b"Max realtime timeout",
];

/// Width of the column of names.
const NAME_WIDTH: usize = 26;

/// The file has some 1,300 bytes.
const MAX_FILE: usize = 4096;

/// A soft and a hard limit; `u64::MAX` for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    pub(crate) current: u64,
    pub(crate) maximum: u64,
}

/// What the kernel shows everybody of the limits of one process.
struct Shown {
    pid: c_int,
    /// The limit that was asked for last.
    resource: usize,
    length: usize,
    file: [u8; MAX_FILE],
}

thread_local! {
    static SHOWN: RefCell<Shown> = const { RefCell::new(Shown { pid: 0, resource: 0, length: 0, file: [0; MAX_FILE] }) };
}

/// What the kernel shows everybody of a limit of process `pid`.
///
/// Whoever goes through the limits of a process, from the first to the last, is answered from one look: another one costs as much as
/// all of its lines, and CRIU asks for sixteen.
pub(crate) fn of_process(pid: c_int, resource: usize) -> Option<Limit> {
    SHOWN.with_borrow_mut(|shown| {
        if shown.pid != pid || resource <= shown.resource {
            shown.pid = 0;
            shown.length = read(&path(pid)?, &mut shown.file)?;
            shown.pid = pid;
        }
        shown.resource = resource;
        find(&shown.file[..shown.length], resource)
    })
}

/// `/proc/PID/limits`, ending in a zero byte.
fn path(pid: c_int) -> Option<[u8; 32]> {
    let mut digits = [0u8; 10];
    let mut left = u32::try_from(pid).ok().filter(|pid| *pid > 0)?;
    let mut count = 0;
    while left > 0 {
        digits[count] = b'0' + (left % 10) as u8;
        left /= 10;
        count += 1;
    }
    let mut path = [0; 32];
    let parts = b"/proc/".iter().chain(digits[..count].iter().rev()).chain(b"/limits");
    for (slot, byte) in path.iter_mut().zip(parts) {
        *slot = *byte;
    }
    Some(path)
}

/// Reads a file to its end, or as much of it as there is room for.
fn read(path: &[u8; 32], file: &mut [u8]) -> Option<usize> {
    // SAFETY: the path ends in a zero byte: 6 + 10 + 7 bytes at most are set.
    let descriptor = unsafe { libc::open(path.as_ptr().cast(), libc::O_RDONLY | libc::O_CLOEXEC) };
    if descriptor < 0 {
        return None;
    }
    let mut length = 0;
    while length < file.len() {
        let rest = &mut file[length..];
        // SAFETY: `rest` may be written for as many bytes as it has.
        let count = unsafe { libc::read(descriptor, rest.as_mut_ptr().cast(), rest.len()) };
        match usize::try_from(count) {
            Ok(count) if count > 0 => length += count,
            _ => break,
        }
    }
    // SAFETY: it was opened above and nobody else knows of it.
    unsafe { libc::close(descriptor) };
    Some(length)
}

fn find(file: &[u8], resource: usize) -> Option<Limit> {
    let name = NAMES.get(resource)?;
    let line = file.split(|byte| *byte == b'\n').find(|line| line.starts_with(name))?;
    let mut values = line.get(NAME_WIDTH..)?.split(|byte| *byte == b' ').filter(|value| !value.is_empty());
    Some(Limit { current: number(values.next()?)?, maximum: number(values.next()?)? })
}

fn number(text: &[u8]) -> Option<u64> {
    if text == b"unlimited" {
        return Some(u64::MAX);
    }
    text.iter().try_fold(0u64, |number, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        number.checked_mul(10)?.checked_add(digit.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &[u8] = b"\
Limit                     Soft Limit           Hard Limit           Units     \n\
Max cpu time              unlimited            unlimited            seconds   \n\
Max core file size        0                    unlimited            bytes     \n\
Max open files            1024                 1048576              files     \n\
Max nice priority         0                    0                    \n\
Max realtime timeout      unlimited            unlimited            us        \n";

    #[test]
    fn limits_are_found_by_number() {
        for (resource, current, maximum) in [
            (libc::RLIMIT_CPU, u64::MAX, u64::MAX),
            (libc::RLIMIT_CORE, 0, u64::MAX),
            (libc::RLIMIT_NOFILE, 1024, 1_048_576),
            (libc::RLIMIT_NICE, 0, 0),
            (libc::RLIMIT_RTTIME, u64::MAX, u64::MAX),
        ] {
            assert_eq!(find(FILE, resource as usize), Some(Limit { current, maximum }));
        }
    }

    #[test]
    fn whoever_goes_through_the_limits_again_sees_them_as_they_are() {
        let own = std::process::id() as c_int;
        let set = |current| {
            let limit = libc::rlimit { rlim_cur: current, rlim_max: libc::RLIM_INFINITY };
            let mut before = limit;
            // SAFETY: one is read and the other written; nothing here depends on how large a core file may be.
            unsafe {
                assert_eq!(libc::getrlimit(libc::RLIMIT_CORE, &mut before), 0);
                assert_eq!(libc::setrlimit(libc::RLIMIT_CORE, &libc::rlimit { rlim_max: before.rlim_max, ..limit }), 0);
            }
        };
        let core = libc::RLIMIT_CORE as usize;
        let shown = |resource| of_process(own, resource).map(|limit| limit.current);
        set(4096);
        assert_eq!(shown(core), Some(4096));
        set(0);
        assert_eq!(shown(core), Some(0), "the same one again");
        set(8192);
        assert!(shown(core + 1).is_some());
        assert_eq!(shown(core), Some(8192), "one before the last");
        set(4096);
        assert!(of_process(1, 0).is_some());
        assert_eq!(shown(core), Some(4096), "another process was asked about in between");
    }

    #[test]
    fn what_is_not_there_is_not_made_up() {
        assert_eq!(find(FILE, libc::RLIMIT_AS as usize), None);
        assert_eq!(find(FILE, 16), None);
        assert_eq!(find(b"Max open files            12x 13\n", libc::RLIMIT_NOFILE as usize), None);
        assert_eq!(find(b"Max open files", libc::RLIMIT_NOFILE as usize), None);
    }

    #[test]
    fn paths_are_those_of_proc() {
        assert_eq!(&path(1).unwrap()[..15], b"/proc/1/limits\0");
        assert_eq!(&path(i32::MAX).unwrap()[..24], b"/proc/2147483647/limits\0");
        assert_eq!(path(0), None);
        assert_eq!(path(-1), None);
    }

    #[test]
    fn every_limit_of_this_process_can_be_read() {
        for resource in 0..NAMES.len() {
            assert!(of_process(std::process::id() as c_int, resource).is_some(), "{resource}");
        }
    }
}
