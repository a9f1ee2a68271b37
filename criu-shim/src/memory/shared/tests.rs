use super::*;
use crate::memory::Range;
use crate::memory::sent::PAGE;
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};

const MIB: u64 = 1 << 20;

fn memfd(length: u64) -> File {
    let file = File::from(memfd_create("shared-test", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(length).unwrap();
    file
}

fn pages(start: u64, end: u64) -> Range {
    Range { start: start * PAGE, end: end * PAGE }
}

/// Takes what has changed; returns which that was.
fn round(object: &mut SharedObject) -> Vec<Range> {
    let changed = object.changed(2).unwrap();
    for range in &changed {
        object.take(range.start, &mut vec![0; range.len() as usize]).unwrap();
    }
    changed
}

#[test]
fn what_is_written_in_any_way_is_found() {
    let file = memfd(8 * MIB);
    let mut object = SharedObject::new(file.try_clone().unwrap()).unwrap();
    file.write_all_at(&[1; 3 * PAGE as usize], 600 * PAGE).unwrap();
    assert_eq!(round(&mut object), [pages(600, 603)]);
    assert_eq!(round(&mut object), []);
    // By a process that has ended by the time that anybody looks.
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let written = std::process::Command::new("dd")
        .args(["if=/dev/urandom", "bs=4096", "count=1", "seek=601", "conv=notrunc", "status=none"])
        .arg(format!("of={path}"))
        .status();
    assert!(written.unwrap().success());
    file.write_all_at(b"x", 5).unwrap();
    assert_eq!(round(&mut object), [pages(0, 1), pages(601, 602)]);
    fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 602 * PAGE, PAGE).unwrap();
    assert_eq!(round(&mut object), [pages(602, 603)]);
    assert_eq!(round(&mut object), []);
    assert_eq!(object.order(), [pages(600, 603), pages(0, 1)]);
}

#[test]
fn looking_makes_no_page() {
    let file = memfd(64 * MIB);
    file.write_all_at(b"x", 40 * MIB).unwrap();
    let mut object = SharedObject::new(file.try_clone().unwrap()).unwrap();
    assert_eq!(round(&mut object).len(), 1);
    assert_eq!(file.metadata().unwrap().blocks() * 512, PAGE);
}

#[test]
fn an_object_that_has_become_shorter_shows_zeros_where_it_was() {
    let file = memfd(2 * MIB);
    file.write_all_at(&[1; PAGE as usize], 300 * PAGE).unwrap();
    let mut object = SharedObject::new(file.try_clone().unwrap()).unwrap();
    round(&mut object);
    file.set_len(MIB).unwrap();
    assert_eq!(object.size().unwrap(), MIB);
    assert!(object.order().iter().any(|range| range.end > MIB), "which is why it is dumped as ever");
    file.set_len(2 * MIB).unwrap();
    assert_eq!(round(&mut object), [pages(300, 301)]);
}

#[test]
fn what_a_process_has_mapped_or_open_is_found_once() {
    let device = device().unwrap();
    let (held, small) = (memfd(2 * MIB), memfd(MIB - 1));
    let own = [std::process::id() as i32];
    let found = find(&own, device, &BTreeSet::new());
    let inode = |file: &File| u32::try_from(file.metadata().unwrap().ino()).unwrap();
    assert!(found.inodes.contains(&inode(&held)) && !found.inodes.contains(&inode(&small)));
    let opened = found.new[&inode(&held)].metadata().unwrap();
    assert_eq!((opened.dev(), opened.ino()), (device, inode(&held).into()));

    let again = find(&own, device, &BTreeSet::from([inode(&held)]));
    assert!(again.inodes.contains(&inode(&held)) && !again.new.contains_key(&inode(&held)));
    assert!(find(&[i32::MAX], device, &BTreeSet::new()).inodes.is_empty());
}

#[test]
fn anonymous_shared_memory_is_found_by_its_mapping_and_read_through_it() {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
    const LENGTH: usize = 2 << 20;
    // SAFETY: a new mapping of this test's own, written within its bounds.
    let memory = unsafe {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let memory = mmap_anonymous(std::ptr::null_mut(), LENGTH, protection, MapFlags::SHARED).unwrap();
        memory.cast::<u8>().add(9 * PAGE as usize).write(7);
        memory
    };
    let own = [std::process::id() as i32];
    let found = find(&own, device().unwrap(), &BTreeSet::new());
    let mut objects = found.new.into_values().map(|file| SharedObject::new(file).unwrap());
    let whole = objects.find_map(|object| (object.changed(1).unwrap() == [pages(9, 10)]).then_some(object));
    let mut object = whole.expect("the mapping");
    round(&mut object);
    // SAFETY: the same mapping.
    unsafe { memory.cast::<u8>().add(LENGTH - 1).write(7) };
    assert_eq!(round(&mut object), [pages(511, 512)]);
    // SAFETY: the same mapping, of which nothing is used any more.
    unsafe { munmap(memory, LENGTH).unwrap() };
}
