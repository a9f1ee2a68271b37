//! Writable layers of real overlays, mounted where nobody else sees them.

use super::random::{Change, changes};
use super::*;
use proptest::prelude::*;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};

/// An image, and two containers of it.
struct Overlays {
    place: PathBuf,
}

impl Overlays {
    /// In a thread of its own, in a mount namespace of its own, which goes with it.
    fn with<T: Send>(test: impl FnOnce(&Self) -> T + Send) -> T {
        let ran = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                // SAFETY: it is for this thread alone, which then has a root and working directory of its own; no file
                // descriptors are unshared.
                unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }.expect("a mount namespace");
                mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).expect("private");
                let place = tempfile::tempdir().expect("a directory");
                mount("tmpfs", place.path(), "tmpfs", MountFlags::empty(), None).expect("a tmpfs");
                let overlays = Self { place: place.path().to_owned() };
                overlays.make_image();
                overlays.mount("source");
                overlays.mount("target");
                let result = test(&overlays);
                for name in ["source/merged", "target/merged", ""] {
                    rustix::mount::unmount(place.path().join(name), rustix::mount::UnmountFlags::empty())
                        .expect("unmount");
                }
                result
            });
            thread.join()
        });
        ran.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn make_image(&self) {
        let at = |name: &str| self.place.join("image").join(name);
        for name in ["a/b/c", "etc/b", "c"] {
            std::fs::create_dir_all(at(name)).expect("dir");
        }
        for name in ["a/a", "a/b/c/a", "etc/a", "etc/b/a", "b"] {
            std::fs::write(at(name), name.repeat(9)).expect("file");
        }
        std::fs::hard_link(at("b"), at("a/c")).expect("link");
        symlink("a", at("c/a")).expect("symlink");
        std::fs::set_permissions(at("etc/a"), Permissions::from_mode(0o4755)).expect("mode");
        xattr::set(at("etc/a"), "trusted.note", b"1").expect("xattr");
    }

    fn mount(&self, name: &str) {
        let place = self.place.join(name);
        for directory in ["upper", "work", "merged"] {
            std::fs::create_dir_all(place.join(directory)).expect("dir");
        }
        let options =
            format!("lowerdir={0}/image,upperdir={1}/upper,workdir={1}/work", self.place.display(), place.display());
        let options = std::ffi::CString::new(options).expect("options");
        mount("overlay", place.join("merged"), "overlay", MountFlags::empty(), Some(options.as_c_str()))
            .expect("overlay");
    }

    fn merged(&self, name: &str) -> PathBuf {
        self.place.join(name).join("merged")
    }

    fn rounds(&self) -> Rounds {
        Rounds::new(&self.place.join("source/upper"), &self.merged("target"), TreeKind::Layer)
    }

    fn watched(&self) -> Rounds {
        Rounds::watched(&self.place.join("source/upper"), &self.merged("target"), TreeKind::Layer)
    }
}

#[test]
fn deletions_and_replaced_directories_are_carried_out_on_the_image_below() {
    if !is_root() {
        return;
    }
    Overlays::with(|overlays| {
        let (at, rounds) = (|name: &str| overlays.merged("source").join(name), overlays.rounds());
        std::fs::remove_file(at("b")).expect("remove");
        std::fs::remove_dir_all(at("a")).expect("remove");
        rounds.round(&Held::default(), false);
        assert!(!overlays.merged("target").join("a").exists());
        assert_equal(&overlays.merged("source"), &overlays.merged("target"));

        // An opaque directory in place of a whiteout, and one in place of a directory of the image.
        std::fs::create_dir(at("a")).expect("dir");
        std::fs::write(at("a/new"), b"new").expect("file");
        std::fs::remove_dir_all(at("etc")).expect("remove");
        std::fs::create_dir(at("etc")).expect("dir");
        std::fs::create_dir(at("etc/b")).expect("dir");
        rounds.round(&Held::default(), false);
        assert_equal(&overlays.merged("source"), &overlays.merged("target"));

        // What is below them stays when they are sent again.
        std::fs::set_permissions(at("a"), Permissions::from_mode(0o700)).expect("mode");
        std::fs::write(at("etc/b/file"), b"1").expect("file");
        rounds.last();
        assert!(overlays.merged("target").join("a/new").exists());
        assert_equal(&overlays.merged("source"), &overlays.merged("target"));
    });
}

#[test]
fn what_an_overlay_can_not_carry_over_is_refused() {
    if !is_root() {
        return;
    }
    let upper = tempfile::tempdir().expect("dir");
    std::fs::create_dir(upper.path().join("renamed")).expect("dir");
    xattr::set(upper.path().join("renamed"), "trusted.overlay.redirect", b"/old").expect("xattr");
    let error = Rounds::new(upper.path(), upper.path(), TreeKind::Layer).pack(&Held::default(), false);
    assert!(error.expect_err("refused").contains("trusted.overlay.redirect"));
}

#[test]
fn what_comes_into_a_layer_without_a_word_in_the_container_is_seen_in_the_freeze() {
    if !is_root() {
        return;
    }
    Overlays::with(|overlays| {
        let (at, rounds) = (|name: &str| overlays.merged("source").join(name), overlays.watched());
        std::fs::write(at("etc/new"), b"1").expect("file");
        rounds.round(&Held::default(), false);
        rounds.round(&Held::default(), false);
        // The old name of a file of the image is copied up with the new one, in a directory that was not there before.
        std::fs::hard_link(at("a/b/c/a"), at("etc/again")).expect("link");
        std::fs::set_permissions(at("a/a"), Permissions::from_mode(0o600)).expect("mode");
        std::fs::set_permissions(at("c"), Permissions::from_mode(0o700)).expect("mode");
        std::fs::remove_file(at("etc/b/a")).expect("remove");
        std::fs::OpenOptions::new().append(true).open(at("etc/new")).expect("open").write_all(b"2").expect("write");
        rounds.last();
        assert_equal(&overlays.merged("source"), &overlays.merged("target"));
    });
}

#[test]
fn a_file_of_the_image_that_is_mapped_is_compared_again_though_the_overlay_numbers_it_otherwise() {
    if !is_root() {
        return;
    }
    Overlays::with(|overlays| {
        let path = overlays.merged("source").join("etc/a");
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).expect("open");
        let map = super::held::Map::shared(&file, 4096);
        let held = Held::by(&[std::process::id().cast_signed()]);
        let tree = crate::agent::files::walk::walk(
            &mut crate::agent::files::beneath::Beneath::open(&overlays.place.join("source/upper")).expect("open"),
            2,
            None,
        )
        .expect("walk");
        let upper = crate::agent::files::listing::TreePath::parse(b"etc/a".to_vec()).expect("a path");
        let id = tree.find(&upper).expect("it was copied up") as usize;
        let inode = path.metadata().expect("metadata").ino();
        assert_ne!(tree.nodes[id].facts.id.inode, inode, "else this shows nothing");
        // The overlay is not the root here, so its paths say nothing: everything counts as held.
        assert_eq!(held.nodes(&tree, true)[id], crate::agent::files::changes::Holding::Mapping);
        assert_eq!(held.nodes(&tree, false)[id], crate::agent::files::changes::Holding::Nobody);
        drop(map);
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_is_changed_in_a_container_its_copy_looks_the_same(rounds in changes()) {
        if is_root() {
            for begin in [Overlays::rounds, Overlays::watched] {
              Overlays::with(|overlays| {
                let sent = begin(overlays);
                for (number, changes) in rounds.iter().enumerate() {
                    changes.iter().for_each(|change: &Change| change.make(&overlays.merged("source"), true));
                    sent.round(&Held::default(), number + 1 == rounds.len());
                    assert_equal(&overlays.merged("source"), &overlays.merged("target"));
                }
              });
            }
        }
    }
}
