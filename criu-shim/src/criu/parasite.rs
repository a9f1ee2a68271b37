//! What CRIU leaves in a process when it is killed in mid-dump: finding that, and having it given back.
//!
//! CRIU lets every thread stop for it, then thaws their cgroup, and maps a memory file of its own into each process, with
//! code and a stack. The first thread runs in there until CRIU sends it back, and any other one for a single piece of work at
//! a time, after which CRIU gives it its registers again. The kernel lets go of all of them when CRIU is killed, and they
//! run on. The first thread's code sees the end of its connection, closes its socket and its log, and goes back by
//! rt_sigreturn(2), registers, signal mask and all; it needs nobody for that. What stays is the mapping, because of which CRIU
//! refuses the process from then on, and between two steps of CRIU's the descriptor of the memory file. Source:
//! `compel/plugins/std/infect.c` and `compel/src/lib/infect.c` of CRIU.
//!
//! Two moments can't be mended, both shorter than a millisecond for each process: while another than the first thread works for
//! CRIU, its code ends in a breakpoint, which ends the process when nobody traces it; and while CRIU's first system call is
//! written over the process' own code.

use crate::memory::{AttachError, Injector, Range, parse_mappings};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The kernel's name for a mapping or a descriptor of CRIU's memory file; what follows is that it is deleted.
const MEMORY_FILE: &str = "/memfd:CRIUMFD";

/// How long the first thread may take to come back from CRIU's code.
const BACK_WITHIN: Duration = Duration::from_secs(5);
/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(5);

/// What CRIU has left in one process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Left {
    ranges: Vec<Range>,
    descriptors: Vec<u64>,
}

/// Has `injector` make process `pid` give back what a CRIU that was killed has left in it. Returns whether there was anything. The process
/// must run: it can't be stopped for that where it is frozen. Blocking, five seconds at most. No CRIU may be at work in it.
///
/// # Errors
/// It still has something of it then, and runs on. A process that has ended is no error.
pub fn remove(pid: i32, injector: &Injector) -> Result<bool, AttachError> {
    let begun = Instant::now();
    loop {
        let left = match find(pid) {
            Ok(left) if left == Left::default() => return Ok(false),
            Ok(left) => left,
            Err(AttachError::Gone { .. }) => return Ok(false),
            Err(error) => return Err(error),
        };
        match injector.give_back(pid, left.ranges, left.descriptors) {
            Ok(()) => return Ok(true),
            Err(AttachError::Gone { .. }) => return Ok(false),
            // It may be in the hands of one that traces for an agent that was killed.
            Err(AttachError::AtWork { .. } | AttachError::Traced { .. }) if begun.elapsed() < BACK_WITHIN => {
                std::thread::sleep(LOOK)
            }
            Err(error) => return Err(error),
        }
    }
}

fn find(pid: i32) -> Result<Left, AttachError> {
    let path = PathBuf::from(format!("/proc/{pid}/maps"));
    let maps = std::fs::read(&path).map_err(|source| unread(pid, &path, source))?;
    let maps = String::from_utf8_lossy(&maps).into_owned();
    let ranges = ranges(&maps).map_err(|line| AttachError::Unexpected { path, content: line.to_owned() })?;
    let path = PathBuf::from(format!("/proc/{pid}/fd"));
    let mut descriptors = Vec::new();
    for entry in path.read_dir().map_err(|source| unread(pid, &path, source))? {
        let entry = entry.map_err(|source| unread(pid, &path, source))?;
        // One that is closed meanwhile is none of CRIU's, which closes nothing any more.
        let Ok(target) = std::fs::read_link(entry.path()) else { continue };
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        descriptors.extend(number.filter(|_: &u64| target.to_str().is_some_and(is_criu)));
    }
    Ok(Left { ranges, descriptors })
}

/// The mappings of CRIU's memory file in the text of a maps file.
fn ranges(maps: &str) -> Result<Vec<Range>, &str> {
    let vmas = parse_mappings(maps)?;
    Ok(vmas.into_iter().filter(|vma| vma.shared && is_criu(&vma.name)).map(|vma| vma.range).collect())
}

fn is_criu(name: &str) -> bool {
    name.strip_prefix(MEMORY_FILE).is_some_and(|rest| matches!(rest, "" | " (deleted)"))
}

fn unread(pid: i32, path: &Path, source: std::io::Error) -> AttachError {
    match source.kind() {
        ErrorKind::NotFound => AttachError::Gone { pid },
        _ if source.raw_os_error() == Some(libc::ESRCH) => AttachError::Gone { pid },
        _ => AttachError::Read { path: path.to_owned(), source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
7f0000000000-7f0000021000 rwxs 00000000 00:01 1041                       /memfd:CRIUMFD (deleted)
7f0000200000-7f0000400000 rw-p 00000000 00:00 0 
7f0000400000-7f0000500000 rw-s 00000000 00:01 1042                       /memfd:CRIUMFD-of-mine (deleted)
7f0000500000-7f0000600000 rw-p 00000000 fd:01 1043                       /memfd:CRIUMFD
";

    #[test]
    fn only_the_memory_file_of_criu_is_found() {
        assert_eq!(ranges(MAPS), Ok(vec![Range { start: 0x7f00_0000_0000, end: 0x7f00_0002_1000 }]));
    }

    #[test]
    fn nothing_is_left_in_a_process_that_has_ended() {
        assert!(!remove(i32::MAX, &Injector::Here).unwrap());
    }

    #[cfg(target_arch = "x86_64")]
    mod in_a_process {
        use super::*;
        use crate::memory::tests::child::{Child, PAGE};

        /// As CRIU does it: a memory file, mapped for everything. Its descriptor, and where it is.
        fn infect(child: &mut Child, name: u64) -> (u64, Range) {
            let descriptor = child.good(libc::SYS_memfd_create, &[name, 0]);
            let length = 33 * PAGE;
            child.good(libc::SYS_ftruncate, &[descriptor, length]);
            let all = (libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC) as u64;
            let start = child.good(libc::SYS_mmap, &[0, length, all, libc::MAP_SHARED as u64, descriptor, 0]);
            (descriptor, Range { start, end: start + length })
        }

        #[test]
        fn a_process_gives_back_what_criu_has_left_in_it_and_is_as_before() {
            let mut child = Child::new();
            let (own, criu) = (child.bytes(b"mine\0"), child.bytes(b"CRIUMFD\0"));
            infect(&mut child, own);
            child.wait_idle();
            let before = (child.descriptors(), child.status("SigBlk"), child.syscall());
            let (mapped, _) = infect(&mut child, criu);
            child.good(libc::SYS_close, &[mapped]);
            infect(&mut child, criu);
            child.wait_idle();
            assert_eq!(find(child.pid).unwrap().ranges.len(), 2);

            assert!(remove(child.pid, &Injector::Here).unwrap());
            assert_eq!(find(child.pid).unwrap(), Left::default());
            child.wait_idle();
            assert_eq!((child.descriptors(), child.status("SigBlk"), child.syscall()), before);
            assert!(child.good(libc::SYS_getpid, &[]) > 0);
            assert!(!remove(child.pid, &Injector::Here).unwrap());
        }

        #[test]
        fn a_process_is_not_taken_from_under_its_first_thread() {
            let mut child = Child::new();
            let criu = child.bytes(b"CRIUMFD\0");
            let (descriptor, range) = infect(&mut child, criu);
            child.wait_idle();
            // The last two words are the stack and the next instruction. Source: proc_pid_syscall(5).
            let words: Vec<u64> = child
                .syscall()
                .split_ascii_whitespace()
                .filter_map(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok())
                .collect();
            for address in &words[words.len() - 2..] {
                let start = address & !(PAGE - 1);
                let around = Range { start, end: start + PAGE };
                let refused = Injector::Here.give_back(child.pid, vec![range, around], vec![descriptor]);
                assert!(matches!(refused, Err(AttachError::AtWork { .. })), "{refused:?}");
            }
            assert_eq!(find(child.pid).unwrap(), Left { ranges: vec![range], descriptors: vec![descriptor] });
            assert!(child.good(libc::SYS_getpid, &[]) > 0);
        }
    }
}
