//! Random trees, changed at random between rounds.

use super::*;
use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode, RenameFlags, mknodat, renameat_with};
use std::ffi::OsStr;
use std::fs::{File, OpenOptions, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, lchown, symlink};
use std::time::{Duration, SystemTime};

/// One change. Where it can't be made, nothing happens.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Directory(PathBuf),
    Write(PathBuf, u64, usize, u8),
    Length(PathBuf, u64),
    /// A new file in place of an old one, by rename.
    Replace(PathBuf, u8),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf),
    Exchange(PathBuf, PathBuf),
    Link(PathBuf, PathBuf),
    Symlink(PathBuf, u8),
    Special(PathBuf, u8),
    Mode(PathBuf, u32),
    Owner(PathBuf, u32),
    Attribute(PathBuf, u8, Option<u8>),
    Time(PathBuf, u64),
    /// A write that leaves the time of modification as it was.
    Secret(PathBuf, u8),
}

impl Change {
    pub(super) fn make(&self, root: &Path, devices: bool) {
        self.try_make(root, devices).ok();
    }

    fn try_make(&self, root: &Path, devices: bool) -> std::io::Result<()> {
        let real = |path: &Path| root.join(path).symlink_metadata();
        let file = |path: &Path| {
            if real(path).is_ok_and(|metadata| !metadata.is_file()) {
                return Err(std::io::Error::other("no file"));
            }
            OpenOptions::new().write(true).create(true).truncate(false).open(root.join(path))
        };
        match self {
            Self::Directory(path) => std::fs::create_dir(root.join(path)),
            Self::Write(path, offset, length, byte) => file(path)?.write_all_at(&vec![*byte; *length], *offset),
            Self::Length(path, length) => file(path)?.set_len(*length),
            Self::Replace(path, byte) => {
                std::fs::write(root.join("replacement"), [*byte])?;
                std::fs::rename(root.join("replacement"), root.join(path))
                    .or_else(|_| std::fs::remove_file(root.join("replacement")))
            }
            Self::Remove(path) if real(path)?.is_dir() => std::fs::remove_dir_all(root.join(path)),
            Self::Remove(path) => std::fs::remove_file(root.join(path)),
            Self::Rename(from, to) => std::fs::rename(root.join(from), root.join(to)),
            Self::Exchange(one, other) => {
                Ok(renameat_with(CWD, root.join(one), CWD, root.join(other), RenameFlags::EXCHANGE)?)
            }
            Self::Link(from, to) => std::fs::hard_link(root.join(from), root.join(to)),
            Self::Symlink(path, byte) => symlink(OsStr::from_bytes(&[b'/', b'a' + byte % 26]), root.join(path)),
            Self::Special(path, byte) => {
                let kinds = [FileType::Fifo, FileType::Socket, FileType::CharacterDevice, FileType::BlockDevice];
                let kind = kinds[usize::from(*byte) % if devices { 4 } else { 2 }];
                let device = rustix::fs::makedev(1 + u32::from(*byte) % 3, 3);
                Ok(mknodat(CWD, root.join(path), kind, Mode::RUSR, if *byte % 4 < 2 { 0 } else { device })?)
            }
            Self::Mode(path, mode) if real(path)?.is_symlink() => Self::Remove(path.clone()).try_make(root, *mode == 0),
            Self::Mode(path, mode) => std::fs::set_permissions(root.join(path), Permissions::from_mode(*mode)),
            Self::Owner(path, id) => lchown(root.join(path), Some(*id), Some(id / 2)),
            Self::Attribute(path, name, value) => {
                let kind = real(path)?.file_type();
                let space = if kind.is_file() || kind.is_dir() { "user" } else { "trusted" };
                let name = format!("{space}.x{}", name % 3);
                match value {
                    Some(value) => xattr::set(root.join(path), name, &vec![*value; usize::from(*value)]),
                    None => xattr::remove(root.join(path), name),
                }
            }
            Self::Time(path, millis) if real(path)?.is_file() || real(path)?.is_dir() => {
                let time = SystemTime::UNIX_EPOCH + Duration::from_millis(*millis) - Duration::from_secs(1_000);
                File::open(root.join(path))?.set_modified(time)
            }
            Self::Time(..) => Ok(()),
            Self::Secret(path, byte) => {
                let before = real(path)?.modified()?;
                let file = file(path)?;
                file.write_all_at(&[*byte; 3], 0)?;
                file.set_modified(before)
            }
        }
    }
}

fn path() -> impl Strategy<Value = PathBuf> {
    let name = prop::sample::select(vec![&b"a"[..], b"b", b"c", b"\xff\n", b"etc"]);
    prop::collection::vec(name, 1..4).prop_map(|names| names.into_iter().map(OsStr::from_bytes).collect())
}

pub(super) fn change() -> impl Strategy<Value = Change> {
    let offset = prop_oneof![Just(0), 0..5_000_u64, 120_000..140_000_u64, 500_000..600_000_u64];
    let length = prop_oneof![0..10_usize, 100_000..300_000_usize];
    prop_oneof![
        3 => path().prop_map(Change::Directory),
        4 => (path(), offset, length, any::<u8>()).prop_map(|(path, at, length, byte)| Change::Write(path, at, length, byte)),
        1 => (path(), 0..700_000_u64).prop_map(|(path, length)| Change::Length(path, length)),
        2 => (path(), any::<u8>()).prop_map(|(path, byte)| Change::Replace(path, byte)),
        2 => path().prop_map(Change::Remove),
        2 => (path(), path()).prop_map(|(from, to)| Change::Rename(from, to)),
        1 => (path(), path()).prop_map(|(one, other)| Change::Exchange(one, other)),
        2 => (path(), path()).prop_map(|(from, to)| Change::Link(from, to)),
        1 => (path(), any::<u8>()).prop_map(|(path, byte)| Change::Symlink(path, byte)),
        1 => (path(), any::<u8>()).prop_map(|(path, byte)| Change::Special(path, byte)),
        1 => (path(), 0..0o7777_u32).prop_map(|(path, mode)| Change::Mode(path, mode)),
        1 => (path(), 0..100_000_u32).prop_map(|(path, id)| Change::Owner(path, id)),
        1 => (path(), any::<u8>(), any::<Option<u8>>()).prop_map(|(path, name, value)| Change::Attribute(path, name, value)),
        1 => (path(), 0..2_000_000_u64).prop_map(|(path, millis)| Change::Time(path, millis)),
        2 => (path(), any::<u8>()).prop_map(|(path, byte)| Change::Secret(path, byte)),
    ]
}

/// Changes between rounds.
pub(super) fn changes() -> impl Strategy<Value = Vec<Vec<Change>>> {
    prop::collection::vec(prop::collection::vec(change(), 0..25), 1..6)
}

/// One change to a tree that somebody is looking at, another for each step.
pub(super) fn disturb(root: &Path, step: u64) {
    let mut bits = step.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut draw = |most: u64| {
        bits = bits.rotate_left(17).wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ (bits >> 31);
        bits % most
    };
    let mut path = || {
        let (directory, name) = (draw(4), draw(6));
        if directory == 0 { PathBuf::from(format!("n{name}")) } else { PathBuf::from(format!("d{directory}/n{name}")) }
    };
    let (one, other) = (path(), path());
    let byte = step as u8;
    match step % 9 {
        0 => Change::Directory(PathBuf::from(format!("d{}", step / 9 % 4))),
        1 => Change::Remove(if step.is_multiple_of(5) { PathBuf::from("d1") } else { one }),
        2 => Change::Rename(one, other),
        3 => Change::Link(one, other),
        4 => Change::Replace(one, byte),
        5 => Change::Secret(one, byte),
        6 => Change::Rename(PathBuf::from("d2"), PathBuf::from("d3")),
        _ => Change::Write(one, step % 200_000, 3 + (step % 100_000) as usize, byte),
    }
    .make(root, false);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn whatever_is_changed_between_rounds_the_trees_are_equal(rounds in changes()) {
        if is_root() {
            let begins = [Rounds::new, Rounds::watched];
            for (from, begin) in begins.into_iter().flat_map(|begin| on_disk_and_in_memory().map(|from| (from, begin))) {
                let to = tempfile::tempdir().expect("dir");
                let sent = begin(from.path(), to.path(), TreeKind::Volume);
                for (number, changes) in rounds.iter().enumerate() {
                    changes.iter().for_each(|change| change.make(from.path(), false));
                    sent.round(&Held::default(), number + 1 == rounds.len());
                    assert_equal(from.path(), to.path());
                }
            }
        }
    }
}
