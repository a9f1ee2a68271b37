//! Creates a Migration. That it exists already means that somebody else has asked for the same move.

use crate::moves::migration_of;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};
use thiserror::Error;
use tideover_crds::{Migration, MigrationReason};
use tracing::info;

/// Why a move could not be asked for.
#[derive(Debug, Error)]
#[error("create the Migration {name}")]
pub struct BeginError {
    name: String,
    #[source]
    source: Box<kube::Error>,
}

/// Asks for a move of `pod` by the Migration `name`.
///
/// # Errors
/// Where the API server does not create it.
pub async fn begin(client: &Client, pod: &Pod, name: String, reason: MigrationReason) -> Result<(), BeginError> {
    let namespace = pod.namespace().unwrap_or_default();
    let api: Api<Migration> = Api::namespaced(client.clone(), &namespace);
    match api.create(&PostParams::default(), &migration_of(pod, name.clone(), reason)).await {
        Ok(_) => info!(namespace, name, ?reason, "a move is asked for"),
        Err(kube::Error::Api(answer)) if answer.code == 409 => {}
        Err(source) => return Err(BeginError { name, source: Box::new(source) }),
    }
    Ok(())
}
