//! The finalizer of a Migration: a deleted one stays until its move is undone or over.

use super::{ApplyError, Outcome, migrations};
use crate::migration::Context;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tideover_crds::{Migration, names};

pub(super) async fn add(context: &Context, migration: &Migration) -> Result<Outcome, ApplyError> {
    write(context, migration, |finalizers| {
        if !finalizers.iter().any(|name| name == names::FINALIZER) {
            finalizers.push(names::FINALIZER.to_owned());
        }
    })
    .await
}

pub(super) async fn remove(context: &Context, migration: &Migration) -> Result<Outcome, ApplyError> {
    write(context, migration, |finalizers| finalizers.retain(|name| name != names::FINALIZER)).await
}

/// Changes the list as it is now: the status was written since the Migration was observed, and with it the version.
async fn write(
    context: &Context,
    observed: &Migration,
    change: impl Fn(&mut Vec<String>),
) -> Result<Outcome, ApplyError> {
    let name = observed.name_any();
    let api = migrations(context, observed);
    let now = api.get_opt(&name).await.map_err(ApplyError::api("read the Migration", &name))?;
    let Some(now) = now.filter(|now| now.metadata.uid == observed.metadata.uid) else {
        return Ok(Outcome::Overtaken);
    };
    let mut finalizers = now.finalizers().to_vec();
    change(&mut finalizers);
    let patch = Patch::Merge(json!({ "metadata": {
        "uid": now.metadata.uid,
        "resourceVersion": now.metadata.resource_version,
        "finalizers": finalizers,
    } }));
    match api.patch(&name, &PatchParams::default(), &patch).await {
        Ok(_) => Ok(Outcome::Done),
        Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 409) => Ok(Outcome::Overtaken),
        Err(error) => Err(ApplyError::api("change the finalizers of", &name)(error)),
    }
}
