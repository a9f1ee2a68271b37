//! Files that change without a timestamp.

use super::*;
use crate::agent::files::beneath::Beneath;
use crate::agent::files::changes::Holding;
use crate::agent::files::listing::{Stamp, TreePath};
use crate::agent::files::walk::walk;
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};
use std::fs::{File, OpenOptions};

/// A shared, writable mapping of a file's beginning.
pub(super) struct Map {
    address: *mut std::ffi::c_void,
    length: usize,
}

impl Map {
    pub(super) fn shared(file: &File, length: usize) -> Self {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let address =
            unsafe { mmap(std::ptr::null_mut(), length, protection, MapFlags::SHARED, file, 0) }.expect("map");
        Self { address, length }
    }

    pub(super) fn write(&self, at: usize, byte: u8) {
        assert!(at < self.length);
        // SAFETY: within the mapping, which is writable.
        unsafe { self.address.cast::<u8>().add(at).write_volatile(byte) };
    }

    pub(super) fn read(&self, at: usize) -> u8 {
        assert!(at < self.length);
        // SAFETY: within the mapping, which is readable.
        unsafe { self.address.cast::<u8>().add(at).read_volatile() }
    }

    fn write_back(&self) {
        // SAFETY: the mapping is this test's own.
        unsafe { msync(self.address, self.length, MsyncFlags::SYNC) }.expect("write back");
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the mapping is this test's own, and nothing points into it any more.
        unsafe { munmap(self.address, self.length) }.expect("unmap");
    }
}

fn own() -> Held {
    Held::by(&[std::process::id().cast_signed()])
}

fn holding(root: &Path, name: &str) -> Holding {
    let tree = walk(&mut Beneath::open(root).expect("open"), 1, None).expect("walk");
    let id = tree.find(&TreePath::parse(name.into()).expect("a path")).expect("there") as usize;
    own().nodes(&tree, false)[id]
}

#[test]
fn who_can_write_is_known() {
    for from in on_disk_and_in_memory() {
        let path = from.path().join("file");
        std::fs::write(&path, [0; 4096]).expect("file");
        assert_eq!(holding(from.path(), "file"), Holding::Nobody);
        let reader = File::open(&path).expect("open");
        assert_eq!(holding(from.path(), "file"), Holding::Nobody);
        let writer = OpenOptions::new().read(true).write(true).open(&path).expect("open");
        assert_eq!(holding(from.path(), "file"), Holding::Writer);
        let map = Map::shared(&writer, 4096);
        drop((reader, writer));
        assert_eq!(holding(from.path(), "file"), Holding::Mapping);
        drop(map);
        assert_eq!(holding(from.path(), "file"), Holding::Nobody);
    }
}

#[test]
fn what_is_written_through_a_mapping_crosses_though_no_timestamp_says_so() {
    for from in on_disk_and_in_memory() {
        let to = tempfile::tempdir().expect("dir");
        let path = from.path().join("file");
        std::fs::write(&path, [0; 8192]).expect("file");
        let file = OpenOptions::new().read(true).write(true).open(&path).expect("open");
        let map = Map::shared(&file, 8192);
        map.write(0, 1);
        grow_old(&path);
        let rounds = Rounds::new(from.path(), to.path(), TreeKind::Volume);
        rounds.round(&own(), false);
        let before = path.metadata().expect("metadata");
        map.write(0, 2);
        let after = path.metadata().expect("metadata");
        assert_eq!(
            (before.ctime(), before.ctime_nsec()),
            (after.ctime(), after.ctime_nsec()),
            "else this shows nothing"
        );
        drop((map, file));
        rounds.last();
        assert_equal(from.path(), to.path());
    }
}

#[test]
fn a_mapping_that_comes_and_goes_between_two_rounds_is_noticed() {
    for from in on_disk_and_in_memory() {
        let to = tempfile::tempdir().expect("dir");
        let path = from.path().join("file");
        std::fs::write(&path, [0; 8192]).expect("file");
        let file = OpenOptions::new().read(true).write(true).open(&path).expect("open");
        Map::shared(&file, 8192).write_back();
        let rounds = Rounds::new(from.path(), to.path(), TreeKind::Volume);
        grow_old(&path);
        rounds.round(&Held::default(), false);
        let map = Map::shared(&file, 8192);
        // Read first: on a tmpfs the write after it faults no more.
        assert_eq!(map.read(5), 0);
        map.write(5, 5);
        drop((map, file));
        rounds.last();
        assert_equal(from.path(), to.path());
    }
}

/// In `/dev/shm`, where no timestamp tells of a mapping.
fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").expect("a directory")
}

fn noted_round(rounds: &Rounds) -> usize {
    rounds.tree.lock().expect("the tree").note_events(false);
    rounds.round(&Held::default(), false)
}

#[test]
fn on_a_tmpfs_only_what_was_opened_is_read_again_where_nobody_holds_anything() {
    if !is_root() {
        return;
    }
    let (from, to) = (in_memory(), tempfile::tempdir().expect("dir"));
    for name in ["one", "other"] {
        std::fs::write(from.path().join(name), [7; 8192]).expect("file");
        grow_old(&from.path().join(name));
    }
    let rounds = Rounds::new(from.path(), to.path(), TreeKind::Volume);
    noted_round(&rounds);
    assert_eq!(noted_round(&rounds), 0, "nobody has opened anything");
    let reader = std::process::Command::new("cat").arg(from.path().join("one")).output().expect("cat");
    assert!(reader.status.success());
    let one = noted_round(&rounds);
    assert!(one > 0, "it may have been mapped");
    assert_eq!(noted_round(&rounds), one, "whoever opened it may have been overlooked among those who hold it");
    assert_eq!(noted_round(&rounds), 0);
    assert!(rounds.round(&Held::default(), false) > one, "where it was not asked, all may have been");
    assert_equal(from.path(), to.path());
}

/// Where the process that [`whoever_maps_a_file`] is finds what it maps.
const TO_MAP: &str = "TIDEOVER_TEST_TO_MAP";

/// Does nothing, unless it is a process of its own that another test has begun.
#[test]
fn whoever_maps_a_file() {
    let Some(path) = std::env::var_os(TO_MAP) else { return };
    let file = OpenOptions::new().read(true).write(true).open(path).expect("open");
    let map = Map::shared(&file, 8192);
    assert_eq!(map.read(5), 0);
    map.write(5, 5);
}

#[test]
fn another_process_that_maps_and_goes_between_two_looks_at_a_tmpfs_is_noticed() {
    if !is_root() {
        return;
    }
    let (from, to) = (in_memory(), tempfile::tempdir().expect("dir"));
    let path = from.path().join("file");
    std::fs::write(&path, [0; 8192]).expect("file");
    grow_old(&path);
    let rounds = Rounds::new(from.path(), to.path(), TreeKind::Volume);
    noted_round(&rounds);
    let before = path.metadata().expect("metadata");
    let test = std::env::current_exe().expect("this program");
    let name = concat!(module_path!(), "::whoever_maps_a_file").split_once("::").expect("a crate").1;
    let other = std::process::Command::new(test).args([name, "--exact"]).env(TO_MAP, &path).output().expect("run");
    assert!(other.status.success(), "{other:?}");
    let after = path.metadata().expect("metadata");
    assert_eq!((before.ctime(), before.ctime_nsec()), (after.ctime(), after.ctime_nsec()), "else this shows nothing");
    noted_round(&rounds);
    assert_equal(from.path(), to.path());
}

#[test]
fn a_file_on_a_tmpfs_that_somebody_could_map_at_a_look_is_read_at_the_next() {
    if !is_root() {
        return;
    }
    let (from, to) = (in_memory(), tempfile::tempdir().expect("dir"));
    let path = from.path().join("file");
    std::fs::write(&path, [0; 8192]).expect("file");
    grow_old(&path);
    let writer = OpenOptions::new().read(true).write(true).open(&path).expect("open");
    let rounds = Rounds::new(from.path(), to.path(), TreeKind::Volume);
    rounds.tree.lock().expect("the tree").note_events(false);
    // So long after the last write that none is under way any more.
    let later = Stamp { seconds: now().seconds + 3600, nanos: 0 };
    let packing = Tree::look(&rounds.tree, &own(), later, false).expect("look").expect("all of it");
    unpack(&rounds.to, rounds.kind, packing, LIMIT).expect("unpack");
    let map = Map::shared(&writer, 8192);
    assert_eq!(map.read(5), 0, "the write after it faults no more");
    map.write(5, 5);
    drop((map, writer));
    noted_round(&rounds);
    assert_equal(from.path(), to.path());
}
