//! What no packer of ours writes does no harm outside its tree.

use super::*;
use crate::agent::files::archive::{self, Attributes, Shape};
use crate::agent::files::listing::{MAX_DEPTH, TreePath};
use crate::agent::files::unpack::{Refusal, UnpackError};
use proptest::prelude::*;
use std::os::unix::fs::symlink;

fn path(text: &str) -> TreePath {
    TreePath::parse(text.as_bytes().to_vec()).expect("a path")
}

fn attributes() -> Attributes {
    Attributes { mode: 0o644, ..Attributes::default() }
}

fn outcome(kind: TreeKind, base: bool, fill: impl FnOnce(&mut Vec<u8>)) -> Result<(), UnpackError> {
    let parent = tempfile::tempdir().expect("dir");
    let root = parent.path().join("root");
    std::fs::create_dir(&root).expect("dir");
    std::fs::write(parent.path().join("outside"), b"untouched").expect("file");
    symlink("..", root.join("up")).expect("symlink");
    symlink("../outside", root.join("out")).expect("symlink");
    let mut bytes = Vec::new();
    archive::begin(&mut bytes, kind, base);
    fill(&mut bytes);
    archive::end(&mut bytes);
    let outcome = unpack(&root, kind, bytes.as_slice(), 1000);
    assert_eq!(std::fs::read(parent.path().join("outside")).expect("read"), b"untouched");
    assert_eq!(parent.path().read_dir().expect("dir").count(), 2);
    outcome
}

#[test]
fn no_name_passes_through_a_link() {
    let file = Shape::File { size: 1 };
    let up =
        outcome(TreeKind::Volume, false, |out| archive::node(out, &path("up/outside"), false, &file, &attributes()));
    assert!(matches!(up, Err(UnpackError::Make { .. })), "{up:?}");
    let up = outcome(TreeKind::Volume, false, |out| archive::remove(out, &path("up/outside")));
    assert!(matches!(up, Ok(()) | Err(UnpackError::Make { .. })), "{up:?}");
    let kept = outcome(TreeKind::Volume, false, |out| {
        archive::node(out, &path("out"), true, &file, &attributes());
        archive::data(out, 0, b"x");
    });
    assert!(matches!(kept, Err(UnpackError::Refused { reason: Refusal::Missing, .. })), "{kept:?}");
    let replaced = outcome(TreeKind::Volume, false, |out| {
        archive::node(out, &path("out"), false, &file, &attributes());
        archive::data(out, 0, b"x");
    });
    replaced.expect("the link is replaced");
    let linked = outcome(TreeKind::Volume, false, |out| archive::link(out, &path("new"), &path("up/outside")));
    assert!(matches!(linked, Err(UnpackError::Make { .. })), "{linked:?}");
}

#[test]
fn devices_of_a_volume_and_whiteouts_of_a_layer_are_refused() {
    let device = |kind, device| {
        outcome(kind, false, |out| {
            archive::node(out, &path("device"), false, &Shape::Character { device }, &attributes());
        })
    };
    for outcome in [device(TreeKind::Volume, (1, 3)), device(TreeKind::Layer, (0, 0))] {
        assert!(matches!(outcome, Err(UnpackError::Refused { reason: Refusal::Device, .. })), "{outcome:?}");
    }
}

#[test]
fn bytes_that_belong_to_no_file_are_refused() {
    let stray = outcome(TreeKind::Volume, false, |out| archive::data(out, 0, b"x"));
    assert!(matches!(stray, Err(UnpackError::Refused { reason: Refusal::Bytes, .. })), "{stray:?}");
    for offset in [3, u64::MAX - 1] {
        let beyond = outcome(TreeKind::Volume, false, |out| {
            archive::node(out, &path("f"), false, &Shape::File { size: 3 }, &attributes());
            archive::zeros(out, offset, 1);
        });
        assert!(matches!(beyond, Err(UnpackError::Refused { reason: Refusal::Bytes, .. })), "{beyond:?}");
    }
}

#[test]
fn the_root_is_a_directory_and_stays() {
    let gone = outcome(TreeKind::Volume, false, |out| archive::remove(out, &path("")));
    assert!(matches!(gone, Err(UnpackError::Refused { reason: Refusal::Root, .. })), "{gone:?}");
    let file = outcome(TreeKind::Volume, false, |out| {
        archive::node(out, &path(""), false, &Shape::File { size: 0 }, &attributes());
    });
    assert!(matches!(file, Err(UnpackError::Refused { reason: Refusal::Root, .. })), "{file:?}");
}

#[test]
fn more_bytes_than_allowed_are_refused_before_they_are_written() {
    let much = outcome(TreeKind::Volume, false, |out| {
        archive::node(out, &path("f"), false, &Shape::File { size: 1001 }, &attributes());
        archive::data(out, 0, &[1; 1001]);
    });
    assert!(matches!(much, Err(UnpackError::TooMuch(1000))), "{much:?}");
}

#[test]
fn an_archive_of_another_kind_of_tree_is_refused() {
    let mut bytes = Vec::new();
    archive::begin(&mut bytes, TreeKind::Layer, true);
    archive::end(&mut bytes);
    let root = tempfile::tempdir().expect("dir");
    let outcome = unpack(root.path(), TreeKind::Volume, bytes.as_slice(), LIMIT);
    assert!(matches!(outcome, Err(UnpackError::OtherKind)), "{outcome:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_damaged_archive_never_panics_and_never_leaves_the_tree(
        position in 0_usize..3000, byte: u8, cut in 0_usize..3000,
    ) {
        let from = tempfile::tempdir().expect("dir");
        std::fs::create_dir(from.path().join("d")).expect("dir");
        std::fs::write(from.path().join("d/f"), b"content").expect("file");
        symlink("..", from.path().join("l")).expect("symlink");
        let rounds = Rounds::new(from.path(), from.path(), TreeKind::Volume);
        let mut bytes = rounds.pack(&Held::default(), true).expect("pack");
        let length = bytes.len();
        bytes[position % length] = byte;
        bytes.truncate(length - cut % length);
        let parent = tempfile::tempdir().expect("dir");
        std::fs::create_dir(parent.path().join("root")).expect("dir");
        let _ = unpack(&parent.path().join("root"), TreeKind::Volume, bytes.as_slice(), LIMIT);
        prop_assert_eq!(parent.path().read_dir().expect("dir").count(), 1);
    }
}

#[test]
fn a_tree_that_is_too_deep_is_refused_by_its_path_on_either_side() {
    let from = tempfile::tempdir().expect("dir");
    let deep = |levels: usize| ["d"; 300][..levels].join("/");
    std::fs::create_dir_all(from.path().join(deep(MAX_DEPTH))).expect("directories");
    let rounds = Rounds::new(from.path(), from.path(), TreeKind::Volume);
    rounds.pack(&Held::default(), false).expect("as deep as may be");
    std::fs::create_dir(from.path().join(deep(MAX_DEPTH + 1))).expect("a directory");
    let refused = rounds.pack(&Held::default(), false).expect_err("too deep");
    assert!(refused.contains("more than 256 directories deep, at \"d/d/"), "{refused}");
    assert_eq!(TreePath::parse(deep(MAX_DEPTH + 1).into_bytes()), None);
    let onto = tempfile::tempdir().expect("dir");
    std::fs::create_dir_all(onto.path().join(deep(MAX_DEPTH + 2))).expect("directories");
    let mut archive = Vec::new();
    archive::begin(&mut archive, TreeKind::Layer, false);
    archive::remove(&mut archive, &path("d"));
    archive::end(&mut archive);
    let refused = unpack(onto.path(), TreeKind::Layer, archive.as_slice(), 0);
    assert!(matches!(refused, Err(UnpackError::Make { source: rustix::io::Errno::NAMETOOLONG, .. })), "{refused:?}");
}
