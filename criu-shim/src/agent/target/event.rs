//! What happens to a target: things that the source, the shim and the relay do.

use crate::agent::owner::{Decision, OwnerError, TakeOutcome};
use crate::agent::target::driver::Since;
use crate::agent::transfer::growing::Growing;
use crate::agent::transfer::hello::GoOn;
use crate::agent::transfer::link::{LinkReceiver, LinkSender};
use crate::agent::transfer::message::{FromSource, FromTarget, Preamble};
use crate::agent::transfer::receive::{ReceiveError, Round};
use crate::agent::transfer::session::Renewed;
use crate::agent::transfer::wire::TargetStream;
use crate::local::{Create, RelayStage, ToRelay, ToShim};
use tideover_crds::Failure;
use tokio::sync::{mpsc, oneshot};

/// One thing that happened.
#[derive(Debug)]
pub enum Event {
    /// A source has connected and said what for.
    Source(Arrival),
    /// A source that has lost its connection has made another.
    Again(Box<Return>),
    /// An archive of files of the last round begins to land.
    Archive {
        /// Attempt whose connection it comes by.
        attempt: u32,
        /// Name of the container whose connection that is.
        container: String,
        /// The archive.
        archive: Growing,
    },
    /// A round has landed, or receiving has failed.
    Round {
        /// Attempt whose connection it came by.
        attempt: u32,
        /// Name of the container whose connection that is.
        container: String,
        /// What came of it.
        round: Result<Round, ReceiveError>,
    },
    /// The shim asks how the replacement's container shall start.
    Create {
        /// The container.
        create: Create,
        /// Takes the answer.
        answer: mpsc::Sender<ToShim>,
    },
    /// The shim asks how the rehearsal's container shall start.
    Rehearse {
        /// The container.
        create: Create,
        /// Takes the answer.
        answer: mpsc::Sender<ToShim>,
    },
    /// `runc restore` has ended.
    Restored {
        /// Token of the restore.
        token: String,
        /// runc's exit code.
        exit_code: i32,
    },
    /// A relay has connected.
    Relay {
        /// Token of the restore.
        token: String,
        /// Where it stands.
        stage: RelayStage,
        /// Takes what it is told.
        line: mpsc::Sender<ToRelay>,
        /// The process that is CRIU, as the node's `/proc` names it.
        criu: Option<i32>,
    },
    /// What had landed of a state that will be the only one is on the disk, or can't be brought there.
    Synced {
        /// Attempt that it was done for.
        attempt: u32,
        /// Name of the container that it was done for.
        container: String,
        /// The last round that had landed when it was begun.
        round: u32,
        /// What came of it.
        result: Result<(), Failure>,
    },
    /// What had landed of files is in place, or can't be put there.
    Placed {
        /// Name of the container that it was done for.
        container: String,
        /// Which time it was begun.
        number: u64,
        /// What came of it.
        result: Result<(), Failure>,
    },
    /// It is known whether the attempt is this agent's.
    Taken {
        /// The attempt.
        attempt: u32,
        /// What came of it.
        outcome: Result<TakeOutcome, OwnerError>,
    },
    /// What was taken has been this agent's for long.
    Overdue {
        /// The attempt.
        attempt: u32,
    },
    /// The object has shown once more that this agent has the attempt.
    StillTaken {
        /// The attempt.
        attempt: u32,
        /// Before it was looked.
        since: Since,
    },
    /// It is known what became of an attempt whose processes were told to run.
    Kept {
        /// The attempt.
        attempt: u32,
        /// What became of it.
        decision: Result<Decision, OwnerError>,
    },
    /// The processes are rebuilt and held.
    Held {
        /// Token of the restore.
        token: String,
    },
    /// CRIU has ended.
    Ended {
        /// Token of the restore.
        token: String,
        /// Whether the processes run.
        success: bool,
        /// Why not.
        message: String,
        /// Told, or dropped, when what follows from it is written down.
        heard: oneshot::Sender<()>,
    },
    /// The relay's connection is gone.
    RelayLost {
        /// Token of the restore.
        token: String,
    },
}

/// A source that has connected. Its certificate is verified, its claim is not.
#[derive(Debug)]
pub struct Arrival {
    /// Names in its certificate.
    pub names: Vec<String>,
    /// What it says it comes for.
    pub preamble: Preamble,
    /// To it.
    pub sender: LinkSender<FromTarget>,
    /// From it.
    pub receiver: LinkReceiver<FromSource>,
    /// Takes the connections that follow on this one.
    pub again: mpsc::Sender<Renewed<TargetStream>>,
}

/// A source that has connected again. Its certificate is verified, its claim is not.
#[derive(Debug)]
pub struct Return {
    /// Names in its certificate.
    pub names: Vec<String>,
    /// What it says it goes on with.
    pub link: GoOn,
    /// The connection. It waits for an answer.
    pub stream: TargetStream,
}
