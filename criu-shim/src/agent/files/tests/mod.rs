//! Trees that crossed are equal to those they were made of. Run as root, because owners, device nodes and trusted attributes
//! are part of the promise.

mod held;
mod hostile;
mod overlay;
mod random;
mod rounds;
mod watched;

use crate::agent::files::TreeKind;
use crate::agent::files::changes::{Holding, is_doubtful};
use crate::agent::files::held::Held;
use crate::agent::files::tree::{Tree, now};
use crate::agent::files::unpack::unpack;
use crate::agent::files::walk::facts_of_open;
use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

const LIMIT: u64 = 1 << 40;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A directory on the machine's disk, and one on a tmpfs.
fn on_disk_and_in_memory() -> [tempfile::TempDir; 2] {
    ["/var/tmp", "/dev/shm"].map(|place| tempfile::tempdir_in(place).expect("a directory"))
}

/// A tree that is sent to another, round by round.
struct Rounds {
    tree: Arc<Mutex<Tree>>,
    kind: TreeKind,
    to: PathBuf,
    /// It is noted what happens in the tree, so that the last look is at that alone.
    is_watched: bool,
}

impl Rounds {
    fn new(from: &Path, to: &Path, kind: TreeKind) -> Self {
        let tree = Arc::new(Mutex::new(Tree::new(from.to_owned(), kind)));
        Self { tree, kind, to: to.to_owned(), is_watched: false }
    }

    /// The same, watched. What this process does counts too.
    fn watched(from: &Path, to: &Path, kind: TreeKind) -> Self {
        let rounds = Self { is_watched: true, ..Self::new(from, to, kind) };
        rounds.tree().watch_this_process();
        rounds
    }

    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().expect("the tree")
    }

    /// The archive of another round.
    fn pack(&self, held: &Held, frozen: bool) -> Result<Vec<u8>, String> {
        let began = now();
        if self.is_watched {
            self.tree().note_events(frozen);
        }
        let packing = Tree::look(&self.tree, held, began, frozen).map_err(|error| crate::causes::chain(&error))?;
        let mut archive = Vec::new();
        if let Some(mut packing) = packing {
            packing.read_to_end(&mut archive).map_err(|error| crate::causes::chain(&error))?;
        }
        Ok(archive)
    }

    /// Another round, and how many bytes it had.
    fn round(&self, held: &Held, frozen: bool) -> usize {
        let archive = self.pack(held, frozen).expect("pack");
        if !archive.is_empty() {
            unpack(&self.to, self.kind, archive.as_slice(), LIMIT).expect("unpack");
        }
        archive.len()
    }

    /// A round while nobody runs.
    fn last(&self) -> usize {
        self.round(&Held::default(), true)
    }
}

/// Waits until the time at which a file has changed is no reason for doubt any more.
fn grow_old(path: &Path) {
    let file = std::fs::File::open(path).expect("the file");
    let facts = facts_of_open(file.as_fd()).expect("its facts");
    while is_doubtful(&facts, Holding::default(), now()) {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// Everything about a tree that is to be equal, by path.
fn describe(root: &Path) -> BTreeMap<PathBuf, String> {
    let (mut found, mut stack, mut names) = (BTreeMap::new(), vec![PathBuf::new()], HashMap::new());
    while let Some(relative) = stack.pop() {
        let path = root.join(&relative);
        let metadata = path.symlink_metadata().expect("metadata");
        let kind = metadata.file_type();
        let content = if kind.is_file() {
            blake3::hash(&std::fs::read(&path).expect("read")).to_hex().to_string()
        } else if kind.is_symlink() {
            format!("{:?}", path.read_link().expect("link"))
        } else if kind.is_dir() {
            let mut below: Vec<_> =
                path.read_dir().expect("dir").map(|entry| relative.join(entry.expect("entry").file_name())).collect();
            below.sort();
            below.reverse();
            stack.extend(below);
            String::new()
        } else {
            format!("{}", metadata.rdev())
        };
        let attributes: BTreeMap<_, _> = xattr::list(&path)
            .expect("xattrs")
            .map(|name| (name.clone(), xattr::get(&path, &name).expect("value")))
            .collect();
        let size = if kind.is_dir() { 0 } else { metadata.size() };
        // Which of its names comes first: the same for all names of one file.
        let first = if kind.is_dir() {
            relative.clone()
        } else {
            names.entry((metadata.dev(), metadata.ino())).or_insert_with(|| relative.clone()).clone()
        };
        let text = format!(
            "{:o} {}:{} {size} {}.{} {first:?} {content} {attributes:?}",
            metadata.mode(),
            metadata.uid(),
            metadata.gid(),
            metadata.mtime(),
            metadata.mtime_nsec()
        );
        found.insert(relative, text);
    }
    found
}

#[track_caller]
fn assert_equal(one: &Path, other: &Path) {
    let (expected, found) = (describe(one), describe(other));
    let differing: Vec<_> = expected
        .keys()
        .chain(found.keys())
        .filter(|path| expected.get(*path) != found.get(*path))
        .map(|path| (path, expected.get(path), found.get(path)))
        .collect();
    assert!(differing.is_empty(), "{differing:#?}");
}
