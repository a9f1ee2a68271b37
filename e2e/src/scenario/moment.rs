//! The moments of a move, and how to tell from outside which one it is in.
//!
//! The object tells the phases before the freeze, with their times. Inside the freeze the agents report late, on purpose;
//! there the moments are told by what they leave on the nodes' disks (see `docs/architecture.md`), and by the owner.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde_json::Value;

use super::cluster::Cluster;

const STATE: &str = "/var/lib/tideover";

/// A part of a move, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The phase of that name.
    Preparing,
    /// The phase of that name.
    PreCopying,
    /// A part of that phase: memory lands on the target.
    Copying,
    /// The phase of that name.
    Handover,
    /// The source's journal says that the pod may be frozen; CRIU has written nothing yet.
    Freezing,
    /// CRIU writes images on the source.
    Dumping,
    /// Images land on the target, and not all of them have.
    Transferring,
    /// CRIU rebuilds the processes on the target or holds them; the attempt is not committed yet.
    Restoring,
    /// A part of that: the target has taken the attempt, which it does at the go, and has not committed it yet. Whoever but the
    /// target's agent is ended in it, it is over before that could be proven.
    Taken,
    /// The target owns the application; the source's frozen processes are not ended yet.
    Committed,
    /// The target owns the application, and its page daemon has not brought all memory yet.
    Bringing,
}

impl Moment {
    /// All of them that follow one upon another, in order.
    pub const ALL: [Self; 8] = [
        Self::Preparing,
        Self::PreCopying,
        Self::Handover,
        Self::Freezing,
        Self::Dumping,
        Self::Transferring,
        Self::Restoring,
        Self::Committed,
    ];

    /// The phase of the object that it is, if it is one.
    pub fn phase(self) -> Option<&'static str> {
        match self {
            Self::Preparing => Some("Preparing"),
            Self::PreCopying => Some("PreCopying"),
            Self::Handover => Some("Handover"),
            _ => None,
        }
    }

    /// Whether a move with these signs is in this moment. What begins a moment stays, and so does what ends it, until the
    /// attempt is cleaned up: a move that was in a moment before something happened, and still is after it, was in it all
    /// the time.
    pub fn holds(self, signs: &Signs) -> bool {
        let Signs { owner, disks, .. } = signs;
        match self {
            Self::Preparing | Self::PreCopying | Self::Handover => Some(signs.phase.as_str()) == self.phase(),
            Self::Copying => signs.phase == "PreCopying" && disks.stored > 0,
            Self::Freezing => disks.journal && disks.images == 0,
            Self::Dumping => disks.journal && disks.images > 0 && !disks.dumped && disks.landed == 0,
            Self::Transferring => disks.journal && disks.landed > 0 && disks.landed < disks.images,
            Self::Restoring => disks.journal && disks.restoring && matches!(owner, Owner::Undecided | Owner::Taken),
            Self::Taken => disks.journal && disks.restoring && *owner == Owner::Taken,
            Self::Committed => disks.journal && *owner == Owner::Target,
            Self::Bringing => disks.serving && *owner == Owner::Target,
        }
    }

    /// Whether a move that was in this moment still was when `found` was seen. The owner in it may be older than the disks;
    /// `later` was read after them. A commit that shows only there may have come before; an abort may not: it is what
    /// becomes of a move that something was done to.
    pub fn held_until(self, found: &Signs, later: Owner) -> bool {
        self.holds(found) && (!matches!(self, Self::Restoring | Self::Taken) || later != Owner::Target)
    }
}

/// Who owns the application, as `status.owner` says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Owner {
    /// The source, because no attempt has been decided yet.
    #[default]
    Undecided,
    /// The source, because an attempt was aborted.
    Source,
    /// The target, tentatively: it may still give the attempt back.
    Taken,
    /// The target.
    Target,
}

/// What can be seen of a move.
#[derive(Debug, Clone, Default)]
pub struct Signs {
    /// `status.phase`.
    pub phase: String,
    /// Who owns the application.
    pub owner: Owner,
    /// What lies on the nodes' disks.
    pub disks: Traces,
}

impl Signs {
    /// Of the Migration `object`; the disks have not been looked at.
    pub fn of(object: &Value) -> Self {
        let status = &object["status"];
        let owner = match status["owner"]["node"].as_str() {
            Some(node) if status["sourcePod"]["node"] != node => match status["owner"]["tentative"].as_bool() {
                Some(true) => Owner::Taken,
                _ => Owner::Target,
            },
            Some(_) if status["owner"]["attempt"].as_u64().is_some_and(|attempt| attempt > 0) => Owner::Source,
            _ => Owner::Undecided,
        };
        Self { phase: status["phase"].as_str().unwrap_or_default().to_owned(), owner, disks: Traces::default() }
    }
}

/// What an attempt has left on the disks of its nodes so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traces {
    /// Bytes of memory that have landed on the target ahead of CRIU's images.
    pub stored: u64,
    /// The source's journal has an entry.
    pub journal: bool,
    /// Bytes of CRIU's images on the source.
    pub images: u64,
    /// CRIU has all images of its dump: the one that it writes last is there.
    pub dumped: bool,
    /// Bytes of CRIU's images on the target.
    pub landed: u64,
    /// CRIU has begun its restore: it has opened its log.
    pub restoring: bool,
    /// The page daemon of the target has every process, and has not brought all of their memory.
    pub serving: bool,
}

/// Where the first attempt of one Migration leaves its traces, those of the first container that moves.
#[derive(Debug, Clone)]
pub struct Disks {
    journal: PathBuf,
    source: PathBuf,
    target: PathBuf,
}

impl Disks {
    /// Of the Migration `object`; `None` while it has no target.
    ///
    /// # Errors
    /// When a node is down.
    pub fn of(cluster: &Cluster, object: &Value) -> Result<Option<Self>> {
        let uid = object["metadata"]["uid"].as_str().context("an object without a UID")?;
        let nodes = (object["status"]["sourcePod"]["node"].as_str(), object["status"]["targetNode"].as_str());
        let (Some(source), Some(target)) = nodes else { return Ok(None) };
        let of = |node: &str| Ok::<_, anyhow::Error>(cluster.node(node)?.path(STATE)?);
        let Some(container) = object["status"]["containers"][0].as_str() else { return Ok(None) };
        let attempt = Path::new("images").join(uid).join("1").join(container);
        Ok(Some(Self {
            journal: of(source)?.join("journal").join(format!("{uid}.json")),
            source: of(source)?.join(&attempt),
            target: of(target)?.join(&attempt),
        }))
    }

    /// What is there now. Looked at in the order in which it comes to be.
    pub fn look(&self) -> Traces {
        Traces {
            stored: bytes(&self.target.join("memory"), "pages"),
            journal: self.journal.exists(),
            images: bytes(&self.source.join("images"), "img"),
            dumped: self.source.join("images/inventory.img").exists(),
            landed: bytes(&self.target.join("images"), "img"),
            // CRIU may have begun its log, and wait for the images. Once it has them, this file is gone, where there was one.
            restoring: self.target.join("work/restore.log").exists()
                && self.target.join("images/inventory.img").is_file()
                && !self.target.with_file_name(".unreleased").exists(),
            serving: fs::read_to_string(self.target.join("work/pages.status")).is_ok_and(|said| said == "serving\n"),
        }
    }
}

/// Bytes of the files with this extension in a directory of an attempt; what is not there has none.
fn bytes(directory: &Path, extension: &str) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let files = entries.filter(|entry| entry.path().extension().is_some_and(|found| found == extension));
    files.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}

/// The phase that the Migration `object` was in from `begin` to `end`, by the times in `status.phases`; `None` where it
/// was in two, or in none yet.
pub fn phase_throughout(object: &Value, begin: Timestamp, end: Timestamp) -> Option<String> {
    let entries = object["status"]["phases"].as_array()?.iter();
    let times = entries.filter_map(|entry| Some((entry["phase"].as_str()?, entry["at"].as_str()?.parse().ok()?)));
    let (phase, at): (_, Timestamp) = times.take_while(|(_, at)| *at <= end).last()?;
    (at <= begin).then(|| phase.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(signs: &Signs) -> Vec<Moment> {
        Moment::ALL.into_iter().filter(|moment| moment.holds(signs)).collect()
    }

    #[test]
    fn a_move_is_in_one_moment_at_a_time_or_between_two() {
        let mut signs = Signs { phase: "Freezing".to_owned(), ..Signs::default() };
        assert_eq!(at(&signs), []);
        signs.disks.journal = true;
        assert_eq!(at(&signs), [Moment::Freezing]);
        signs.disks.images = 10;
        assert_eq!(at(&signs), [Moment::Dumping]);
        signs.disks.dumped = true;
        assert_eq!(at(&signs), [], "dumped, and nothing has landed");
        signs.disks.landed = 9;
        assert_eq!(at(&signs), [Moment::Transferring]);
        signs.disks.landed = 10;
        assert_eq!(at(&signs), [], "all has landed");
        signs.disks.restoring = true;
        assert_eq!(at(&signs), [Moment::Restoring]);
        assert!(!Moment::Taken.holds(&signs));
        signs.owner = Owner::Taken;
        assert_eq!(at(&signs), [Moment::Restoring]);
        assert!(Moment::Taken.holds(&signs));
        signs.disks.restoring = false;
        assert!(!Moment::Taken.holds(&signs), "taken at the go");
        signs.owner = Owner::Target;
        assert_eq!(at(&signs), [Moment::Committed]);
        signs.owner = Owner::Source;
        assert_eq!(at(&signs), [], "rolled back");
        signs = Signs { owner: Owner::Target, ..Signs::default() };
        assert_eq!(at(&signs), [], "retired");
    }

    #[test]
    fn memory_lands_in_rounds_before_the_handover() {
        let mut signs = Signs { phase: "PreCopying".to_owned(), ..Signs::default() };
        assert!(!Moment::Copying.holds(&signs));
        signs.disks.stored = 4096;
        assert!(Moment::Copying.holds(&signs) && Moment::PreCopying.holds(&signs));
        signs.phase = "Handover".to_owned();
        assert!(!Moment::Copying.holds(&signs), "it stays, but is not all that happens any more");
    }

    #[test]
    fn memory_is_brought_after_the_commit_whether_the_source_has_ended_or_not() {
        let mut signs = Signs { owner: Owner::Target, ..Signs::default() };
        assert!(!Moment::Bringing.holds(&signs));
        signs.disks.serving = true;
        assert!(Moment::Bringing.holds(&signs) && !Moment::Committed.holds(&signs));
        signs.owner = Owner::Undecided;
        assert!(!Moment::Bringing.holds(&signs), "it serves before the commit too");
    }

    #[test]
    fn a_commit_that_may_have_come_before_is_no_proof_of_a_restore() {
        let disks =
            Traces { journal: true, images: 10, dumped: true, landed: 10, restoring: true, ..Traces::default() };
        let found = Signs { phase: "Freezing".to_owned(), owner: Owner::Undecided, disks };
        assert!(Moment::Restoring.held_until(&found, Owner::Undecided));
        assert!(Moment::Restoring.held_until(&found, Owner::Source));
        assert!(!Moment::Restoring.held_until(&found, Owner::Target));
        assert!(!Moment::Transferring.held_until(&found, Owner::Undecided));
        let found = Signs { owner: Owner::Target, ..found };
        assert!(Moment::Committed.held_until(&found, Owner::Target));
    }

    #[test]
    fn a_target_owns_and_a_source_owns_by_an_abort_only() {
        let owner = |node: &str, attempt: u32| {
            let status = json!({"sourcePod": {"node": "a"}, "owner": {"node": node, "attempt": attempt}});
            Signs::of(&json!({ "status": status })).owner
        };
        assert_eq!(owner("a", 0), Owner::Undecided);
        assert_eq!(owner("a", 1), Owner::Source);
        assert_eq!(owner("b", 1), Owner::Target);
        let mut taken = json!({ "status": {"sourcePod": {"node": "a"}, "owner": {"node": "b", "attempt": 1}} });
        taken["status"]["owner"]["tentative"] = true.into();
        assert_eq!(Signs::of(&taken).owner, Owner::Taken);
        assert_eq!(Signs::of(&json!({})).owner, Owner::Undecided);
    }

    #[test]
    fn a_phase_counts_only_where_it_lasted_all_the_time() {
        let time = |second: u32| format!("2026-01-01T00:00:{second:02}.000001Z");
        let object = json!({"status": {"phases": [
            {"phase": "Preparing", "at": time(10)}, {"phase": "PreCopying", "at": time(20)},
        ]}});
        let phase = |begin: u32, end: u32| {
            let parse = |second| time(second).parse::<Timestamp>().expect("a time");
            phase_throughout(&object, parse(begin), parse(end))
        };
        assert_eq!(phase(5, 6), None, "before any");
        assert_eq!(phase(5, 11), None, "it began in between");
        assert_eq!(phase(10, 19).as_deref(), Some("Preparing"));
        assert_eq!(phase(19, 20), None, "it ended in between");
        assert_eq!(phase(20, 59).as_deref(), Some("PreCopying"));
    }
}
