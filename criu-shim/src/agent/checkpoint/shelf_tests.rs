use super::super::about::tests::about;
use super::*;
use crate::agent::files::TreeKind;
use crate::agent::files::archive;
use crate::agent::transfer::hashing::Digest;
use crate::agent::transfer::manifest::{Landed, Manifest};
use crate::agent::transfer::message::Part;
use std::os::unix::fs::PermissionsExt;

pub(in crate::agent::checkpoint) fn subject() -> Subject {
    Subject {
        pod_namespace: "shop".into(),
        pod_name: "web-0".into(),
        pod_uid: "u".into(),
        container_name: "app".into(),
    }
}

/// What a last round leaves: an image, an archive of a volume, and memory of a process and of an object.
fn land(landing: &Path) {
    for directory in [IMAGES, FILES, MEMORY, WORK] {
        std::fs::create_dir_all(landing.join(directory)).expect("dir");
    }
    let mut archived = Vec::new();
    archive::begin(&mut archived, TreeKind::Volume, true);
    archive::end(&mut archived);
    let mut manifest = Manifest::default();
    for (part, bytes) in [
        (Part::Image { name: "core-1.img".into() }, b"core".to_vec()),
        (Part::Volume { name: "data".into(), round: 1 }, archived),
    ] {
        let (place, name) = part.place().expect("a name").expect("a file");
        std::fs::write(landing.join(place).join(name), &bytes).expect("write");
        let landed = Landed { bytes: bytes.len() as u64, digest: Digest::File(blake3::hash(&bytes)) };
        assert!(manifest.add(part, landed));
    }
    stored::store(landing, &manifest, Vec::new()).expect("store");
    for (name, bytes) in [("1.pages", "pages"), ("1.index", "index"), ("shared-5.pages", "shared")] {
        std::fs::write(landing.join(MEMORY).join(name), bytes).expect("write");
    }
    let image = landing.join(IMAGES).join("pages-shmem-5.img");
    std::fs::hard_link(landing.join(MEMORY).join("shared-5.pages"), image).expect("link");
}

/// Stores a checkpoint as it would be.
pub(in crate::agent::checkpoint) fn store(shelf: &Shelf, number: u64, change: impl FnOnce(&mut About)) {
    let (landing, _) = shelf.taking();
    land(&landing);
    let (memory, bytes) = Shelf::look(&landing).expect("as it was sent");
    let mut about = About { memory, ..about(number, bytes) };
    change(&mut about);
    shelf.edit(&subject(), |ledger| ledger.next = number + 1).expect("ledger");
    shelf.publish(&subject(), &landing, &about).expect("published");
}

fn shelf() -> (tempfile::TempDir, Shelf) {
    let directory = tempfile::tempdir().expect("dir");
    let shelf = Shelf::new(directory.path().join("checkpoints"), 1 << 30);
    shelf.clear().expect("made");
    (directory, shelf)
}

#[test]
fn what_was_published_is_there_for_root_alone_and_what_was_half_done_is_not() {
    let (_directory, shelf) = shelf();
    store(&shelf, 1, |_| {});
    land(&shelf.taking().0);
    shelf.clear().expect("cleared");
    assert!(!shelf.taking().0.exists());
    let stored = shelf.stored(&subject()).expect("listed");
    assert_eq!(stored.iter().map(|about| about.number).collect::<Vec<_>>(), [1]);
    assert_eq!(shelf.total().expect("total"), stored[0].bytes);
    let mode = |path: &Path| path.metadata().expect("there").permissions().mode() & 0o777;
    let checkpoint = shelf.checkpoint(&subject(), 1);
    let pod = checkpoint.parent().and_then(Path::parent).expect("a parent");
    assert_eq!((mode(pod), mode(&checkpoint.join(ABOUT))), (0o700, 0o600));
    shelf.forget(&subject()).expect("forgotten");
    assert!(shelf.all().expect("listed").is_empty());
}

#[test]
fn a_restore_reads_a_copy_that_it_may_use_up() {
    let (_directory, shelf) = shelf();
    store(&shelf, 1, |_| {});
    let about = shelf.stored(&subject()).expect("listed").remove(0);
    for _ in 0..2 {
        let copy = shelf.prepare(&subject(), &about, "c").expect("as it was stored");
        std::fs::write(copy.join(MEMORY).join("1.pages"), "").expect("used up");
        std::fs::remove_file(copy.join(MEMORY).join("1.index")).expect("used up");
        std::fs::remove_file(copy.join(MEMORY).join("shared-5.pages")).expect("used up");
    }
    shelf.clear_restoring(&subject(), "c").expect("cleared");
    shelf.prepare(&subject(), &about, "c").expect("again");
}

#[test]
fn a_byte_that_has_changed_since_is_found_before_anything_is_restored() {
    for file in ["images/core-1.img", "files/0000000001-volume-data", "memory/1.pages", "memory/shared-5.pages"] {
        let (_directory, shelf) = shelf();
        store(&shelf, 1, |_| {});
        let about = shelf.stored(&subject()).expect("listed").remove(0);
        let path = shelf.checkpoint(&subject(), 1).join(file);
        let mut bytes = std::fs::read(&path).expect("there");
        bytes[0] ^= 1;
        std::fs::write(&path, bytes).expect("write");
        shelf.prepare(&subject(), &about, "c").expect_err(file);
    }
    let (_directory, shelf) = shelf();
    store(&shelf, 1, |_| {});
    let about = shelf.stored(&subject()).expect("listed").remove(0);
    std::fs::remove_file(shelf.checkpoint(&subject(), 1).join("memory/1.pages")).expect("removed");
    shelf.prepare(&subject(), &about, "c").expect_err("memory is missing");
}

#[test]
fn a_checkpoint_is_marked_once_and_stays_marked() {
    let (_directory, shelf) = shelf();
    store(&shelf, 1, |_| {});
    let poison = || Some(Poison { number: 1, why: "it crashed".into() });
    let (about, why) = shelf.judge(&subject(), 7, |_| poison()).expect("judged").expect("marked");
    assert_eq!((about.number, why.as_str()), (1, "it crashed"));
    assert!(shelf.judge(&subject(), 8, |_| poison()).expect("judged").is_none());
    assert_eq!(shelf.stored(&subject()).expect("listed")[0].poisoned.as_ref().map(|mark| mark.at_millis), Some(7));
    assert!(shelf.judge(&subject(), 8, |_| Some(Poison { number: 9, why: String::new() })).expect("gone").is_none());
}

#[test]
fn a_description_that_nobody_understands_is_of_no_checkpoint() {
    let (_directory, shelf) = shelf();
    store(&shelf, 1, |_| {});
    store(&shelf, 2, |about| about.version = 9);
    std::fs::write(shelf.checkpoint(&subject(), 1).join(ABOUT), "garbage").expect("write");
    assert!(shelf.stored(&subject()).expect("listed").is_empty());
    std::fs::write(shelf.checkpoint(&subject(), 1).parent().expect("a parent").join(LEDGER), "garbage").expect("write");
    shelf.ledger(&subject()).expect_err("what is remembered is not guessed at");
}
