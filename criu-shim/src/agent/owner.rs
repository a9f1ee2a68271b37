//! The one field that decides who may run the application, and proofs of how it was decided.
//!
//! [`Ownership`] owns every write of `status.owner` that an agent makes. [`Aborted`], [`Committed`] and [`Taken`] can only
//! be had from here, after the API server itself has said so: thawing and resuming take them as arguments, so neither
//! can happen on a guess. It never reads a cache.

use crate::agent::source::last_word::Unsaid;
use json_patch::jsonptr::PointerBuf;
use json_patch::{Patch as JsonPatch, PatchOperation, ReplaceOperation, TestOperation};
use kube::api::{Api, Patch, PatchParams};
use std::time::Duration;
use thiserror::Error;
use tideover_crds::migration::Verdict;
use tideover_crds::{Migration, MigrationStatus, Owner};
use tracing::{info, warn};

/// Proof that an attempt was aborted: the source may run, the target's copy may not.
#[derive(Debug)]
pub struct Aborted {
    attempt: u32,
}

impl Aborted {
    /// Attempt that was aborted.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }
}

/// Proof that an attempt was committed: the node in it may run the application, the source may not.
#[derive(Debug)]
pub struct Committed {
    attempt: u32,
    node: String,
}

impl Committed {
    /// Attempt that was committed.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Node that owns the application.
    pub fn node(&self) -> &str {
        &self.node
    }
}

/// Proof that this agent has taken an attempt. Once the source has said its last word, it alone decides it: by letting the processes
/// run or by giving it back.
#[derive(Debug)]
pub struct Taken {
    attempt: u32,
    node: String,
    source: String,
}

impl Taken {
    /// Attempt that was taken.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }
}

/// Why a target may let the processes run.
#[derive(Debug)]
pub enum MayResume {
    /// The attempt was committed to this node.
    Committed(Committed),
    /// This agent has taken the attempt, and will commit it.
    Taken(Taken),
}

/// What came of an agent's try to take an attempt.
#[derive(Debug)]
pub enum TakeOutcome {
    /// It is this agent's.
    Taken(Taken),
    /// Somebody was quicker.
    Decided(Decision),
}

/// How an attempt was decided, with the proof.
#[derive(Debug)]
pub enum Decision {
    /// The source owns the application.
    Aborted(Aborted),
    /// The target owns the application.
    Committed(Committed),
}

/// Why the owner can't be known.
#[derive(Debug, Error)]
pub enum OwnerError {
    /// The API server did not answer, or refused.
    #[error("read the Migration {name}")]
    Read {
        /// `namespace/name`.
        name: String,
        /// What the client said.
        #[source]
        source: Box<kube::Error>,
    },
    /// The API server took too long. Whether a write was done is unknown.
    #[error("no answer about the Migration {name} within {} s", REQUEST_LIMIT.as_secs())]
    Slow {
        /// Its name.
        name: String,
    },
    /// The API server refused the write for a reason other than what the object says.
    #[error("write the owner of the Migration {name}")]
    Write {
        /// Its name.
        name: String,
        /// What the client said.
        #[source]
        source: Box<kube::Error>,
    },
    /// The object is gone, so nobody can decide any more, and how it was decided can't be known.
    #[error("the Migration {name} with UID {uid} is gone")]
    Gone {
        /// `namespace/name`.
        name: String,
        /// UID that was looked for.
        uid: String,
    },
}

/// Access to `status.owner` of one Migration, pinned by UID.
#[derive(Clone, Debug)]
pub struct Ownership {
    api: Api<Migration>,
    name: String,
    uid: String,
}

/// How long one request may take before another is made. A connection that was cut half way would otherwise be waited
/// for, with the pod frozen, for minutes.
const REQUEST_LIMIT: Duration = Duration::from_secs(3);
/// First and longest pause between two tries at the API server.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(2));

impl Ownership {
    /// Of the Migration `namespace/name` with this UID.
    pub fn new(client: kube::Client, namespace: &str, name: &str, uid: &str) -> Self {
        Self { api: Api::namespaced(client, namespace), name: name.to_owned(), uid: uid.to_owned() }
    }

    /// Reads the object from the API server, not from a cache.
    ///
    /// # Errors
    /// [`OwnerError::Gone`] where the UID does not exist any more, [`OwnerError::Read`] where there is no answer.
    pub async fn read(&self) -> Result<Migration, OwnerError> {
        let answer = tokio::time::timeout(REQUEST_LIMIT, self.api.get_opt(&self.name)).await;
        match answer.map_err(|_| OwnerError::Slow { name: self.name.clone() })? {
            Ok(Some(migration)) if migration.metadata.uid.as_deref() == Some(&self.uid) => Ok(migration),
            Ok(_) => Err(OwnerError::Gone { name: self.name.clone(), uid: self.uid.clone() }),
            Err(source) => Err(OwnerError::Read { name: self.name.clone(), source: Box::new(source) }),
        }
    }

    /// How `attempt` was decided, if it was.
    ///
    /// # Errors
    /// As [`Ownership::read`].
    pub async fn decision(&self, attempt: u32) -> Result<Option<Decision>, OwnerError> {
        Ok(self.read().await?.status.as_ref().and_then(|status| decision_in(status, attempt)))
    }

    /// The right to let the processes of `attempt` run: it was committed, and its state was not given up since.
    ///
    /// # Errors
    /// As [`Ownership::read`].
    pub async fn right_to_run(&self, attempt: u32) -> Result<Option<Committed>, OwnerError> {
        let migration = self.read().await?;
        let status = migration.status.as_ref().filter(|status| !status.is_given_up());
        Ok(match status.and_then(|status| decision_in(status, attempt)) {
            Some(Decision::Committed(proof)) => Some(proof),
            _ => None,
        })
    }

    /// Decides the attempt for the source. Tries until it is known how the attempt was decided, for ever if need be: whoever
    /// is frozen stays frozen while nobody knows, and while the target has taken it. What is `unsaid` takes back even that: the
    /// target lacks what it would have to rebuild, and will never have it.
    ///
    /// # Errors
    /// Only [`OwnerError::Gone`].
    pub async fn abort(&self, attempt: u32, source_node: &str, unsaid: Option<Unsaid>) -> Result<Decision, OwnerError> {
        let decided = |status: &MigrationStatus| decision_in(status, attempt);
        let may_swap = |owner: &Owner| !owner.tentative || unsaid.is_some();
        self.decide(attempt, &Owner::new(source_node, attempt), None, may_swap, decided).await
    }

    /// Decides the attempt for the target. `seen` is the owner in the watch's newest object: where it is still right, one
    /// request is enough. Tries until it is known how the attempt was decided.
    ///
    /// # Errors
    /// Only [`OwnerError::Gone`].
    pub async fn commit(&self, attempt: u32, node: &str, seen: Option<Owner>) -> Result<Decision, OwnerError> {
        let decided = |status: &MigrationStatus| decision_in(status, attempt);
        let may_swap = |owner: &Owner| !owner.tentative || owner.node == node;
        self.decide(attempt, &Owner::new(node, attempt), seen, may_swap, decided).await
    }

    /// Takes the attempt for the target, before all of the state is there. `seen` as in [`Ownership::commit`]. Tries until it is
    /// known whose the attempt is. Only for an agent that has not tried before, while no processes can have been rebuilt: what
    /// an agent before it has taken reads as its own.
    ///
    /// # Errors
    /// Only [`OwnerError::Gone`].
    pub async fn take(&self, attempt: u32, node: &str, seen: Option<Owner>) -> Result<TakeOutcome, OwnerError> {
        let decided = |status: &MigrationStatus| taken_in(status, attempt, node);
        self.decide(attempt, &Owner::tentative(node, attempt), seen, |owner| !owner.tentative, decided).await
    }

    /// Whether the object shows `attempt` as taken by `node`.
    ///
    /// # Errors
    /// As [`Ownership::read`].
    pub async fn is_taken(&self, attempt: u32, node: &str) -> Result<bool, OwnerError> {
        let owner = self.read().await?.status.and_then(|status| status.owner);
        Ok(owner == Some(Owner::tentative(node, attempt)))
    }

    /// Makes final what was taken, after the processes were told to run. Tries until it is done.
    ///
    /// # Errors
    /// Only [`OwnerError::Gone`].
    pub async fn keep(&self, attempt: u32, node: &str) -> Result<Decision, OwnerError> {
        self.commit(attempt, node, Some(Owner::tentative(node, attempt))).await
    }

    /// Gives back to the source what was taken: the processes were not told to run, and nobody can tell them any more, because
    /// the proof is used up. Tries until it is known what became of the attempt: meanwhile the operator may have made it final.
    ///
    /// # Errors
    /// Only [`OwnerError::Gone`].
    pub async fn give_back(&self, taken: Taken) -> Result<Decision, OwnerError> {
        let Taken { attempt, node, source } = taken;
        let (seen, want) = (Owner::tentative(&node, attempt), Owner::new(&source, attempt));
        let decided = |status: &MigrationStatus| decision_in(status, attempt);
        self.decide(attempt, &want, Some(seen.clone()), |owner| *owner == seen, decided).await
    }

    /// Writes `want` over an owner that `may_swap` allows, until `decided` makes something of what the object says.
    async fn decide<T>(
        &self,
        attempt: u32,
        want: &Owner,
        seen: Option<Owner>,
        may_swap: impl Fn(&Owner) -> bool,
        decided: impl Fn(&MigrationStatus) -> Option<T>,
    ) -> Result<T, OwnerError> {
        let mut seen = seen;
        let mut pause = PAUSES.0;
        loop {
            let known = seen.take().filter(&may_swap);
            let swapped = known.is_some();
            if let Some(owner) = known {
                match self.swap(attempt, &owner, want, &decided).await {
                    Ok(Some(decision)) => return Ok(decision),
                    // The object changed in between, or the reply was lost: the object itself says who won.
                    Ok(None) => {}
                    Err(error) => {
                        let error = crate::causes::chain(&error);
                        warn!(migration = self.name, attempt, error, "writing the owner failed, reading it");
                    }
                }
            }
            match self.read().await {
                Ok(migration) => {
                    let status = migration.status.unwrap_or_default();
                    if let Some(decision) = decided(&status) {
                        return Ok(decision);
                    }
                    // Where the other side has taken it, there is nothing to do but to look again.
                    seen = status.owner.filter(&may_swap);
                }
                Err(gone @ OwnerError::Gone { .. }) => return Err(gone),
                Err(error) => {
                    warn!(migration = self.name, attempt, error = %crate::causes::chain(&error), "the owner is unknown");
                }
            }
            if must_rest(swapped, seen.as_ref()) {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSES.1);
            }
        }
    }

    /// One compare-and-swap. `None`: it did not take place.
    async fn swap<T>(
        &self,
        attempt: u32,
        seen: &Owner,
        want: &Owner,
        decided: impl Fn(&MigrationStatus) -> Option<T>,
    ) -> Result<Option<T>, OwnerError> {
        let patch = Patch::Json::<()>(swap_patch(&self.uid, attempt, seen, want));
        let parameters = PatchParams::default();
        let written = self.api.patch_status(&self.name, &parameters, &patch);
        let answer = tokio::time::timeout(REQUEST_LIMIT, written).await;
        match answer.map_err(|_| OwnerError::Slow { name: self.name.clone() })? {
            Ok(migration) => {
                let Owner { node, tentative, .. } = want;
                info!(migration = self.name, attempt, owner = node, tentative, "owner written");
                Ok(migration.status.as_ref().and_then(decided))
            }
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409 | 422) => Ok(None),
            Err(source) => Err(OwnerError::Write { name: self.name.clone(), source: Box::new(source) }),
        }
    }
}

/// Whether a round of `decide` without a decision is followed by a pause: unless it has only found the owner to swap.
fn must_rest(swapped: bool, found: Option<&Owner>) -> bool {
    swapped || found.is_none()
}

/// The decision of `attempt` that `status` shows.
fn decision_in(status: &MigrationStatus, attempt: u32) -> Option<Decision> {
    match status.verdict_of(attempt) {
        Verdict::Open | Verdict::Taken => None,
        Verdict::Aborted => Some(Decision::Aborted(Aborted { attempt })),
        Verdict::Committed => {
            let owner = status.owner.as_ref()?;
            Some(Decision::Committed(Committed { attempt: owner.attempt, node: owner.node.clone() }))
        }
    }
}

/// What `status` shows of the try of an agent on `node` to take `attempt`.
fn taken_in(status: &MigrationStatus, attempt: u32, node: &str) -> Option<TakeOutcome> {
    if status.owner.as_ref() == Some(&Owner::tentative(node, attempt)) {
        let source = status.source_pod.as_ref()?.node.clone()?;
        return Some(TakeOutcome::Taken(Taken { attempt, node: node.to_owned(), source }));
    }
    decision_in(status, attempt).map(TakeOutcome::Decided)
}

/// The compare-and-swap as a JSON patch of the status subresource: it applies only to this UID, only while the owner is
/// exactly what was seen, and only while the attempt is the current one.
fn swap_patch(uid: &str, attempt: u32, seen: &Owner, want: &Owner) -> JsonPatch {
    let test =
        |path: [&str; 2], value| PatchOperation::Test(TestOperation { path: PointerBuf::from_tokens(path), value });
    JsonPatch(vec![
        test(["metadata", "uid"], uid.into()),
        test(["status", "owner"], serde_json::json!(seen)),
        test(["status", "attempt"], attempt.into()),
        PatchOperation::Replace(ReplaceOperation {
            path: PointerBuf::from_tokens(["status", "owner"]),
            value: serde_json::json!(want),
        }),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::fixture::migration;

    #[test]
    fn only_a_round_that_found_the_owner_goes_on_at_once() {
        let owner = Owner::new("a", 0);
        assert!(!must_rest(false, Some(&owner)));
        assert!(must_rest(true, Some(&owner)), "the swap did not take place");
        assert!(must_rest(false, None), "no owner in the object, or no answer");
    }

    #[test]
    fn a_swap_applies_to_what_was_seen_and_to_nothing_else() {
        let object = |uid: &str, attempt: u32, node: &str, decided: u32| {
            serde_json::json!({
                "metadata": { "uid": uid },
                "status": { "attempt": attempt, "owner": { "node": node, "attempt": decided } },
            })
        };
        let (seen, want) = (Owner::new("a", 0), Owner::new("b", 1));
        let patch = swap_patch("u", 1, &seen, &want);
        let applies = |mut object: serde_json::Value| json_patch::patch(&mut object, &patch).is_ok().then_some(object);

        assert_eq!(applies(object("u", 1, "a", 0)), Some(object("u", 1, "b", 1)));
        assert_eq!(applies(object("v", 1, "a", 0)), None, "another object of the same name");
        assert_eq!(applies(object("u", 2, "a", 0)), None, "a later attempt");
        assert_eq!(applies(object("u", 1, "a", 1)), None, "already aborted");
        assert_eq!(applies(object("u", 1, "b", 1)), None, "already committed");
        let mut taken = object("u", 1, "b", 1);
        taken["status"]["owner"]["tentative"] = true.into();
        assert_eq!(applies(taken.clone()), None, "taken by the target");

        let keep = swap_patch("u", 1, &Owner::tentative("b", 1), &want);
        let keeps = |mut object: serde_json::Value| json_patch::patch(&mut object, &keep).is_ok().then_some(object);
        assert_eq!(keeps(taken), Some(object("u", 1, "b", 1)));
        assert_eq!(keeps(object("u", 1, "a", 1)), None, "given back");
    }

    #[test]
    fn what_was_taken_is_its_takers_and_an_earlier_attempts_is_nobodys() {
        let mut status = migration().attempt(2).owner("b", 2).build().status.expect("a status");
        let taken = |status: &MigrationStatus, node| taken_in(status, 2, node);
        assert!(matches!(taken(&status, "b"), Some(TakeOutcome::Decided(Decision::Committed(_)))));
        status.owner = Some(Owner::tentative("b", 2));
        let Some(TakeOutcome::Taken(proof)) = taken(&status, "b") else { panic!("not taken") };
        assert_eq!((proof.attempt, proof.node.as_str(), proof.source.as_str()), (2, "b", "a"));
        assert!(taken(&status, "c").is_none(), "of another node");
        assert!(decision_in(&status, 2).is_none(), "and it is no decision");
        status.owner = Some(Owner::new("a", 1));
        assert!(taken(&status, "b").is_none(), "open");
        status.owner = Some(Owner::new("a", 2));
        assert!(matches!(taken(&status, "b"), Some(TakeOutcome::Decided(Decision::Aborted(_)))));
    }
}
