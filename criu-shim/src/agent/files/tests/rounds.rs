//! What crosses in which round.

use super::*;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use std::ffi::OsStr;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::time::{Duration, SystemTime};

const BLOCK: usize = crate::agent::files::listing::BLOCK;

/// Sends until nothing is in doubt any more: files that have just changed are compared again.
fn settle(rounds: &Rounds) {
    for _ in 0..1000 {
        if rounds.round(&Held::default(), false) == 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    panic!("a tree that nobody changes is sent for ever");
}

#[test]
fn everything_about_a_volume_comes_back() {
    if !is_root() {
        return;
    }
    for from in on_disk_and_in_memory() {
        let to = tempfile::tempdir().expect("dir");
        let at = |name: &str| from.path().join(name);
        std::fs::create_dir_all(at("a/b")).expect("dir");
        std::fs::write(at("a/b/file"), b"content").expect("file");
        chown(at("a/b/file"), Some(3_000_000_000), Some(999)).expect("owner");
        std::fs::set_permissions(at("a/b/file"), Permissions::from_mode(0o4751)).expect("mode");
        xattr::set(at("a/b/file"), "user.note", b"\0binary\n=").expect("xattr");
        // A capability, as setcap writes it: version 2, cap_net_bind_service.
        let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        xattr::set(at("a/b/file"), "security.capability", &capability).expect("xattr");
        xattr::set(at("a"), "trusted.overlay.opaque", b"y").expect("xattr");
        std::fs::hard_link(at("a/b/file"), at("a/again")).expect("link");
        symlink("/nowhere/at/all", at("a/link")).expect("symlink");
        xattr::set(at("a/link"), "trusted.of-the-link", b"1").expect("xattr");
        std::os::unix::fs::lchown(at("a/link"), Some(7), Some(8)).expect("owner");
        std::fs::write(at("empty"), b"").expect("file");
        let long: PathBuf = (0..12).map(|_| "x".repeat(60)).collect();
        std::fs::create_dir_all(at("deep").join(&long)).expect("dir");
        std::fs::write(at("deep").join(&long).join(OsStr::from_bytes(b"\xff \n")), b"1").expect("file");
        mknodat(CWD, at("fifo"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).expect("fifo");
        let sparse = File::create(at("sparse")).expect("file");
        sparse.set_len(300 << 30).expect("length");
        drop(sparse);
        let old = SystemTime::UNIX_EPOCH - Duration::from_millis(1_500);
        File::open(at("empty")).and_then(|file| file.set_modified(old)).expect("time");
        let _listener = std::os::unix::net::UnixListener::bind(at("socket")).expect("socket");
        std::fs::set_permissions(from.path(), Permissions::from_mode(0o1777)).expect("mode");

        // What the target has and the source has not must go; what both have is replaced.
        std::fs::create_dir_all(to.path().join("gone/deeper")).expect("dir");
        std::fs::write(to.path().join("empty"), b"not empty").expect("file");
        xattr::set(to.path().join("empty"), "user.not-there", b"1").expect("xattr");
        symlink("/etc", to.path().join("a")).expect("symlink");

        let archive = Rounds::new(from.path(), to.path(), TreeKind::Volume).pack(&Held::default(), true).expect("pack");
        assert!(archive.len() < 1 << 20, "holes are not sent: {} bytes", archive.len());
        unpack(to.path(), TreeKind::Volume, archive.as_slice(), LIMIT).expect("unpack");
        assert!(to.path().join("sparse").metadata().expect("metadata").blocks() < 2048, "holes stay holes");
        for root in [from.path(), to.path()] {
            std::fs::remove_file(root.join("sparse")).expect("too long to be read");
            File::open(root).and_then(|root| root.set_modified(old)).expect("time");
        }
        assert_equal(from.path(), to.path());
    }
}

#[test]
fn a_volumes_file_keeps_its_inode_so_that_a_mount_of_it_stays_good() {
    let (from, to) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
    std::fs::write(from.path().join("file"), b"new").expect("file");
    std::fs::write(to.path().join("file"), b"old and longer").expect("file");
    let inode = |path: &Path| path.join("file").metadata().expect("metadata").ino();
    let before = inode(to.path());
    Rounds::new(from.path(), to.path(), TreeKind::Volume).last();
    assert_eq!(std::fs::read(to.path().join("file")).expect("read"), b"new");
    assert_eq!(inode(to.path()), before);
}

#[test]
fn what_has_not_changed_is_not_sent_again() {
    for from in on_disk_and_in_memory() {
        let to = tempfile::tempdir().expect("dir");
        std::fs::write(from.path().join("big"), vec![7; 40 * BLOCK]).expect("file");
        std::fs::create_dir(from.path().join("d")).expect("dir");
        std::fs::write(from.path().join("d/small"), b"1").expect("file");
        let rounds = Rounds::new(from.path(), to.path(), TreeKind::Volume);
        rounds.round(&Held::default(), false);
        if from.path().starts_with("/dev/shm") {
            // Contents are compared, and attributes go along.
            assert!(rounds.last() < 512);
        } else {
            settle(&rounds);
            assert_eq!(rounds.last(), 0);
        }
        std::fs::write(from.path().join("d/small"), b"2").expect("file");
        assert!(rounds.last() < 1024, "one small file has changed");
        assert_equal(from.path(), to.path());
    }
}

#[test]
fn of_a_large_file_only_the_blocks_that_differ_are_sent() {
    for from in on_disk_and_in_memory() {
        let to = tempfile::tempdir().expect("dir");
        let path = from.path().join("log");
        let bytes: Vec<u8> = (0..20 * BLOCK as u32).map(|n| (n / 4096) as u8).collect();
        std::fs::write(&path, &bytes).expect("file");
        let rounds = Rounds::new(from.path(), to.path(), TreeKind::Volume);
        rounds.round(&Held::default(), false);

        let mut file = OpenOptions::new().write(true).open(&path).expect("open");
        file.seek(SeekFrom::End(0)).expect("seek");
        file.write_all(b"another line").expect("append");
        assert!(rounds.last() < BLOCK, "only what was appended");
        file.seek(SeekFrom::Start(5 * BLOCK as u64)).expect("seek");
        file.write_all(b"changed").expect("write");
        assert!(rounds.last() < 2 * BLOCK, "one block");
        // Zeros take no room, also where there was something else.
        file.seek(SeekFrom::Start(0)).expect("seek");
        file.write_all(&vec![0; 10 * BLOCK]).expect("write");
        assert!(rounds.last() < 1024, "zeros");
        file.set_len(3 * BLOCK as u64 + 1).expect("cut");
        rounds.last();
        file.set_len(30 * BLOCK as u64).expect("grow");
        assert!(rounds.last() < 1024);
        assert_equal(from.path(), to.path());
    }
}

#[test]
fn a_file_that_is_written_within_one_tick_of_the_clock_is_sent_again() {
    let [from, _] = on_disk_and_in_memory();
    let to = tempfile::tempdir().expect("dir");
    let path = from.path().join("file");
    let file = File::create(&path).expect("file");
    for round in 0..200_u8 {
        let rounds = Rounds::new(from.path(), to.path(), TreeKind::Volume);
        std::os::unix::fs::FileExt::write_all_at(&file, &[round], 0).expect("write");
        rounds.round(&Held::default(), false);
        // The same length, and on many kernels the same ctime.
        std::os::unix::fs::FileExt::write_all_at(&file, &[round ^ 0xff], 0).expect("write");
        rounds.last();
        assert_eq!(std::fs::read(to.path().join("file")).expect("read"), [round ^ 0xff]);
    }
}

#[test]
fn a_write_whose_time_was_set_back_is_seen() {
    let [from, _] = on_disk_and_in_memory();
    let to = tempfile::tempdir().expect("dir");
    let path = from.path().join("file");
    std::fs::write(&path, b"one").expect("file");
    let rounds = Rounds::new(from.path(), to.path(), TreeKind::Volume);
    settle(&rounds);
    let before = path.metadata().expect("metadata").modified().expect("time");
    std::fs::write(&path, b"two").expect("file");
    File::open(&path).and_then(|file| file.set_modified(before)).expect("time");
    rounds.last();
    assert_eq!(std::fs::read(to.path().join("file")).expect("read"), b"two");
}

#[test]
fn hard_links_are_one_file_again_whichever_round_made_them() {
    for from in on_disk_and_in_memory() {
        let to = tempfile::tempdir().expect("dir");
        let at = |name: &str| from.path().join(name);
        let rounds = Rounds::new(from.path(), to.path(), TreeKind::Volume);
        std::fs::write(at("b"), b"1").expect("file");
        std::fs::write(at("z"), b"other").expect("file");
        rounds.round(&Held::default(), false);
        // Another name, before the one the target has.
        std::fs::hard_link(at("b"), at("a")).expect("link");
        rounds.round(&Held::default(), false);
        assert_equal(from.path(), to.path());
        // Content changes under both names.
        std::fs::write(at("a"), b"12345").expect("write");
        rounds.round(&Held::default(), false);
        assert_equal(from.path(), to.path());
        // One of the names becomes another file, by the way in which files are replaced.
        std::fs::write(at("new"), b"replacement").expect("file");
        std::fs::rename(at("new"), at("a")).expect("rename");
        rounds.round(&Held::default(), false);
        assert_equal(from.path(), to.path());
        // The names of two files change places.
        std::fs::hard_link(at("z"), at("y")).expect("link");
        std::fs::rename(at("b"), at("t")).expect("rename");
        std::fs::rename(at("z"), at("b")).expect("rename");
        std::fs::rename(at("t"), at("z")).expect("rename");
        rounds.last();
        assert_equal(from.path(), to.path());
    }
}

#[test]
fn what_was_sent_under_one_name_of_a_file_is_not_what_another_name_is_known_to_hold() {
    for from in on_disk_and_in_memory() {
        let to = tempfile::tempdir().expect("dir");
        let at = |name: &str| from.path().join(name);
        let rounds = Rounds::new(from.path(), to.path(), TreeKind::Volume);
        // More than one block, so that blocks are compared.
        let content = |byte: u8| vec![byte; 300_000];
        std::fs::write(at("x"), content(1)).expect("file");
        rounds.round(&Held::default(), false);
        std::fs::hard_link(at("x"), at("a")).expect("link");
        rounds.round(&Held::default(), false);
        std::fs::write(at("x"), content(2)).expect("write");
        rounds.round(&Held::default(), false);
        std::fs::remove_file(at("a")).expect("remove");
        std::fs::write(at("x"), content(1)).expect("write");
        rounds.last();
        assert_equal(from.path(), to.path());
    }
}

#[test]
fn the_same_archives_again_give_the_same_tree() {
    let [from, _] = on_disk_and_in_memory();
    let to = tempfile::tempdir().expect("dir");
    let at = |name: &str| from.path().join(name);
    let rounds = Rounds::new(from.path(), to.path(), TreeKind::Volume);
    std::fs::create_dir_all(at("d/e")).expect("dir");
    std::fs::write(at("d/e/f"), vec![1; 3 * BLOCK]).expect("file");
    let mut archives = vec![rounds.pack(&Held::default(), false).expect("pack")];
    std::fs::hard_link(at("d/e/f"), at("g")).expect("link");
    OpenOptions::new().append(true).open(at("g")).and_then(|mut file| file.write_all(b"more")).expect("append");
    archives.push(rounds.pack(&Held::default(), false).expect("pack"));
    std::fs::remove_dir_all(at("d")).expect("remove");
    std::fs::write(at("d"), b"a file now").expect("file");
    archives.push(rounds.pack(&Held::default(), true).expect("pack"));
    for applied in [3, 2, 1, 3] {
        for archive in &archives[..applied] {
            unpack(to.path(), TreeKind::Volume, archive.as_slice(), LIMIT).expect("unpack");
        }
    }
    assert_equal(from.path(), to.path());
}

#[test]
fn a_volume_with_a_device_is_refused() {
    if !is_root() {
        return;
    }
    let from = tempfile::tempdir().expect("dir");
    mknodat(CWD, from.path().join("null"), FileType::CharacterDevice, Mode::RUSR, rustix::fs::makedev(1, 3))
        .expect("device");
    let error = Rounds::new(from.path(), from.path(), TreeKind::Volume).pack(&Held::default(), false);
    assert!(error.expect_err("refused").contains("is a device"));
}

#[test]
fn a_tree_that_is_changed_while_it_is_sent_is_equal_once_nobody_changes_it() {
    let begins = [Rounds::new, Rounds::watched].into_iter().take(if is_root() { 2 } else { 1 });
    for (from, begin) in begins.flat_map(|begin| on_disk_and_in_memory().map(|from| (from, begin))) {
        let to = tempfile::tempdir().expect("dir");
        let rounds = begin(from.path(), to.path(), TreeKind::Volume);
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut step = 0_u64;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    super::random::disturb(from.path(), step);
                    step += 1;
                }
            });
            for _ in 0..60 {
                let held = Held::by(&[std::process::id().cast_signed()]);
                rounds.round(&held, false);
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        rounds.last();
        assert_equal(from.path(), to.path());
    }
}

#[test]
fn a_file_that_several_threads_read_in_the_freeze_is_whole() {
    let from = tempfile::tempdir().expect("dir");
    let path = from.path().join("file");
    let content: Vec<u8> = (0..11_u32 << 20).map(|at| (at >> 3) as u8 | 1).collect();
    std::fs::write(&path, &content).expect("file");
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("open");
    std::os::unix::fs::FileExt::write_all_at(&file, &[0; 300_000], 5 << 20).expect("zeros");
    for first_is_frozen in [true, false] {
        let to = tempfile::tempdir().expect("dir");
        let rounds = Rounds::new(from.path(), to.path(), TreeKind::Volume);
        rounds.round(&Held::default(), first_is_frozen);
        assert_equal(from.path(), to.path());
        if first_is_frozen {
            continue;
        }
        for offset in [0, (4 << 20) - 3, (5 << 20) + 7, 11 << 20] {
            std::os::unix::fs::FileExt::write_all_at(&file, b"changed", offset).expect("write");
        }
        let sent = rounds.last();
        assert!(sent < 1 << 20, "{sent} bytes, and not the blocks that differ alone");
        assert_equal(from.path(), to.path());
    }
}
