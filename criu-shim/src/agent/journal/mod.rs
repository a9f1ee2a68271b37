//! What this node was about to do, on its disk before it does it.
//!
//! One file per Migration, replaced atomically and fsynced. The journal says what may have happened here; how an
//! attempt was decided is only ever known from the API object. It holds no state of a pod.

mod before;

use crate::criu::ProcessId;
use crate::throttle::CpuRecord;
use serde::{Deserialize, Serialize};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Version of the format. Whoever comes after an upgrade must understand what was written before it, so a field that is added has a
/// value where it is missing, and none that was ever written changes its meaning. Where that does not do, [`read`] takes the version
/// before as well: see [`before`]. Of a newer version nothing is known: whoever goes back to an older agent goes on when the newer one
/// is there again.
const VERSION: u32 = 2;
/// Largest journal file that is read, bytes.
const MAX_BYTES: u64 = 64 << 10;

/// Why the journal can't be used.
#[derive(Debug, Error)]
pub enum JournalError {
    /// The directory can't be made or listed.
    #[error("open the journal {path:?}")]
    Open {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// An entry can't be written.
    #[error("write the journal entry {path:?}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// An entry can't be encoded.
    #[error("encode a journal entry")]
    Encode(#[source] serde_json::Error),
    /// An entry can't be read.
    #[error("read the journal entry {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// An entry is not what this version writes. Guessing what it meant could thaw what is committed.
    #[error("parse the journal entry {path:?}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// An entry of another version.
    #[error("the journal entry {path:?} has version {version}, this agent knows {VERSION}")]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
}

/// What is under way here for one Migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Format.
    pub version: u32,
    /// Namespace of the Migration.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// The attempt.
    pub attempt: u32,
    /// What this node's side is up to.
    pub side: Side,
}

impl Entry {
    /// An entry of this version.
    pub fn new(namespace: &str, name: &str, uid: &str, attempt: u32, side: Side) -> Self {
        let (namespace, name, uid) = (namespace.to_owned(), name.to_owned(), uid.to_owned());
        Self { version: VERSION, namespace, name, uid, attempt, side }
    }
}

/// One node's side of a Migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Side {
    /// This node is the source.
    Source(SourceEntry),
    /// This node is the target.
    Target(TargetEntry),
    /// This node is the source, and nothing is frozen.
    Slowed(SlowedEntry),
    /// No Migration: a pod of this node, whose UID stands for one, may be frozen for a checkpoint.
    Checkpoint(CheckpointEntry),
}

/// Written before the freeze, removed when the pod runs again or is gone: while it is there, the pod may be frozen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceEntry {
    /// Namespace of the pod.
    pub pod_namespace: String,
    /// Name of the pod.
    pub pod_name: String,
    /// UID of the pod.
    pub pod_uid: String,
    /// Its containers, all of which are frozen at one cut.
    pub containers: Vec<FrozenEntry>,
}

/// One container of a pod that may be frozen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FrozenEntry {
    /// Id of the container.
    pub container_id: String,
    /// Its cgroup, as a path on the node.
    pub cgroup: PathBuf,
    /// The CRIU that was started for it. Nothing is thawed before that has ended.
    pub criu: ProcessId,
    /// Its cpu limits and processors that are, or are about to be, other than they were.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cpu: Vec<CpuRecord>,
}

/// Written before a container is slowed down, removed when it has its cpu time back, or replaced by a [`SourceEntry`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SlowedEntry {
    /// Cpu limits that are, or are about to be, other than they were.
    pub cpu: Vec<CpuRecord>,
}

/// Written before the freeze for a checkpoint, removed when the pod runs again. Nobody else decides about that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointEntry {
    /// The container's cgroup, as a path on the node.
    pub cgroup: PathBuf,
    /// The CRIU that was started for it. Nothing is thawed before that has ended.
    pub criu: ProcessId,
    /// Its cpu limits and processors that are, or are about to be, other than they were.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cpu: Vec<CpuRecord>,
}

/// Written before anything is received, removed when nothing of it is left or the processes run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetEntry {
    /// The containers that come.
    pub containers: Vec<LaneEntry>,
    /// The boot in which it was written: of what was restored before another one, nothing runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<String>,
}

/// One container that comes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LaneEntry {
    /// Its name in the pod. Empty where an agent has begun that knew of one container a pod only.
    pub container: String,
    /// The restore that a shim was told to begin. From here on CRIU may rebuild the processes, and this node may commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<RestoreEntry>,
    /// The processes run here.
    #[serde(default)]
    pub resumed: bool,
    /// Cpu limits that are, or are about to be, lifted for the restore.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cpu: Vec<CpuRecord>,
}

/// A restore that a shim was told to begin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RestoreEntry {
    /// By which the relay names it.
    pub token: String,
    /// UID of the replacement pod.
    pub pod_uid: String,
    /// Container that is restored.
    pub container_id: String,
    /// Its bundle, as a path on the node.
    pub bundle: PathBuf,
}

/// The journal's directory.
#[derive(Clone, Debug)]
pub struct Journal {
    directory: PathBuf,
}

impl Journal {
    /// Opens it, making the directory where there is none.
    ///
    /// # Errors
    /// [`JournalError::Open`].
    pub fn open(directory: &Path) -> Result<Self, JournalError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|source| JournalError::Open { path: directory.to_owned(), source })?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// Writes an entry in place of the Migration's last one. On return it is on the disk.
    ///
    /// # Errors
    /// The last entry stands then, and what was about to be done must not be done.
    pub fn write(&self, entry: &Entry) -> Result<(), JournalError> {
        let path = self.path(&entry.uid);
        let bytes = serde_json::to_vec(entry).map_err(JournalError::Encode)?;
        let temporary = path.with_extension("new");
        let write = || -> std::io::Result<()> {
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &path)?;
            File::open(&self.directory)?.sync_all()
        };
        write().map_err(|source| JournalError::Write { path: path.clone(), source })
    }

    /// Removes the Migration's entry. One that is not there is removed already.
    ///
    /// # Errors
    /// [`JournalError::Write`].
    pub fn remove(&self, uid: &str) -> Result<(), JournalError> {
        let path = self.path(uid);
        let removed = match std::fs::remove_file(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => Err(error),
            Ok(()) => File::open(&self.directory).and_then(|directory| directory.sync_all()),
        };
        removed.map_err(|source| JournalError::Write { path, source })
    }

    /// Every entry.
    ///
    /// # Errors
    /// Any entry that can't be read or understood is an error: it may be all that is known about a frozen pod.
    pub fn entries(&self) -> Result<Vec<Entry>, JournalError> {
        let open = |source| JournalError::Open { path: self.directory.clone(), source };
        let mut entries = Vec::new();
        for file in self.directory.read_dir().map_err(open)? {
            let path = file.map_err(open)?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                entries.push(read(&path)?);
            }
        }
        entries.sort_by(|left: &Entry, right| left.uid.cmp(&right.uid));
        Ok(entries)
    }

    fn path(&self, uid: &str) -> PathBuf {
        // A UID comes from the API server; whatever it holds, it stays one name in this directory.
        let name: String = uid
            .chars()
            .map(|letter| if letter.is_ascii_alphanumeric() || letter == '-' { letter } else { '_' })
            .collect();
        self.directory.join(format!("{name}.json"))
    }
}

fn read(path: &Path) -> Result<Entry, JournalError> {
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_BYTES).read_to_end(&mut text))
        .map_err(|source| JournalError::Read { path: path.to_owned(), source })?;
    let parse = |source| JournalError::Parse { path: path.to_owned(), source };
    let version: VersionOnly = serde_json::from_slice(&text).map_err(parse)?;
    match version.version {
        VERSION => serde_json::from_slice(&text).map_err(parse),
        before::VERSION => serde_json::from_slice(&text).map(before::Entry::into_entry).map_err(parse),
        version => Err(JournalError::Version { path: path.to_owned(), version }),
    }
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::throttle::{AffinityRecord, Bandwidth, LimitRecord};

    fn entry(uid: &str, attempt: u32) -> Entry {
        Entry::new("default", "move", uid, attempt, Side::Target(TargetEntry::default()))
    }

    #[test]
    fn the_last_entry_written_is_the_one_read() {
        let directory = tempfile::tempdir().expect("dir");
        let journal = Journal::open(directory.path()).expect("open");
        journal.write(&entry("a", 1)).expect("write");
        journal.write(&entry("b", 1)).expect("write");
        journal.write(&entry("a", 2)).expect("write");
        assert_eq!(journal.entries().expect("entries"), [entry("a", 2), entry("b", 1)]);
        journal.remove("a").expect("remove");
        journal.remove("a").expect("removing twice is no error");
        assert_eq!(journal.entries().expect("entries"), [entry("b", 1)]);
    }

    #[test]
    fn a_write_that_was_cut_short_leaves_the_entry_before() {
        let directory = tempfile::tempdir().expect("dir");
        let journal = Journal::open(directory.path()).expect("open");
        journal.write(&entry("a", 1)).expect("write");
        std::fs::write(directory.path().join("a.new"), b"{\"versio").expect("half a file");
        assert_eq!(journal.entries().expect("entries"), [entry("a", 1)]);
    }

    #[test]
    fn an_entry_that_is_not_understood_is_an_error_and_not_nothing() {
        let directory = tempfile::tempdir().expect("dir");
        let journal = Journal::open(directory.path()).expect("open");
        std::fs::write(directory.path().join("a.json"), b"{\"version\":9}").expect("file");
        assert!(matches!(journal.entries(), Err(JournalError::Version { version: 9, .. })));
        std::fs::write(directory.path().join("a.json"), b"garbage").expect("file");
        assert!(matches!(journal.entries(), Err(JournalError::Parse { .. })));
    }

    /// Entries as agents have written them, the oldest form of each first.
    const WRITTEN: [&str; 10] = [
        r#"{"version":1,"namespace":"n","name":"m","uid":"u","attempt":2,"side":{"source":{"podNamespace":"n","podName":"p",
            "podUid":"pu","containerId":"c","cgroup":"/sys/fs/cgroup/freezer/x","criu":{"pid":7,"startTime":9}}}}"#,
        r#"{"version":1,"namespace":"n","name":"m","uid":"u","attempt":2,"side":{"source":{"podNamespace":"n","podName":"p",
            "podUid":"pu","containerId":"c","cgroup":"/sys/fs/cgroup/freezer/x","criu":{"pid":7,"startTime":9},
            "cpu":[{"cgroup":"/sys/fs/cgroup/cpu/x","found":{"quota":10000,"period":100000},"set":[{"quota":null,"period":100000}]}]}}}"#,
        r#"{"version":1,"namespace":"n","name":"m","uid":"u","attempt":2,"side":{"target":{"resumed":false}}}"#,
        r#"{"version":1,"namespace":"n","name":"m","uid":"u","attempt":2,"side":{"target":{"restore":{"token":"t","podUid":"q",
            "containerId":"c","bundle":"/b"},"resumed":true}}}"#,
        r#"{"version":1,"namespace":"n","name":"m","uid":"u","attempt":2,"side":{"target":{"resumed":false,
            "cpu":[{"cgroup":"/sys/fs/cgroup/cpu/x","found":{"quota":10000,"period":100000},"set":[]}]}}}"#,
        r#"{"version":1,"namespace":"n","name":"m","uid":"u","attempt":2,"side":{"slowed":{
            "cpu":[{"cgroup":"/sys/fs/cgroup/cpu/x","found":{"quota":10000,"period":100000},"set":[{"quota":3000,"period":100000}]}]}}}"#,
        r#"{"version":1,"namespace":"n","name":"m","uid":"u","attempt":2,"side":{"checkpoint":{
            "cgroup":"/sys/fs/cgroup/freezer/x","criu":{"pid":7,"startTime":9}}}}"#,
        r#"{"version":2,"namespace":"n","name":"m","uid":"u","attempt":2,"side":{"source":{"podNamespace":"n","podName":"p",
            "podUid":"pu","containers":[{"containerId":"c","cgroup":"/sys/fs/cgroup/freezer/x","criu":{"pid":7,"startTime":9}}]}}}"#,
        r#"{"version":2,"namespace":"n","name":"m","uid":"u","attempt":2,"side":{"target":{"containers":[
            {"container":"app","resumed":false},{"container":"log","resumed":true}]}}}"#,
        r#"{"version":2,"namespace":"n","name":"m","uid":"u","attempt":2,"side":{"source":{"podNamespace":"n","podName":"p",
            "podUid":"pu","containers":[{"containerId":"c","cgroup":"/sys/fs/cgroup/freezer/x","criu":{"pid":7,"startTime":9},
            "cpu":[{"cgroup":"/sys/fs/cgroup/freezer/x","one":5}]}]}}}"#,
    ];

    #[test]
    fn what_an_agent_before_an_upgrade_has_written_is_understood() {
        let directory = tempfile::tempdir().expect("dir");
        let journal = Journal::open(directory.path()).expect("open");
        let sides = WRITTEN.map(|written| {
            std::fs::write(directory.path().join("u.json"), written).expect("file");
            let mut entries = journal.entries().expect(written);
            let entry = entries.pop().expect("an entry");
            assert_eq!((entry.namespace.as_str(), entry.uid.as_str(), entry.attempt), ("n", "u", 2));
            entry.side
        });
        let found = Bandwidth { quota: Some(10_000), period: 100_000 };
        let limit = |set: Vec<Bandwidth>| {
            let cgroup = "/sys/fs/cgroup/cpu/x".into();
            vec![CpuRecord::Limit(LimitRecord { cgroup, found, set })]
        };
        let bandwidth = |quota| Bandwidth { quota, period: 100_000 };
        let (cgroup, criu) = (PathBuf::from("/sys/fs/cgroup/freezer/x"), ProcessId { pid: 7, start_time: 9 });
        let source = |cpu| {
            let container = FrozenEntry { container_id: "c".into(), cgroup: cgroup.clone(), criu, cpu };
            Side::Source(SourceEntry {
                pod_namespace: "n".into(),
                pod_name: "p".into(),
                pod_uid: "pu".into(),
                containers: vec![container],
            })
        };
        let target = |containers: Vec<LaneEntry>| Side::Target(TargetEntry { containers, boot: None });
        let named = |name: &str, resumed| LaneEntry { container: name.into(), resumed, ..LaneEntry::default() };
        let restore =
            RestoreEntry { token: "t".into(), pod_uid: "q".into(), container_id: "c".into(), bundle: "/b".into() };
        let expected = [
            source(Vec::new()),
            source(limit(vec![bandwidth(None)])),
            target(vec![LaneEntry::default()]),
            target(vec![LaneEntry { restore: Some(restore), resumed: true, ..LaneEntry::default() }]),
            target(vec![LaneEntry { cpu: limit(Vec::new()), ..LaneEntry::default() }]),
            Side::Slowed(SlowedEntry { cpu: limit(vec![bandwidth(Some(3_000))]) }),
            Side::Checkpoint(CheckpointEntry { cgroup: cgroup.clone(), criu, cpu: Vec::new() }),
            source(Vec::new()),
            target(vec![named("app", false), named("log", true)]),
            source(vec![CpuRecord::Affinity(AffinityRecord { cgroup: cgroup.clone(), one: 5 })]),
        ];
        assert_eq!(sides, expected);
    }

    #[test]
    fn no_uid_leaves_the_directory() {
        let directory = tempfile::tempdir().expect("dir");
        let journal = Journal::open(&directory.path().join("journal")).expect("open");
        journal.write(&entry("../../x", 1)).expect("write");
        assert_eq!(directory.path().read_dir().expect("dir").count(), 1);
    }
}
