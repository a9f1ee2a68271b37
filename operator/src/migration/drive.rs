//! One Migration, as far as it goes now: observe, decide, write the status, carry the actions out, and look again.

use super::apply::{self, ApplyError, Outcome};
use super::observe::{self, ObserveError};
use super::{Context, status_patch};
use crate::transition::{Decision, transition};
use jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use std::time::Duration;
use thiserror::Error;
use tideover_crds::{Migration, MigrationStatus};
use tokio::time::timeout;
use tracing::{debug, info};

/// Why a Migration did not get on. What was done is in the objects; the next look goes on from there.
#[derive(Debug, Error)]
pub enum DriveError {
    /// What is known could not be read.
    #[error("observe the Migration")]
    Observe(#[source] ObserveError),
    /// One look took too long: the API server is slow, or the connection to it is dead.
    #[error("the API server did not answer within {} s", LOOK_WITHIN.as_secs())]
    Slow(#[source] tokio::time::error::Elapsed),
    /// The status could not be turned into a patch.
    #[error("build the status patch")]
    Patch(#[source] serde_json::Error),
    /// The status could not be written.
    #[error("write the status")]
    Status(#[source] Box<kube::Error>),
    /// An action failed.
    #[error("carry out {action}")]
    Apply {
        /// The action.
        action: String,
        /// Why.
        #[source]
        source: ApplyError,
    },
}

/// How often one call decides. A level that does not change by acting is looked at again after [`PAUSE`].
const ROUNDS: usize = 16;

/// Longest time for one call. Being cut off between two requests is like being killed there.
const LOOK_WITHIN: Duration = Duration::from_secs(30);

/// Pause after [`ROUNDS`].
const PAUSE: Duration = Duration::from_millis(250);

/// Moves the Migration on. Returns when to look again at the latest.
///
/// # Errors
/// As [`DriveError`] says.
pub(super) async fn drive(context: &Context, namespace: &str, name: &str) -> Result<Option<Duration>, DriveError> {
    timeout(LOOK_WITHIN, rounds(context, namespace, name)).await.map_err(DriveError::Slow)?
}

async fn rounds(context: &Context, namespace: &str, name: &str) -> Result<Option<Duration>, DriveError> {
    // Most calls find the Migration accepted and need no turn; one that does not looks again when it has it.
    let mut accepted = true;
    let mut refused = None;
    for _ in 0..ROUNDS {
        // One at a time from the look at what is under way until the acceptance is written.
        let turn = if accepted { None } else { Some(context.acceptance.lock().await) };
        let seen = observe::observe(context, namespace, name).await.map_err(DriveError::Observe)?;
        let Some(mut observed) = seen else { return Ok(None) };
        accepted = observed.migration.status.as_ref().is_some_and(|status| status.owner.is_some());
        if !accepted && turn.is_none() {
            continue;
        }
        observed.refused = refused.take();
        let decision = transition(&observed, Timestamp::now());
        if decision.is_idle() {
            return Ok(decision.requeue);
        }
        if let Some(status) = &decision.status
            && !write(context, &observed.migration, status).await?
        {
            debug!(namespace, name, "the Migration has changed meanwhile");
            continue;
        }
        refused = carry_out(context, &observed.migration, &decision).await?;
    }
    Ok(Some(PAUSE))
}

/// Writes the status. False where the object is not any more what was observed.
async fn write(context: &Context, observed: &Migration, status: &MigrationStatus) -> Result<bool, DriveError> {
    let patch = status_patch(observed, status).map_err(DriveError::Patch)?;
    let namespace = observed.metadata.namespace.as_deref().unwrap_or_default();
    let name = observed.metadata.name.as_deref().unwrap_or_default();
    let api: Api<Migration> = Api::namespaced(context.client.clone(), namespace);
    match api.patch_status(name, &PatchParams::default(), &Patch::Json::<()>(patch)).await {
        Ok(_) => {
            let message = status.message.as_deref().unwrap_or_default();
            info!(namespace, name, phase = ?status.phase, attempt = status.attempt, message);
            Ok(true)
        }
        Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 409) || is_failed_test(&answer) => Ok(false),
        Err(error) => Err(DriveError::Status(Box::new(error))),
    }
}

/// A `test` that does not hold and a status that the schema refuses are both 422; only the latter has causes.
fn is_failed_test(answer: &kube::core::Status) -> bool {
    answer.code == 422 && answer.details.as_ref().is_none_or(|details| details.causes.is_empty())
}

/// Takes the actions in order. Returns what the API server said where it refused a pod by a rule of somebody else's.
async fn carry_out(
    context: &Context,
    migration: &Migration,
    decision: &Decision,
) -> Result<Option<String>, DriveError> {
    for action in &decision.actions {
        match apply::apply(context, migration, action).await {
            Ok(Outcome::Done) => {}
            Ok(Outcome::Overtaken) => return Ok(None),
            Ok(Outcome::Refused(why)) => return Ok(Some(why)),
            Err(source) => return Err(DriveError::Apply { action: apply::describe(action), source }),
        }
    }
    Ok(None)
}
