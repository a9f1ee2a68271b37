//! What the two agents write into a Migration's status: `status.source` and `status.target`.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the source's agent did and saw in one attempt. A report of an older attempt is void.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceReport {
    /// Attempt that this speaks of.
    pub attempt: u32,
    /// The furthest step that is done.
    pub step: SourceStep,
    /// Facts of the host that the target must match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostFacts>,
    /// How memory is tracked and copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<MemoryEngine>,
    /// Why that engine, and every fallback in use, a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// How pages cross. It is decided by the first pages that are sent, where there are enough of them, and the notes say why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    /// Pre-copy rounds so far.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rounds: Vec<Round>,
    /// All that crossed before the freeze, with the rounds that are not listed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pre_copied: Option<PreCopied>,
    /// What the rounds say about the freeze to come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub convergence: Option<Convergence>,
    /// Durations, once known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timings: Option<SourceTimings>,
    /// Why this side can't go on. The operator (or, after the freeze, the agent itself) aborts the attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

impl SourceReport {
    /// The first report of attempt `attempt`: nothing but its number is known.
    pub fn new(attempt: u32) -> Self {
        Self {
            attempt,
            step: SourceStep::Ready,
            host: None,
            engine: None,
            notes: Vec::new(),
            compression: None,
            rounds: Vec::new(),
            pre_copied: None,
            convergence: None,
            timings: None,
            failure: None,
        }
    }
}

/// The furthest step of the source in an attempt.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SourceStep {
    /// Preflight passed: the processes can be dumped as far as can be known without touching them.
    Ready,
    /// Connected to the target; pre-copy rounds run, if the engine has any.
    PreCopying,
    /// Pre-copy has converged: the handover, or the rehearsal, may begin.
    Converged,
    /// Frozen at one cut.
    Frozen,
    /// Dumped; the state is crossing.
    Dumped,
    /// The target has it all, as many bytes as were sent.
    Sent,
    /// Attempt aborted: the application runs here, nothing of the attempt is left on this node.
    Thawed,
    /// Attempt committed: no process of the source is left on this node, and no image.
    Retired,
}

/// What the target's agent did and saw in one attempt. A report of an older attempt is void.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetReport {
    /// Attempt that this speaks of.
    pub attempt: u32,
    /// The furthest step that is done.
    pub step: TargetStep,
    /// Where the agent listens for the source: `ip:port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Facts of the host, to compare with the source's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostFacts>,
    /// Durations, once known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timings: Option<TargetTimings>,
    /// Why this side can't go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

impl TargetReport {
    /// The first report of attempt `attempt`: nothing but its number is known.
    pub fn new(attempt: u32) -> Self {
        Self { attempt, step: TargetStep::Listening, address: None, host: None, timings: None, failure: None }
    }
}

/// The furthest step of the target in an attempt.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TargetStep {
    /// Ready to receive at `address`.
    Listening,
    /// An early cut was restored here, held before it ran, and destroyed: nothing of the rehearsal is left.
    Rehearsed,
    /// The replacement container's `create` waits here; runc and CRIU are started and wait at the relay.
    Waiting,
    /// Everything has landed. Where the commit is made on that alone, it was verified on the disk.
    Staged,
    /// The processes are rebuilt and held before they run.
    Held,
    /// The commit is won.
    Committed,
    /// The application runs here.
    Resumed,
    /// Attempt aborted, or given up after its commit: nothing of it is left on this node.
    Destroyed,
}

/// How memory reaches the target, the best way first.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum MemoryEngine {
    /// Most of it before the freeze. What is written meanwhile is found by write protection, in rounds (userfaultfd with
    /// `WP_ASYNC`, and `PAGEMAP_SCAN`), and the restore fetches pages from where they were put on the target.
    WriteProtect,
    /// Most of it before the freeze. At least one process can't be write-protected, for a reason that the notes name. The kernel
    /// marks what it writes (soft-dirty), and that is read and compared with what was sent, in rounds, and once more in the
    /// freeze: 0.3 ms for each MiB that was written.
    SoftDirty,
    /// Most of it before the freeze. At least one process can neither be write-protected nor go by such marks, for reasons that the
    /// notes name. All its pages are read and compared with what was sent, in rounds, and once more in the freeze: 0.3 ms for each
    /// MiB.
    ReadAndCompare,
    /// All of it inside the freeze.
    StopAndCopy,
}

/// How pages cross from node to node.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compression {
    /// As they are: the connection, or the processors, would not be done earlier otherwise.
    None,
    /// As LZ4 blocks, where these are shorter.
    Lz4,
}

/// One pre-copy round.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Round {
    /// Bytes sent.
    pub bytes: u64,
    /// How long it took, milliseconds.
    pub millis: f64,
}

/// What crossed before the freeze.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PreCopied {
    /// Rounds, those after the convergence too: they go on until the freeze.
    pub rounds: u32,
    /// Bytes that they sent.
    pub bytes: u64,
    /// How long they were under way, milliseconds; the pauses between them do not count.
    pub millis: f64,
}

/// What the rounds so far say about the freeze to come.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Convergence {
    /// Bytes that cross to the target in a second.
    pub sent_per_second: f64,
    /// Bytes of memory that the application writes in a second, each page counted once a round.
    pub written_per_second: f64,
    /// How long a freeze is predicted to be, milliseconds.
    pub predicted_freeze_millis: f64,
    /// Percent of its cpu time that the container is left with; none where it was not slowed down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<u32>,
}

/// Durations on the source, milliseconds on its monotonic clock.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SourceTimings {
    /// The pause for the cut of the rehearsal: first freezer write until the thaw. 0 where there was none.
    pub cut_millis: f64,
    /// From the first freezer write until the cgroup reads frozen.
    pub freeze_wait_millis: f64,
    /// CRIU's dump.
    pub dump_millis: f64,
    /// From the end of the dump until the target had everything.
    pub transfer_millis: f64,
    /// From there to the news that the processes are rebuilt and held.
    pub restore_millis: f64,
    /// From held to the news that they run: the resume, and what is left of the commit.
    pub commit_millis: f64,
    /// The whole freeze as the source can see it: first freezer write until the news that the target runs, or until
    /// the thaw. Half a round trip longer than what the application sees. None where no such news came, because an agent
    /// ended meanwhile: how long it was is not known then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freeze_millis: Option<f64>,
    /// Bytes sent inside the freeze.
    pub bytes: u64,
    /// Bytes of shared memory that the dump left out, because they were sent before; those that differed were sent again.
    pub shared_bytes: u64,
}

/// Durations on the target, milliseconds on its monotonic clock.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TargetTimings {
    /// First byte of the last round until all of it had landed.
    pub receive_millis: f64,
    /// Images verified on the disk, and files put in place.
    pub stage_millis: f64,
    /// From the release of CRIU's request until post-restore.
    pub restore_millis: f64,
    /// The compare-and-swap that takes or commits the attempt. It goes on beside the restore where the replacement is made first.
    pub commit_millis: f64,
    /// From the release until the processes run.
    pub resume_millis: f64,
}

/// Facts of a host on which it depends whether a process image can run there.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HostFacts {
    /// `x86_64`, `aarch64`.
    pub architecture: String,
    /// CPU features as `/proc/cpuinfo` names them, sorted, separated by blanks.
    pub cpu_features: String,
    /// Kernel release (`uname -r`).
    pub kernel: String,
    /// CRIU's version.
    pub criu: String,
    /// Version of the protocol that the host's agent speaks with others; 0 where it does not say.
    pub protocol: u32,
}

/// Why a side could not go on.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// Machine readable reason.
    pub reason: FailureReason,
    /// One sentence for a person.
    pub message: String,
    /// Whether another attempt could end differently.
    pub retryable: bool,
}

/// What went wrong.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureReason {
    /// The pod can't be moved as it is (an obstacle in its spec or policy).
    NotMovable,
    /// The processes hold something that can't be dumped.
    NotDumpable,
    /// No node would take the reservation in time.
    NoTarget,
    /// The target's CPU, kernel or CRIU can't run this image.
    IncompatibleHost,
    /// The replacement, or the pod of the rehearsal, did not come up.
    ReplacementMissing,
    /// Freezing did not end in time.
    FreezeFailed,
    /// CRIU's dump failed.
    DumpFailed,
    /// The state did not cross.
    TransferFailed,
    /// What arrived, or what lies on the target's disk, is not what was sent.
    Corrupted,
    /// CRIU's restore failed.
    RestoreFailed,
    /// An agent did not answer in time.
    AgentUnreachable,
    /// The two agents speak different versions of their protocol: one of them is being upgraded. It does not count as an attempt.
    AgentVersions,
    /// An agent was restarted in mid-attempt and undid what it found.
    AgentRestarted,
    /// The attempt took longer than the policy allows.
    Timeout,
    /// Rounds of pre-copy did not come below the policy's `maxDowntime`, and it says not to move then.
    NotConverging,
    /// Called off: uncordoned, deleted, or the pod was deleted.
    Cancelled,
    /// After the commit the state was lost with the target, or given up, or memory that was still to come did not come: the
    /// application starts cold.
    StateLost,
    /// Another Migration is moving this pod.
    AlreadyMoving,
    /// One that came with a newer version than the reader's; the message says what it is. Nobody reports it by itself.
    #[serde(other)]
    Other,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_reason_of_a_newer_agent_is_read_and_written_as_another_one() {
        let newer = json!({ "reason": "FluxCapacitor", "message": "no", "retryable": true });
        let read: Failure = serde_json::from_value(newer).expect("a failure");
        assert_eq!(read.reason, FailureReason::Other);
        let again = serde_json::to_value(&read).expect("JSON");
        let known = serde_json::to_value(schemars::schema_for!(FailureReason)).expect("JSON").to_string();
        assert!(known.contains(r#""const":"Other""#) && again["reason"] == "Other", "{known}");
    }
}
