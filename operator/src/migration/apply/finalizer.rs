//! The finalizer of a Migration: a deleted one stays until its move is undone or over. With it goes who set which field: the API
//! server works that out anew at each write, of which one is made while the application is frozen.

use super::{ApplyError, Outcome, migrations};
use crate::migration::Context;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tideover_crds::{Migration, names};

pub(super) async fn add(context: &Context, migration: &Migration) -> Result<Outcome, ApplyError> {
    // One empty entry, and not an empty list, has the API server keep no such record of the object from here on; see
    // "Clearing managedFields" in the documentation of server-side apply.
    let forgotten = json!([{}]);
    write(context, migration, Some(forgotten), |finalizers| {
        if !finalizers.iter().any(|name| name == names::FINALIZER) {
            finalizers.push(names::FINALIZER.to_owned());
        }
    })
    .await
}

pub(super) async fn remove(context: &Context, migration: &Migration) -> Result<Outcome, ApplyError> {
    write(context, migration, None, |finalizers| finalizers.retain(|name| name != names::FINALIZER)).await
}

/// Changes the list as it is now: the status was written since the Migration was observed, and with it the version.
async fn write(
    context: &Context,
    observed: &Migration,
    managers: Option<Value>,
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
    let mut metadata = json!({
        "uid": now.metadata.uid,
        "resourceVersion": now.metadata.resource_version,
        "finalizers": finalizers,
    });
    if let Some(managers) = managers {
        metadata["managedFields"] = managers;
    }
    let patch = Patch::Merge(json!({ "metadata": metadata }));
    match api.patch(&name, &PatchParams::default(), &patch).await {
        Ok(_) => Ok(Outcome::Done),
        Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 409) => Ok(Outcome::Overtaken),
        Err(error) => Err(ApplyError::api("change the finalizers of", &name)(error)),
    }
}
