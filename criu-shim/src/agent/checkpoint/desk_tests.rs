use super::super::about::tests::about;
use super::super::shelf::tests::{store, subject};
use super::*;
use crate::local::ContainerType;
use crate::supervised::{Checkpoints as Rules, Identity};
use tideover_init::record::NEW;

const GAVE_UP: &str = r#"{"version":1,"sequence":1,"atMillis":1,"cause":"uncleanExitCode","code":7,"ranMillis":5,"outcome":"restoreCheckpoint","rule":"startLimit"}"#;

/// A node with the place of a container that has given up, and a bundle for the one that comes after it.
struct Node {
    root: tempfile::TempDir,
    checkpoints: Checkpoints,
}

impl Node {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("dir");
        let checkpoints = Checkpoints::new(root.path().join("checkpoints"), 1 << 30, Default::default());
        checkpoints.shelf.clear().expect("made");
        let node = Self { root, checkpoints };
        let bundle = node.root.path().join("bundle");
        std::fs::create_dir(&bundle).expect("dir");
        let config = serde_json::json!({
            "root": { "path": "rootfs" }, "annotations": { "io.kubernetes.cri.image-name": "app:1" },
        });
        std::fs::write(bundle.join("config.json"), config.to_string()).expect("write");
        node
    }

    fn place(&self, id: &str, record: &str) {
        let place = self.root.path().join("run/tideover-init").join(id);
        std::fs::create_dir_all(place.join("inside")).expect("dir");
        let rules = Rules { interval_millis: 10_000, keep: 2, proven_millis: 10_000 };
        let subject = subject();
        let identity = Identity {
            pod_namespace: subject.pod_namespace,
            pod_name: subject.pod_name,
            pod_uid: subject.pod_uid,
            container_name: subject.container_name,
            program: "p".into(),
            checkpoints: Some(rules),
        };
        std::fs::write(place.join("identity.json"), serde_json::to_string(&identity).expect("JSON")).expect("write");
        std::fs::write(place.join("inside").join(NEW), format!("{record}\n")).expect("write");
    }

    fn find(&self, id: &str) -> (&'static str, Vec<&'static str>) {
        self.find_beside(id, None)
    }

    /// The same, while a restore into the container `other` is under way.
    fn find_beside(&self, id: &str, other: Option<&str>) -> (&'static str, Vec<&'static str>) {
        let create = Create {
            container_id: id.into(),
            bundle: "/bundle".into(),
            pod_namespace: "shop".into(),
            pod_name: "web-0".into(),
            pod_uid: "u".into(),
            container_name: "app".into(),
            container_type: ContainerType::Container,
            replacement_of: None,
            rehearsal_of: None,
        };
        let (mut news, facts) = (Vec::new(), || Ok(about(1, 1).host));
        let node = NodeRoot::at(self.root.path());
        let is_restoring = |id: &str| other == Some(id);
        let found = find(&self.checkpoints, &node, (&subject(), &create), facts, is_restoring, &mut news);
        let found = found.expect("found");
        let found = match found {
            Found::Cold => "cold",
            Found::Cut => "cut",
            Found::Checkpoint(about, _) => ["0", "1", "2", "3"][usize::try_from(about.number).expect("small")],
        };
        let told = news.iter().map(|news| match news {
            News::Poisoned(..) => "poisoned",
            News::NoneGood { .. } => "none good",
            _ => "other",
        });
        (found, told.collect())
    }

    fn ran(&self, id: &str, at: u64) {
        self.checkpoints.shelf.edit(&subject(), |ledger| ledger.ran(id, at)).expect("written");
    }
}

#[test]
fn a_container_that_has_asked_for_nothing_starts_cold() {
    let node = Node::new();
    assert_eq!(node.find("a"), ("cold", vec![]));
    store(&node.checkpoints.shelf, 1, |_| {});
    node.place("a", &GAVE_UP.replace("restoreCheckpoint", "exit"));
    assert_eq!(node.find("b"), ("cold", vec![]));
}

#[test]
fn newest_then_older_then_cold_where_what_is_restored_crashes_fast() {
    let node = Node::new();
    store(&node.checkpoints.shelf, 1, |_| {});
    store(&node.checkpoints.shelf, 2, |_| {});
    node.place("a", GAVE_UP);
    assert_eq!(node.find("b"), ("2", vec![]));
    node.ran("b", 0);
    node.place("b", GAVE_UP);
    assert_eq!(node.find("c"), ("1", vec!["poisoned"]));
    node.ran("c", 0);
    node.place("c", GAVE_UP);
    assert_eq!(node.find("d"), ("cold", vec!["poisoned", "none good"]));
    assert_eq!(node.find("d"), ("cold", vec![]), "the wish is answered");
}

#[test]
fn a_checkpoint_whose_restore_was_cut_short_is_not_tried_again() {
    let node = Node::new();
    store(&node.checkpoints.shelf, 1, |_| {});
    store(&node.checkpoints.shelf, 2, |_| {});
    node.place("a", GAVE_UP);
    assert_eq!(node.find("b"), ("2", vec![]));
    assert_eq!(node.find("b"), ("cut", vec![]), "another agent");
    assert_eq!(node.find("c"), ("1", vec!["poisoned"]));
}

#[test]
fn a_restore_of_which_only_the_shims_mark_is_left_has_run() {
    let node = Node::new();
    store(&node.checkpoints.shelf, 1, |_| {});
    node.place("a", GAVE_UP);
    assert_eq!(node.find("b"), ("1", vec![]));
    let work = node.checkpoints.shelf.restoring(&subject(), "b").join(WORK);
    crate::local::mark_ran(&work).expect("marked");
    assert_eq!(node.find("c"), ("cold", vec![]), "its wish was answered");
}

#[test]
fn one_that_is_not_as_it_was_stored_is_told_and_the_older_one_taken() {
    let node = Node::new();
    store(&node.checkpoints.shelf, 1, |_| {});
    store(&node.checkpoints.shelf, 2, |_| {});
    let pages = node.checkpoints.shelf.checkpoint(&subject(), 2).join("memory/1.pages");
    std::fs::write(pages, "PAGES").expect("write");
    node.place("a", GAVE_UP);
    assert_eq!(node.find("b"), ("1", vec!["poisoned"]));
}

#[test]
fn one_of_another_image_is_of_no_use() {
    let node = Node::new();
    store(&node.checkpoints.shelf, 1, |about| about.image = "app:0".into());
    node.place("a", GAVE_UP);
    assert_eq!(node.find("b"), ("cold", vec!["none good"]));
}

#[test]
fn no_container_starts_while_a_checkpoint_is_restored_into_another() {
    let node = Node::new();
    store(&node.checkpoints.shelf, 1, |_| {});
    node.place("a", GAVE_UP);
    assert_eq!(node.find("b"), ("1", vec![]));
    assert_eq!(node.find_beside("c", Some("b")), ("cut", vec![]), "their files are the same");
    assert_eq!(node.find_beside("c", Some("z")), ("cold", vec!["poisoned", "none good"]));
}

#[test]
fn one_that_can_not_be_copied_is_passed_over_and_not_marked() {
    let node = Node::new();
    store(&node.checkpoints.shelf, 1, |_| {});
    store(&node.checkpoints.shelf, 2, |_| {});
    let images = node.checkpoints.shelf.checkpoint(&subject(), 2).join("images");
    let aside = node.root.path().join("aside");
    std::fs::rename(&images, &aside).expect("aside");
    std::os::unix::fs::symlink(&images, &images).expect("a link that leads to itself");
    node.place("a", GAVE_UP);
    assert_eq!(node.find("b"), ("1", vec![]));
    std::fs::remove_file(&images).expect("remove");
    std::fs::rename(&aside, &images).expect("back");
    node.ran("b", 0);
    node.place("b", GAVE_UP);
    assert_eq!(node.find("c"), ("2", vec!["poisoned"]), "the first is, and the second never was");
}
