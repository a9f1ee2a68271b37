//! Carries out actions. Each one names its objects by UID and can be repeated; none decides anything.

mod announce;
mod beside;
mod claim;
mod delete;
mod edit;
mod finalizer;
mod job;
mod owner;
mod replacement;
mod replica_set;
mod trial;

use super::Context;
use crate::pod::manifest::ManifestError;
use crate::transition::Action;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::Api;
use thiserror::Error;
use tideover_crds::{Migration, Owner};

/// Why an action failed.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// The API server did not answer, or refused.
    #[error("{step} {name}")]
    Api {
        /// What was tried.
        step: &'static str,
        /// Name of the object.
        name: String,
        /// What the client said.
        #[source]
        source: Box<kube::Error>,
    },
    /// The kept manifest can't be used.
    #[error("build the replacement")]
    Manifest(#[source] ManifestError),
}

impl ApplyError {
    fn api(step: &'static str, name: &str) -> impl FnOnce(kube::Error) -> Self {
        let name = name.to_owned();
        move |source| Self::Api { step, name, source: Box::new(source) }
    }
}

/// What came of an action.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done, or done already.
    Done,
    /// The object is not any more what was observed: what follows has to be decided again.
    Overtaken,
    /// The API server refused the pod, by a quota or by another admission rule, and said why.
    Refused(String),
}

/// Carries out one action for `migration`.
pub(super) async fn apply(context: &Context, migration: &Migration, action: &Action) -> Result<Outcome, ApplyError> {
    match action {
        Action::AddFinalizer => finalizer::add(context, migration).await,
        Action::RemoveFinalizer => finalizer::remove(context, migration).await,
        Action::ClaimPod { name, uid, instead_of } => {
            claim::claim(&pods(context, migration), migration, name, uid, instead_of.as_deref()).await
        }
        Action::ReleasePod { name, uid } => claim::release(&pods(context, migration), migration, name, uid).await,
        Action::CreateReservation(wish) => beside::reserve(context, migration, wish).await,
        Action::CreateRehearsal(wish) => beside::rehearse(context, migration, wish).await,
        Action::DeletePod { name, uid, grace_seconds, .. } => {
            delete::delete(&pods(context, migration), name, uid, *grace_seconds).await
        }
        Action::TakeOutOfReplicaSet { name, uid, hash } => {
            let pods = pods(context, migration);
            match trial::replacement(&pods, migration, name, uid).await? {
                Outcome::Done => replica_set::take_out(&pods, name, uid, hash).await,
                otherwise => Ok(otherwise),
            }
        }
        Action::PutBackIntoReplicaSet { name, uid, hash } => {
            replica_set::put_back(&pods(context, migration), name, uid, hash).await
        }
        Action::TakeOutOfJob { name, uid } => job::take_out(&pods(context, migration), name, uid).await,
        Action::CreateReplacement { manifest, node } => {
            replacement::create(&pods(context, migration), migration, manifest, node).await
        }
        Action::CreateCold { manifest } => replacement::create_cold(&pods(context, migration), manifest).await,
        Action::Abort { seen, node, attempt } => {
            owner::decide(context, migration, seen, &Owner::new(node, *attempt)).await
        }
        Action::Keep { seen } => owner::decide(context, migration, seen, &Owner::new(&seen.node, seen.attempt)).await,
        Action::Announce(announcement) => announce::announce(context, migration, announcement).await,
    }
}

/// The action in a few words, for an error.
pub(super) fn describe(action: &Action) -> String {
    match action {
        Action::AddFinalizer => "adding the finalizer".to_owned(),
        Action::RemoveFinalizer => "removing the finalizer".to_owned(),
        Action::ClaimPod { name, .. } => format!("claiming the pod {name}"),
        Action::ReleasePod { name, .. } => format!("releasing the pod {name}"),
        Action::CreateReservation(wish) => format!("creating the reservation {}", wish.name),
        Action::CreateRehearsal(wish) => format!("creating the rehearsal {}", wish.name),
        Action::DeletePod { role, name, .. } => format!("deleting the {role:?} {name}"),
        Action::TakeOutOfReplicaSet { name, .. } => format!("taking {name} out of its ReplicaSet"),
        Action::PutBackIntoReplicaSet { name, .. } => format!("putting {name} back into its ReplicaSet"),
        Action::TakeOutOfJob { name, .. } => format!("taking {name} out of its Job"),
        Action::CreateReplacement { node, .. } => format!("creating the replacement on {node}"),
        Action::CreateCold { .. } => "creating the pod once more".to_owned(),
        Action::Abort { attempt, .. } => format!("aborting attempt {attempt}"),
        Action::Keep { seen } => format!("committing attempt {} for {}", seen.attempt, seen.node),
        Action::Announce(announcement) => format!("announcing {}", announcement.reason),
    }
}

fn pods(context: &Context, migration: &Migration) -> Api<Pod> {
    Api::namespaced(context.client.clone(), migration.namespace().as_deref().unwrap_or_default())
}

fn migrations(context: &Context, migration: &Migration) -> Api<Migration> {
    Api::namespaced(context.client.clone(), migration.namespace().as_deref().unwrap_or_default())
}
