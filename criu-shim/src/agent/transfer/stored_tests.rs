//! Whatever is changed on the disk is noticed, and named.

use super::*;
use rustix::fs::{FileType, Mode, mknodat};

struct Attempt(tempfile::TempDir);

impl Attempt {
    /// With an image, a second one that takes several threads, and an archive.
    fn landed() -> Self {
        let attempt = Self(tempfile::tempdir().expect("dir"));
        let big: Vec<u8> = (0..9_000_000_u32).map(|n| (n % 251) as u8).collect();
        let parts = [
            (Part::Image { name: "core-1.img".into() }, b"core".to_vec()),
            (Part::Image { name: "pages-1.img".into() }, big),
            (Part::Layer { round: 3 }, b"tar".to_vec()),
        ];
        let mut manifest = Manifest::default();
        for place in [IMAGES, FILES] {
            std::fs::create_dir(attempt.path(place)).expect("dir");
        }
        for (part, bytes) in parts {
            let (place, name) = part.place().expect("place").expect("a file");
            std::fs::write(attempt.path(place).join(name), &bytes).expect("write");
            let landed = Landed { bytes: bytes.len() as u64, digest: blake3::hash(&bytes).into() };
            assert!(manifest.add(part, landed));
        }
        store(attempt.0.path(), &manifest, Vec::new()).expect("store");
        attempt
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn edit(&self, name: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = std::fs::read(self.path(name)).expect("read");
        edit(&mut bytes);
        std::fs::write(self.path(name), bytes).expect("write");
    }

    fn refusal(&self) -> StoredError {
        verify(self.0.path()).expect_err("must be refused")
    }
}

#[test]
fn what_has_landed_and_was_not_touched_is_as_it_was_sent() {
    let attempt = Attempt::landed();
    verify(attempt.0.path()).expect("untouched");
    verify(attempt.0.path()).expect("and again");
    use std::os::unix::fs::PermissionsExt;
    let mode = attempt.path(MANIFEST).metadata().expect("manifest").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_manifest_takes_the_place_of_the_one_before_and_leaves_nothing() {
    let attempt = Attempt::landed();
    std::fs::write(attempt.path("manifest.new"), [b' '; 9000]).expect("what an agent that was killed has left");
    store(attempt.0.path(), &Manifest::default(), Vec::new()).expect("store");
    assert_eq!(archives(attempt.0.path()).expect("a list").len(), 0, "the new one has none");
    assert!(!attempt.path("manifest.new").exists());
    store(attempt.0.path(), &Manifest::default(), Vec::new()).expect("store again");
}

#[test]
fn an_archive_that_is_still_being_received_is_none_of_those_that_have_landed() {
    let attempt = Attempt::landed();
    std::fs::write(attempt.path("files/0000000004-layer"), b"ta").expect("write");
    let landed = archives(attempt.0.path()).expect("those that have landed");
    assert_eq!(landed.into_keys().collect::<Vec<_>>(), ["0000000003-layer"]);
    std::fs::remove_file(attempt.path("files/0000000003-layer")).expect("remove");
    assert!(matches!(archives(attempt.0.path()), Err(StoredError::Missing { .. })));
}

#[test]
fn one_flipped_bit_is_noticed_wherever_it_is() {
    for (file, at) in [("images/pages-1.img", 0), ("images/pages-1.img", 8_999_999), ("files/0000000003-layer", 1)] {
        let attempt = Attempt::landed();
        attempt.edit(file, |bytes| bytes[at] ^= 0x10);
        let refusal = attempt.refusal();
        assert!(matches!(&refusal, StoredError::Digest { file: found } if found == file), "{refusal}");
        assert!(refusal.to_string().contains(file), "{refusal}");
    }
}

#[test]
fn a_file_that_was_cut_or_has_grown_is_noticed() {
    for change in [-1, 1] {
        let attempt = Attempt::landed();
        let length = usize::try_from(9_000_000 + change).expect("length");
        attempt.edit("images/pages-1.img", |bytes| bytes.resize(length, 0));
        assert!(matches!(attempt.refusal(), StoredError::Length { sent: 9_000_000, .. }));
    }
}

#[test]
fn a_missing_file_is_noticed() {
    let attempt = Attempt::landed();
    std::fs::remove_file(attempt.path("images/core-1.img")).expect("remove");
    assert!(matches!(attempt.refusal(), StoredError::Missing { file } if file == "images/core-1.img"));
}

#[test]
fn what_was_never_sent_is_noticed() {
    let attempt = Attempt::landed();
    std::fs::write(attempt.path("images/tmpfs-1.tar.gz.img"), b"x").expect("write");
    assert!(matches!(attempt.refusal(), StoredError::Extra { .. }));

    let attempt = Attempt::landed();
    let (image, aside) = (attempt.path("images/core-1.img"), attempt.path("aside"));
    std::fs::rename(&image, &aside).expect("rename");
    std::os::unix::fs::symlink(&aside, &image).expect("link");
    assert!(matches!(attempt.refusal(), StoredError::Extra { .. }), "a link to the same bytes");
}

#[test]
fn what_a_criu_waits_at_is_no_image() {
    let (attempt, mode) = (Attempt::landed(), Mode::RUSR | Mode::WUSR);
    mknodat(CWD, attempt.path("images/inventory.img"), FileType::Fifo, mode, 0).expect("FIFO");
    verify(attempt.0.path()).expect("it has landed");
    std::fs::remove_file(attempt.path("images/inventory.img")).expect("remove");
    std::fs::write(attempt.path("images/inventory.img"), b"x").expect("write");
    assert!(matches!(attempt.refusal(), StoredError::Extra { .. }), "an image that was not sent");

    let attempt = Attempt::landed();
    mknodat(CWD, attempt.path("images/other.img"), FileType::Fifo, mode, 0).expect("FIFO");
    assert!(matches!(attempt.refusal(), StoredError::Extra { .. }), "nobody waits at that");
}

#[test]
fn nothing_is_used_without_its_manifest() {
    let attempt = Attempt::landed();
    std::fs::remove_file(attempt.path(MANIFEST)).expect("remove");
    assert!(matches!(attempt.refusal(), StoredError::Manifest { .. }));
    std::fs::write(attempt.path(MANIFEST), b"{\"version\":2,\"parts\":[{}]}").expect("write");
    assert!(matches!(attempt.refusal(), StoredError::Parse { .. }));
    std::fs::write(attempt.path(MANIFEST), b"{\"version\":1}").expect("write");
    assert!(matches!(attempt.refusal(), StoredError::Version { version: 1, .. }));
    File::create(attempt.path(MANIFEST)).and_then(|file| file.set_len(MAX_BYTES + 1)).expect("write");
    assert!(matches!(attempt.refusal(), StoredError::TooLarge { .. }));
}

#[test]
fn a_manifest_that_was_changed_is_noticed() {
    for (from, to) in [("core-1", "../core-1"), ("pages-1", "core-1"), ("\"digest\":\"", "\"digest\":\"x")] {
        let attempt = Attempt::landed();
        attempt.edit(MANIFEST, |bytes| {
            let text = String::from_utf8(std::mem::take(bytes)).expect("text");
            assert!(text.contains(from));
            *bytes = text.replacen(from, to, 1).into_bytes();
        });
        let refusal = attempt.refusal();
        assert!(matches!(refusal, StoredError::Name(_) | StoredError::Entry { .. }), "{refusal}");
    }
}

#[test]
fn the_largest_manifest_can_be_read() {
    let entry = Entry { part: Part::Image { name: "x".repeat(200) }, bytes: u64::MAX, digest: "0".repeat(64) };
    let bytes = serde_json::to_vec(&entry).expect("json").len();
    assert!(bytes < 400, "{bytes} bytes each");
}

#[test]
fn the_pages_file_of_shared_memory_is_no_part_that_was_sent_and_any_other_is_extra() {
    let attempt = Attempt::landed();
    std::fs::create_dir(attempt.path(MEMORY)).expect("dir");
    std::fs::write(attempt.path(MEMORY).join("shared-5.pages"), b"pages").expect("write");
    std::fs::hard_link(attempt.path(MEMORY).join("shared-5.pages"), attempt.path("images/pages-7.img")).expect("link");
    verify(attempt.0.path()).expect("its pages lie where CRIU reads them");
    std::fs::write(attempt.path("images/pages-8.img"), b"pages").expect("write");
    assert!(matches!(attempt.refusal(), StoredError::Extra { file } if file == "images/pages-8.img"));
}
