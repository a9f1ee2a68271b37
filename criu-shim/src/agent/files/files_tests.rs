//! What is packed is unpacked equal, and what no packer of ours writes is refused. Run as root, because owners, device
//! nodes and trusted attributes are part of the promise.

use super::*;
use crate::agent::files::pack::{PackError, pack};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, symlink};
use tar::{Builder, Header};

const LIMIT: u64 = 1 << 30;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn describe(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut stack = vec![PathBuf::new()];
    while let Some(relative) = stack.pop() {
        let path = root.join(&relative);
        let metadata = path.symlink_metadata().expect("metadata");
        let kind = metadata.file_type();
        let content = if kind.is_file() {
            blake3::hash(&std::fs::read(&path).expect("read")).to_hex().to_string()
        } else if kind.is_symlink() {
            format!("{:?}", path.read_link().expect("link"))
        } else if kind.is_dir() {
            stack.extend(path.read_dir().expect("dir").map(|entry| relative.join(entry.expect("entry").file_name())));
            String::new()
        } else {
            format!("{:?} {}", kind, metadata.rdev())
        };
        let attributes: BTreeMap<_, _> = if kind.is_symlink() {
            BTreeMap::new()
        } else {
            xattr::list(&path)
                .expect("xattrs")
                .map(|name| (name.clone(), xattr::get(&path, &name)))
                .map(|(name, value)| (name, value.expect("value")))
                .collect()
        };
        let size = if kind.is_dir() { 0 } else { metadata.size() };
        let links = if kind.is_dir() { 0 } else { metadata.nlink() };
        found.insert(
            relative,
            format!(
                "{:o} {}:{} {size} {links} {}.{} {content} {attributes:?}",
                metadata.mode(),
                metadata.uid(),
                metadata.gid(),
                metadata.mtime(),
                metadata.mtime_nsec()
            ),
        );
    }
    found
}

fn packed(root: &Path, kind: TreeKind) -> Vec<u8> {
    pack(root, kind, Vec::new()).expect("pack")
}

#[test]
fn everything_about_a_volume_comes_back() {
    if !is_root() {
        return;
    }
    let (from, to) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
    let at = |name: &str| from.path().join(name);
    std::fs::create_dir_all(at("a/b")).expect("dir");
    std::fs::write(at("a/b/file"), b"content").expect("file");
    std::fs::set_permissions(at("a/b/file"), Permissions::from_mode(0o4751)).expect("mode");
    std::os::unix::fs::chown(at("a/b/file"), Some(3_000_000_000), Some(999)).expect("owner");
    std::fs::set_permissions(at("a/b/file"), Permissions::from_mode(0o4751)).expect("mode");
    xattr::set(at("a/b/file"), "user.note", b"\0binary\n=").expect("xattr");
    std::fs::hard_link(at("a/b/file"), at("a/again")).expect("link");
    symlink("/nowhere/at/all", at("a/link")).expect("symlink");
    std::fs::write(at("empty"), b"").expect("file");
    let long: PathBuf = (0..12).map(|_| "x".repeat(60)).collect();
    std::fs::create_dir_all(at("deep").join(&long)).expect("dir");
    std::fs::write(at("deep").join(&long).join("ä ö\n"), b"1").expect("file");
    rustix::fs::mknodat(CWD, at("fifo"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).expect("fifo");
    let sparse = File::create(at("sparse")).expect("file");
    sparse.set_len(300 << 20).expect("length");
    let _listener = std::os::unix::net::UnixListener::bind(at("socket")).expect("socket");
    std::fs::set_permissions(from.path(), Permissions::from_mode(0o1777)).expect("mode");

    // What the target has and the source has not must go; what both have is replaced.
    std::fs::create_dir_all(to.path().join("gone/deeper")).expect("dir");
    std::fs::write(to.path().join("empty"), b"not empty").expect("file");
    symlink("/etc", to.path().join("a")).expect("symlink");

    let tar = packed(from.path(), TreeKind::Volume);
    unpack(to.path(), TreeKind::Volume, tar.as_slice(), LIMIT).expect("unpack");

    let mut expected = describe(from.path());
    expected.remove(Path::new("socket"));
    let mut found = describe(to.path());
    // Removing the socket's entry is the one difference, and it changes nothing else but the size of the root.
    assert_eq!(
        found.remove(Path::new("")).map(|text| text[..10].to_owned()),
        expected.remove(Path::new("")).map(|text| text[..10].to_owned())
    );
    assert_eq!(found, expected);
    assert!(to.path().join("sparse").metadata().expect("metadata").blocks() < 2048, "holes stay holes");
}

#[test]
fn a_volumes_file_keeps_its_inode_so_that_a_mount_of_it_stays_good() {
    let (from, to) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
    std::fs::write(from.path().join("file"), b"new").expect("file");
    std::fs::write(to.path().join("file"), b"old and longer").expect("file");
    let inode = |path: &Path| path.join("file").metadata().expect("metadata").ino();
    let before = inode(to.path());
    unpack(to.path(), TreeKind::Volume, packed(from.path(), TreeKind::Volume).as_slice(), LIMIT).expect("unpack");
    assert_eq!(std::fs::read(to.path().join("file")).expect("read"), b"new");
    assert_eq!(inode(to.path()), before);
}

#[test]
fn deletions_in_a_layer_are_carried_out_on_the_image_below() {
    if !is_root() {
        return;
    }
    let (upper, image) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
    let at = |name: &str| upper.path().join(name);
    rustix::fs::mknodat(CWD, at("removed"), FileType::CharacterDevice, Mode::empty(), 0).expect("whiteout");
    std::fs::create_dir(at("replaced")).expect("dir");
    xattr::set(at("replaced"), "trusted.overlay.opaque", b"y").expect("xattr");
    xattr::set(at("replaced"), "trusted.overlay.origin", b"bookkeeping").expect("xattr");
    std::fs::write(at("replaced/new"), b"new").expect("file");
    std::fs::create_dir(at("merged")).expect("dir");
    std::fs::write(at("merged/new"), b"new").expect("file");
    rustix::fs::mknodat(CWD, at("device"), FileType::CharacterDevice, Mode::RUSR, rustix::fs::makedev(1, 3))
        .expect("device");

    for name in ["removed/deep", "replaced", "merged"] {
        std::fs::create_dir_all(image.path().join(name)).expect("dir");
        std::fs::write(image.path().join(name).join("old"), b"old").expect("file");
    }
    let tar = packed(upper.path(), TreeKind::Layer);
    unpack(image.path(), TreeKind::Layer, tar.as_slice(), LIMIT).expect("unpack");

    assert!(!image.path().join("removed").exists());
    assert!(!image.path().join("replaced/old").exists());
    assert!(image.path().join("replaced/new").exists());
    assert!(image.path().join("merged/old").exists());
    assert!(image.path().join("merged/new").exists());
    assert!(image.path().join("device").metadata().expect("device").file_type().is_char_device());
    assert_eq!(xattr::list(image.path().join("replaced")).expect("xattrs").count(), 0);
}

#[test]
fn what_an_overlay_can_not_carry_over_is_refused() {
    if !is_root() {
        return;
    }
    let upper = tempfile::tempdir().expect("dir");
    std::fs::create_dir(upper.path().join("renamed")).expect("dir");
    xattr::set(upper.path().join("renamed"), "trusted.overlay.redirect", b"/old").expect("xattr");
    let error = pack(upper.path(), TreeKind::Layer, Vec::new()).expect_err("refused");
    assert!(matches!(error, PackError::OverlayFeature { .. }), "{error}");
}

fn entry(tar: &mut Builder<Vec<u8>>, name: &[u8], kind: EntryType, link: &[u8], content: &[u8]) {
    let mut header = Header::new_gnu();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name);
    header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link);
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(content.len() as u64);
    header.set_cksum();
    tar.append(&header, content).expect("append");
}

fn refusal(kind: TreeKind, fill: impl FnOnce(&mut Builder<Vec<u8>>)) -> Refusal {
    let parent = tempfile::tempdir().expect("dir");
    let root = parent.path().join("root");
    std::fs::create_dir(&root).expect("dir");
    std::fs::write(parent.path().join("outside"), b"untouched").expect("file");
    let mut tar = Builder::new(Vec::new());
    fill(&mut tar);
    let bytes = tar.into_inner().expect("tar");
    let error = unpack(&root, kind, bytes.as_slice(), LIMIT).expect_err("must be refused");
    assert_eq!(std::fs::read(parent.path().join("outside")).expect("read"), b"untouched");
    match error {
        UnpackError::Refused { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn hostile_archives_are_refused_by_name() {
    use EntryType::{Block, Link, Regular, Symlink};
    use TreeKind::{Layer, Volume};
    assert_eq!(refusal(Volume, |tar| entry(tar, b"../outside", Regular, b"", b"x")), Refusal::Name);
    assert_eq!(refusal(Volume, |tar| entry(tar, b"/etc/passwd", Regular, b"", b"x")), Refusal::Name);
    assert_eq!(
        refusal(Volume, |tar| {
            entry(tar, b"link", Symlink, b"..", b"");
            entry(tar, b"link/outside", Regular, b"", b"x");
        }),
        Refusal::Parent
    );
    assert_eq!(
        refusal(Volume, |tar| {
            entry(tar, b"a", Regular, b"", b"x");
            entry(tar, b"./a", Regular, b"", b"x");
        }),
        Refusal::Twice
    );
    assert_eq!(refusal(Volume, |tar| entry(tar, b"a", Link, b"../outside", b"")), Refusal::Name);
    assert_eq!(refusal(Volume, |tar| entry(tar, b"a", Link, b"b", b"")), Refusal::Link);
    assert_eq!(refusal(Volume, |tar| entry(tar, b"disk", Block, b"", b"")), Refusal::Kind);
    assert_eq!(refusal(Layer, |tar| entry(tar, b"whiteout", EntryType::Char, b"", b"")), Refusal::Kind);
    assert_eq!(refusal(Layer, |tar| entry(tar, b".wh...", Regular, b"", b"")), Refusal::Name);
    assert_eq!(refusal(Volume, |tar| entry(tar, b"a", EntryType::Continuous, b"", b"")), Refusal::Kind);
    assert_eq!(
        refusal(Volume, |tar| {
            tar.append_pax_extensions([("path", b"b".as_slice())]).expect("pax");
            entry(tar, b"a", Regular, b"", b"");
        }),
        Refusal::Pax
    );
}

#[test]
fn more_bytes_than_allowed_are_refused_before_they_are_written() {
    let root = tempfile::tempdir().expect("dir");
    let mut tar = Builder::new(Vec::new());
    entry(&mut tar, b"big", EntryType::Regular, b"", &[1; 4096]);
    let bytes = tar.into_inner().expect("tar");
    let error = unpack(root.path(), TreeKind::Volume, bytes.as_slice(), 4095).expect_err("too much");
    assert!(matches!(error, UnpackError::TooMuch(4095)));
    assert!(!root.path().join("big").exists());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_damaged_archive_never_panics_and_never_leaves_the_tree(
        position in 0_usize..3000, byte: u8, cut in 0_usize..3000,
    ) {
        let from = tempfile::tempdir().expect("dir");
        std::fs::create_dir(from.path().join("d")).expect("dir");
        std::fs::write(from.path().join("d/f"), b"content").expect("file");
        let mut tar = packed(from.path(), TreeKind::Volume);
        let length = tar.len();
        tar[position % length] = byte;
        tar.truncate(length - cut % length);
        let parent = tempfile::tempdir().expect("dir");
        std::fs::create_dir(parent.path().join("root")).expect("dir");
        let _ = unpack(&parent.path().join("root"), TreeKind::Volume, tar.as_slice(), LIMIT);
        prop_assert_eq!(parent.path().read_dir().expect("dir").count(), 1);
    }
}
