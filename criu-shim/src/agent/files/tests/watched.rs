//! Looks in the freeze at nothing but what has happened.

use super::held::Map;
use super::*;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};

/// A tree of some directories with some files, which the target has, on a disk and in memory.
fn sent(test: impl Fn(&Path, &Rounds)) {
    if !is_root() {
        return;
    }
    for from in on_disk_and_in_memory() {
        let to = tempfile::tempdir().expect("dir");
        for directory in ["a", "b", "b/c"] {
            std::fs::create_dir(from.path().join(directory)).expect("dir");
            for file in ["one", "two"] {
                std::fs::write(from.path().join(directory).join(file), format!("{directory}{file}")).expect("file");
            }
        }
        let rounds = Rounds::watched(from.path(), to.path(), TreeKind::Volume);
        rounds.round(&own(), false);
        for file in ["a/one", "a/two", "b/one", "b/two", "b/c/one", "b/c/two"] {
            grow_old(&from.path().join(file));
        }
        rounds.round(&own(), false);
        // What was opened before the last look counts once more.
        rounds.round(&own(), false);
        test(from.path(), &rounds);
        assert_equal(from.path(), &rounds.to);
    }
}

fn own() -> Held {
    Held::by(&[std::process::id().cast_signed()])
}

fn append(path: &Path) {
    OpenOptions::new().append(true).open(path).and_then(|mut file| file.write_all(b"more")).expect("append");
}

#[test]
fn where_nothing_was_reported_nothing_is_looked_at() {
    if !is_root() {
        return;
    }
    for from in on_disk_and_in_memory() {
        let to = tempfile::tempdir().expect("dir");
        std::fs::create_dir(from.path().join("d")).expect("dir");
        std::fs::write(from.path().join("d/file"), b"1").expect("file");
        grow_old(&from.path().join("d/file"));
        // What this process does is passed over, unlike in all other tests here.
        let rounds = Rounds { is_watched: true, ..Rounds::new(from.path(), to.path(), TreeKind::Volume) };
        rounds.round(&Held::default(), false);
        grow_old(&from.path().join("d"));
        rounds.round(&Held::default(), false);
        append(&from.path().join("d/file"));
        assert_eq!(rounds.last(), 0, "the tree was listed");
    }
}

#[test]
fn what_was_written_crosses_and_nothing_else() {
    sent(|from, rounds| {
        append(&from.join("b/c/one"));
        std::fs::write(from.join("b/new"), b"new").expect("file");
        std::fs::remove_file(from.join("a/two")).expect("remove");
        assert!(rounds.last() < 2048);
    });
}

#[test]
fn a_write_by_an_old_descriptor_is_seen() {
    if !is_root() {
        return;
    }
    for from in on_disk_and_in_memory() {
        let to = tempfile::tempdir().expect("dir");
        let path = from.path().join("file");
        std::fs::write(&path, [1; 8192]).expect("file");
        let mut file = OpenOptions::new().read(true).write(true).open(&path).expect("open");
        let rounds = Rounds::watched(from.path(), to.path(), TreeKind::Volume);
        for _ in 0..3 {
            grow_old(&path);
            rounds.round(&own(), false);
        }
        file.seek(SeekFrom::Start(4096)).expect("seek");
        file.write_all(b"changed").expect("write");
        rounds.last();
        assert_equal(from.path(), to.path());
    }
}

#[test]
fn a_write_through_a_mapping_that_was_there_is_seen_though_nothing_is_reported() {
    if !is_root() {
        return;
    }
    for from in on_disk_and_in_memory() {
        let to = tempfile::tempdir().expect("dir");
        let path = from.path().join("file");
        std::fs::write(&path, [0; 8192]).expect("file");
        let file = OpenOptions::new().read(true).write(true).open(&path).expect("open");
        let map = Map::shared(&file, 8192);
        map.write(0, 1);
        drop(file);
        let rounds = Rounds::watched(from.path(), to.path(), TreeKind::Volume);
        for _ in 0..3 {
            grow_old(&path);
            rounds.round(&own(), false);
        }
        map.write(0, 2);
        rounds.last();
        drop(map);
        assert_equal(from.path(), to.path());
    }
}

#[test]
fn a_mapping_of_a_file_that_was_opened_since_is_seen_though_its_writes_are_not_reported() {
    sent(|from, rounds| {
        let path = from.join("a/one");
        let file = OpenOptions::new().read(true).write(true).open(&path).expect("open");
        let map = Map::shared(&file, 4);
        assert_eq!(map.read(0), b'a');
        map.write(0, b'A');
        drop((map, file));
        rounds.last();
    });
}

#[test]
fn a_renamed_directory_takes_along_what_nobody_touched_in_it() {
    sent(|from, rounds| {
        std::fs::rename(from.join("b"), from.join("a/b")).expect("rename");
        append(&from.join("a/b/c/one"));
        rounds.last();
    });
}

#[test]
fn a_directory_in_place_of_another_brings_what_is_in_it_and_loses_what_was() {
    sent(|from, rounds| {
        std::fs::remove_dir_all(from.join("b")).expect("remove");
        std::fs::create_dir_all(from.join("b/d")).expect("dir");
        std::fs::write(from.join("b/d/one"), b"1").expect("file");
        rounds.last();
    });
}

#[test]
fn directories_that_change_places_are_sent_with_all_that_is_in_them() {
    sent(|from, rounds| {
        std::fs::rename(from.join("a"), from.join("x")).expect("rename");
        std::fs::rename(from.join("b"), from.join("a")).expect("rename");
        std::fs::rename(from.join("x"), from.join("b")).expect("rename");
        rounds.last();
    });
}

#[test]
fn a_write_by_another_name_is_seen_though_that_name_has_come_and_gone() {
    sent(|from, rounds| {
        std::fs::hard_link(from.join("a/one"), from.join("b/c/again")).expect("link");
        append(&from.join("b/c/again"));
        std::fs::remove_file(from.join("b/c/again")).expect("remove");
        rounds.last();
    });
}

#[test]
fn a_write_by_another_name_is_seen_though_its_directory_has_come_and_gone() {
    sent(|from, rounds| {
        std::fs::create_dir(from.join("new")).expect("dir");
        std::fs::hard_link(from.join("a/one"), from.join("new/again")).expect("link");
        append(&from.join("new/again"));
        std::fs::remove_dir_all(from.join("new")).expect("remove");
        rounds.last();
    });
}

#[test]
fn a_write_by_another_name_is_seen_though_that_name_is_anothers_before_and_after() {
    sent(|from, rounds| {
        std::fs::rename(from.join("b/one"), from.join("b/kept")).expect("rename");
        std::fs::hard_link(from.join("a/one"), from.join("b/one")).expect("link");
        append(&from.join("b/one"));
        std::fs::remove_file(from.join("b/one")).expect("remove");
        std::fs::rename(from.join("b/kept"), from.join("b/one")).expect("rename");
        rounds.last();
    });
}

#[test]
fn a_file_with_a_name_outside_of_the_tree_is_looked_at_each_time() {
    if !is_root() {
        return;
    }
    for from in on_disk_and_in_memory() {
        let to = tempfile::tempdir().expect("dir");
        let (tree, outside) = (from.path().join("tree"), from.path().join("outside"));
        std::fs::create_dir(&tree).expect("dir");
        std::fs::write(tree.join("file"), b"1").expect("file");
        std::fs::hard_link(tree.join("file"), &outside).expect("link");
        let rounds = Rounds::watched(&tree, to.path(), TreeKind::Volume);
        for _ in 0..3 {
            grow_old(&outside);
            rounds.round(&own(), false);
        }
        append(&outside);
        rounds.last();
        assert_eq!(std::fs::read(to.path().join("file")).expect("read"), b"1more");
    }
}

#[test]
fn names_of_one_file_stay_names_of_one_file() {
    sent(|from, rounds| {
        std::fs::hard_link(from.join("a/one"), from.join("b/c/again")).expect("link");
        std::fs::rename(from.join("a/two"), from.join("a/three")).expect("rename");
        std::fs::hard_link(from.join("a/three"), from.join("a/two")).expect("link");
        rounds.last();
    });
}

#[test]
fn attributes_alone_cross_too() {
    sent(|from, rounds| {
        use std::os::unix::fs::{PermissionsExt, chown};
        std::fs::set_permissions(from.join("a/one"), std::fs::Permissions::from_mode(0o4711)).expect("mode");
        chown(from.join("b/c"), Some(7), Some(8)).expect("owner");
        xattr::set(from.join("b/one"), "user.note", b"1").expect("xattr");
        File::open(from.join("b")).and_then(|file| file.set_modified(std::time::UNIX_EPOCH)).expect("time");
        rounds.last();
    });
}

#[test]
fn more_than_the_kernel_keeps_is_found_by_listing_all() {
    let most: usize = std::fs::read_to_string("/proc/sys/fs/fanotify/max_queued_events")
        .map_or(16384, |text| text.trim().parse().expect("a number"));
    if most > 100_000 {
        return;
    }
    sent(|from, rounds| {
        for number in 0..=most / 2 {
            let path = from.join("a").join(number.to_string());
            std::fs::write(&path, b"1").expect("file");
            std::fs::remove_file(&path).expect("remove");
        }
        append(&from.join("b/c/one"));
        rounds.last();
    });
}

#[test]
fn what_a_mount_that_came_since_hides_stays_as_it_was_sent() {
    if !is_root() {
        return;
    }
    let ran = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: it is for this thread alone, which then has a root and working directory of its own; no file descriptors
            // are unshared.
            unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }.expect("a mount namespace");
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).expect("private");
            for from in on_disk_and_in_memory() {
                let (to, at) = (tempfile::tempdir().expect("dir"), |name: &str| from.path().join(name));
                std::fs::create_dir(at("d")).expect("dir");
                for file in ["d/hidden", "file"] {
                    std::fs::write(at(file), b"1").expect("file");
                }
                // This process is passed over: it has looked into the directory.
                let rounds = Rounds { is_watched: true, ..Rounds::new(from.path(), to.path(), TreeKind::Volume) };
                for _ in 0..2 {
                    grow_old(&at("d"));
                    rounds.round(&Held::default(), false);
                }
                mount("tmpfs", at("d"), "tmpfs", MountFlags::empty(), None).expect("a tmpfs");
                let changed = std::process::Command::new("touch").arg(at("file")).status().expect("touch");
                assert!(changed.success() && rounds.last() > 0);
                unmount(at("d"), UnmountFlags::empty()).expect("unmount");
                assert_equal(from.path(), to.path());
            }
        });
        thread.join()
    });
    ran.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
