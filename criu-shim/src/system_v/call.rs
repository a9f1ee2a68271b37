//! What `/proc` does not tell or do: the one module of the objects with `unsafe` in it.

use super::list::{Kind, Object};
use crate::memory::shared::device;
use crate::memory::vma;
use std::collections::BTreeSet;
use std::io;

/// Removes an object. One that is gone already is no error; a segment goes with its last mapping.
///
/// # Errors
/// As shmctl(2), semctl(2) and msgctl(2).
pub fn remove(kind: Kind, id: i32) -> io::Result<()> {
    // SAFETY: this command takes numbers; no memory is touched.
    let result = unsafe {
        match kind {
            Kind::Segment => libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()),
            Kind::Semaphores => libc::semctl(id, 0, libc::IPC_RMID),
            Kind::Queue => libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()),
        }
    };
    match checked(result.into()) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIDRM)) => Ok(()),
        result => result.map(drop),
    }
}

/// How many bytes of messages may wait in a queue; none if it is gone.
///
/// # Errors
/// As msgctl(2).
pub fn queue_limit(id: i32) -> io::Result<Option<u64>> {
    let mut queue = std::mem::MaybeUninit::<libc::msqid_ds>::uninit();
    // SAFETY: the kernel writes one such structure, which is read only where it has.
    match checked(unsafe { libc::msgctl(id, libc::IPC_STAT, queue.as_mut_ptr()) }.into()) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIDRM)) => Ok(None),
        // SAFETY: the kernel has written it.
        result => result.map(|_| Some(unsafe { queue.assume_init() }.msg_qbytes)),
    }
}

/// The segments among `objects` that are made of huge pages. Nothing but a mapping shows that, so each is mapped for a moment where
/// the machine has huge pages at all.
///
/// # Errors
/// As shmat(2), and as reading `/proc`.
pub fn huge_segments(objects: &[Object]) -> io::Result<Vec<i32>> {
    let machine = std::fs::read_to_string("/proc/meminfo")?;
    if huge_kib(&machine) == 0 {
        return Ok(Vec::new());
    }
    mapped_elsewhere(objects)
}

/// The segments that are not on the kernel's own mount of shmem.
fn mapped_elsewhere(objects: &[Object]) -> io::Result<Vec<i32>> {
    let device = device()?;
    let mut attached = Vec::new();
    for object in objects.iter().filter(|object| object.kind == Kind::Segment) {
        match Attached::new(object.id) {
            // Gone since.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIDRM)) => {}
            result => attached.push((object.id, result?)),
        }
    }
    let maps = std::fs::read_to_string("/proc/thread-self/maps")?;
    let vmas = vma::parse(&maps).map_err(io::Error::other)?;
    let plain: BTreeSet<u64> = vmas.iter().filter(|vma| vma.device == device).map(|vma| vma.range.start).collect();
    Ok(attached.into_iter().filter(|(_, memory)| !plain.contains(&memory.start())).map(|(id, _)| id).collect())
}

/// What all huge pages of the machine take, KiB, by `/proc/meminfo`. A kernel without any has no such line.
fn huge_kib(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("Hugetlb:"));
    line.and_then(|line| line.trim_end_matches("kB").trim().parse().ok()).unwrap_or(0)
}

/// A segment that is mapped here, read-only, until this is dropped.
struct Attached(*mut libc::c_void);

impl Attached {
    fn new(id: i32) -> io::Result<Self> {
        // SAFETY: a new mapping at an address that the kernel chooses. Nothing of it is read or written.
        let memory = unsafe { libc::shmat(id, std::ptr::null(), libc::SHM_RDONLY) };
        checked(memory as libc::c_long).map(|_| Self(memory))
    }

    fn start(&self) -> u64 {
        self.0 as u64
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // SAFETY: a mapping of this object's own, to which nothing points. It fails only for an address that is none.
        unsafe { libc::shmdt(self.0) };
    }
}

fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{in_new_namespace, queue, segment, semaphores};
    use super::super::list;
    use super::*;

    #[test]
    fn every_kind_is_removed_and_what_is_gone_is_no_error() {
        in_new_namespace(|| {
            let made = [segment(4096), semaphores(&[1]), queue(&[])];
            let listed = list().unwrap();
            assert_eq!(listed.iter().map(|object| object.id).collect::<Vec<_>>(), made);
            for object in listed.iter().chain(&listed) {
                remove(object.kind, object.id).unwrap();
            }
            assert_eq!(list().unwrap(), []);
        });
    }

    #[test]
    fn a_segment_that_is_removed_while_it_is_mapped_stays_and_says_so() {
        in_new_namespace(|| {
            let id = segment(4096);
            let memory = Attached::new(id).unwrap();
            remove(Kind::Segment, id).unwrap();
            assert!(matches!(list().unwrap()[..], [object] if object.is_removed()));
            drop(memory);
            assert_eq!(list().unwrap(), []);
        });
    }

    #[test]
    fn the_limit_of_a_queue_is_read_until_it_is_gone() {
        in_new_namespace(|| {
            let id = queue(&[]);
            let usual = std::fs::read_to_string("/proc/sys/kernel/msgmnb").unwrap();
            assert_eq!(queue_limit(id).unwrap(), usual.trim().parse().ok());
            remove(Kind::Queue, id).unwrap();
            assert_eq!(queue_limit(id).unwrap(), None);
        });
    }

    #[test]
    fn an_ordinary_segment_is_not_of_huge_pages_and_is_mapped_no_longer_than_it_takes_to_look() {
        in_new_namespace(|| {
            segment(5 << 20);
            assert!(mapped_elsewhere(&list().unwrap()).unwrap().is_empty());
            let attached = std::fs::read_to_string("/proc/sysvipc/shm").unwrap();
            assert_eq!(attached.lines().nth(1).and_then(|line| line.split_ascii_whitespace().nth(6)), Some("0"));
        });
    }

    #[test]
    fn the_machines_huge_pages_are_found() {
        assert_eq!(huge_kib("HugePages_Total:       2\nHugetlb:            4096 kB\n"), 4096);
        assert_eq!(huge_kib("MemTotal: 5 kB\n"), 0);
    }
}
