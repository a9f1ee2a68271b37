use super::*;
use crate::agent::files::archive::{self, Attributes, Shape};
use crate::agent::files::listing::TreePath;
use crate::agent::transfer::growing::Grower;
use crate::agent::transfer::manifest::Manifest;
use crate::agent::transfer::message::Part;
use std::time::{Duration, Instant};

fn put_bytes(bytes: &[u8], landed: &[u8], off: bool) -> Result<Vec<u8>, Failure> {
    let archive = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(archive.path(), bytes).expect("write");
    let landed = Landed { bytes: landed.len() as u64, digest: blake3::hash(landed).into() };
    let mut used = Vec::new();
    let (file, off) = (File::open(archive.path()).expect("open"), AtomicBool::new(off));
    let put = put(
        archive.path(),
        file,
        &[&AtomicBool::new(false), &off],
        || Some(landed.clone()),
        |archive| {
            archive
                .take(3)
                .read_to_end(&mut used)
                .map(|_| ())
                .map_err(|error| retryable(FailureReason::RestoreFailed, error.to_string()))
        },
    )?;
    assert!(put, "it was whole");
    Ok(used)
}

#[test]
fn an_archive_that_is_not_as_it_was_sent_fails_even_where_it_could_be_unpacked() {
    assert_eq!(put_bytes(b"archive", b"archive", false).expect("as sent"), b"arc");
    let failure = put_bytes(b"archivE", b"archive", false).expect_err("its end differs, which nobody has used");
    assert_eq!(failure.reason, FailureReason::Corrupted);
}

/// An attempt's directory with the archives of a layer and a volume, each of one file.
fn attempt() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("dir");
    std::fs::create_dir(directory.path().join(FILES)).expect("dir");
    let mut manifest = Manifest::default();
    for (part, kind) in [
        (Part::Layer { round: 1 }, TreeKind::Layer),
        (Part::Volume { name: "data".into(), round: 1 }, TreeKind::Volume),
    ] {
        let mut bytes = Vec::new();
        archive::begin(&mut bytes, kind, true);
        let path = TreePath::parse(b"file".to_vec()).expect("a path");
        archive::node(&mut bytes, &path, false, &Shape::File { size: 0 }, &Attributes::default());
        archive::end(&mut bytes);
        let (place, name) = part.place().expect("a name").expect("a file");
        std::fs::write(directory.path().join(place).join(name), &bytes).expect("write");
        let landed = Landed { bytes: bytes.len() as u64, digest: Digest::File(blake3::hash(&bytes)) };
        assert!(manifest.add(part, landed));
    }
    stored::store(directory.path(), &manifest, Vec::new()).expect("store");
    directory
}

fn place_with(
    directory: &Path,
    trees: Trees,
    placed: &mut Placed,
    gone: &AtomicBool,
    place_of: impl Fn(&str) -> Result<(PathBuf, TreeKind), Failure>,
) -> Result<(), Failure> {
    Placing::new(trees, gone, place_of).all_of(directory, placed)
}

#[test]
fn what_lies_in_the_volumes_stays_where_kubelet_gives_a_container_up() {
    let (attempt, pod) = (attempt(), tempfile::tempdir().expect("dir"));
    let of = |tree: &str, container: &str| match tree {
        "volume-data" => (pod.path().join("volume"), TreeKind::Volume),
        _ => (pod.path().join(container), TreeKind::Layer),
    };
    for name in ["volume", "first", "second"] {
        std::fs::create_dir(pod.path().join(name)).expect("dir");
    }
    let there = |path: &str| pod.path().join(path).exists();
    let mut placed = Placed::default();
    let gone = AtomicBool::new(true);
    place_with(attempt.path(), Trees::All, &mut placed, &gone, |tree| Ok(of(tree, "first"))).expect("placed");
    assert!(there("volume/file") && !there("first/file"), "nothing goes into a container that is gone");
    // The archive of all of a volume would remove it.
    std::fs::write(pod.path().join("volume/mark"), "").expect("write");
    let gone = AtomicBool::new(false);
    place_with(attempt.path(), Trees::All, &mut placed, &gone, |tree| Ok(of(tree, "second"))).expect("placed");
    assert!(there("second/file") && there("volume/mark"), "the volume is not filled again");
    std::fs::rename(pod.path().join("volume"), pod.path().join("before")).expect("rename");
    std::fs::create_dir(pod.path().join("volume")).expect("dir");
    place_with(attempt.path(), Trees::All, &mut placed, &gone, |tree| Ok(of(tree, "second"))).expect("placed");
    assert!(there("volume/file"), "another directory is there");
}

#[test]
fn volumes_that_a_container_of_the_pod_uses_are_left_alone() {
    let (attempt, pod) = (attempt(), tempfile::tempdir().expect("dir"));
    let of = |tree: &str| match tree {
        "volume-data" => (pod.path().join("volume"), TreeKind::Volume),
        _ => (pod.path().join("layer"), TreeKind::Layer),
    };
    for name in ["volume", "layer"] {
        std::fs::create_dir(pod.path().join(name)).expect("dir");
    }
    let (mut placed, gone) = (Placed::default(), AtomicBool::new(false));
    place_with(attempt.path(), Trees::LayerOnly, &mut placed, &gone, |tree| Ok(of(tree))).expect("placed");
    assert!(pod.path().join("layer/file").exists() && !pod.path().join("volume/file").exists());
}

#[test]
fn places_are_told_once_into_which_much_has_come() {
    let (attempt, pod) = (attempt(), tempfile::tempdir().expect("dir"));
    let (mut placed, gone) = (Placed::default(), AtomicBool::new(false));
    let of = |tree: &str| (pod.path().join(tree), if tree == LAYER { TreeKind::Layer } else { TreeKind::Volume });
    for tree in [LAYER, "volume-data"] {
        std::fs::create_dir(pod.path().join(tree)).expect("dir");
    }
    place_with(attempt.path(), Trees::All, &mut placed, &gone, |tree| Ok(of(tree))).expect("placed");
    assert!(placed.brought.len() == 2 && placed.brought.values().all(|bytes| *bytes > 0), "{:?}", placed.brought);
    assert_eq!(placed.heavy(), [] as [PathBuf; 0], "little came");
    *placed.brought.get_mut(&pod.path().join(LAYER)).expect("a layer") += HEAVY;
    assert_eq!(placed.heavy(), [pod.path().join(LAYER)]);
    assert_eq!(placed.heavy(), [] as [PathBuf; 0], "it was told");
}

/// An archive of a volume with one file, and the place that it is for.
struct Lands {
    pod: tempfile::TempDir,
    arriving: Arriving,
    grower: Grower,
    bytes: Vec<u8>,
}

impl Lands {
    fn begin() -> Self {
        let pod = tempfile::tempdir().expect("dir");
        std::fs::create_dir(pod.path().join("volume")).expect("dir");
        let mut bytes = Vec::new();
        archive::begin(&mut bytes, TreeKind::Volume, false);
        let path = TreePath::parse(b"file".to_vec()).expect("a path");
        archive::node(&mut bytes, &path, false, &Shape::File { size: 0 }, &Attributes::default());
        let (path, arriving) = (pod.path().join("0000000007-volume-data"), Arriving::default());
        std::fs::write(&path, &bytes).expect("write");
        let (grower, growing) = Growing::begin(path);
        arriving.add(growing);
        grower.has(bytes.len() as u64);
        Self { pod, arriving, grower, bytes }
    }

    /// Puts it in place while `lands` has the rest come. Returns what came of it, and whether it counts as in place.
    fn follow(self, lands: impl FnOnce(Grower, &Path, Vec<u8>)) -> (Result<(), Failure>, bool) {
        self.follow_until(&Arc::default(), lands)
    }

    fn follow_until(
        self,
        off: &Arc<AtomicBool>,
        lands: impl FnOnce(Grower, &Path, Vec<u8>),
    ) -> (Result<(), Failure>, bool) {
        let Self { pod, arriving, grower, bytes } = self;
        let (volume, gone) = (pod.path().join("volume"), AtomicBool::new(false));
        let mut placed = Placed { off: off.clone(), ..Placed::default() };
        let followed = std::thread::scope(|scope| {
            let following = scope.spawn(|| {
                let place_of = |_: &str| Ok((volume.clone(), TreeKind::Volume));
                Placing::new(Trees::All, &gone, place_of).follow(&arriving, &mut placed)
            });
            let begun = Instant::now();
            while !volume.join("file").exists() {
                assert!(begun.elapsed() < Duration::from_secs(30), "it waits for all of the archive");
                std::thread::yield_now();
            }
            lands(grower, &pod.path().join("0000000007-volume-data"), bytes);
            let begun = Instant::now();
            while !following.is_finished() && begun.elapsed() < Duration::from_secs(30) {
                std::thread::yield_now();
            }
            let in_time = following.is_finished();
            off.store(true, Ordering::Relaxed);
            let followed = following.join().expect("no panic");
            assert!(in_time, "it waits for what nobody needs");
            followed
        });
        (followed, !placed.archives.is_empty())
    }
}

fn ends(path: &Path, mut bytes: Vec<u8>) -> Vec<u8> {
    archive::end(&mut bytes);
    std::fs::write(path, &bytes).expect("write");
    bytes
}

#[test]
fn an_archive_is_put_in_place_while_it_lands_and_counts_once_it_is_what_was_sent() {
    let (followed, counts) = Lands::begin().follow(|grower, path, bytes| {
        let bytes = ends(path, bytes);
        grower.landed(Landed { bytes: bytes.len() as u64, digest: blake3::hash(&bytes).into() });
    });
    followed.expect("placed");
    assert!(counts);
}

#[test]
fn an_archive_that_lands_and_is_not_as_it_was_sent_fails_the_attempt() {
    let (followed, counts) = Lands::begin().follow(|grower, path, bytes| {
        let bytes = ends(path, bytes);
        grower.landed(Landed { bytes: bytes.len() as u64, digest: blake3::hash(b"another").into() });
    });
    assert_eq!(followed.expect_err("another one").reason, FailureReason::Corrupted);
    assert!(!counts);
}

#[test]
fn an_archive_that_is_broken_off_is_not_in_place_and_fails_nothing() {
    let (followed, counts) = Lands::begin().follow(|grower, _, _| drop(grower));
    followed.expect("whoever has broken it off says why");
    assert!(!counts);
}

#[test]
fn what_nobody_wants_any_more_is_not_put_in_place() {
    put_bytes(b"archive", b"archive", true).expect_err("called off");
}

#[test]
fn an_archive_that_nobody_wants_any_more_is_not_waited_for() {
    let (mut lands, off) = (None, Arc::<AtomicBool>::default());
    let (followed, counts) = Lands::begin().follow_until(&off, |grower, _, _| {
        off.store(true, Ordering::Relaxed);
        lands = Some(grower);
    });
    followed.expect("it is called off for a reason that others know");
    assert!(lands.is_some() && !counts, "it never ended");
}

#[test]
fn an_archive_that_can_not_be_unpacked_is_not_waited_for() {
    let mut lands = None;
    let (followed, counts) = Lands::begin().follow(|grower, path, mut bytes| {
        bytes.extend([0xff; 64]);
        std::fs::write(path, &bytes).expect("write");
        grower.has(bytes.len() as u64);
        lands = Some(grower);
    });
    assert_eq!(followed.expect_err("it is none").reason, FailureReason::RestoreFailed);
    assert!(lands.is_some() && !counts, "it never ended");
}
