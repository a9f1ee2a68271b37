//! The operator's part in the race for an attempt: `status.owner` goes to the source, if nobody has decided yet, or to the target
//! that has taken it and can't say so any more.

use super::{ApplyError, Outcome, migrations};
use crate::migration::Context;
use json_patch::jsonptr::PointerBuf;
use json_patch::{Patch as JsonPatch, PatchOperation, ReplaceOperation, TestOperation};
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tideover_crds::{Migration, Owner};
use tracing::info;

/// Swaps `seen` for `want`. Who won is read from the object by the next look, whatever the answer was: a reply
/// can be lost after the write.
pub(super) async fn decide(
    context: &Context,
    migration: &Migration,
    seen: &Owner,
    want: &Owner,
) -> Result<Outcome, ApplyError> {
    let name = migration.name_any();
    let uid = migration.metadata.uid.clone().unwrap_or_default();
    let patch = Patch::Json::<()>(swap(&uid, seen, want));
    match migrations(context, migration).patch_status(&name, &PatchParams::default(), &patch).await {
        Ok(_) => {
            info!(name, want.attempt, owner = want.node, "attempt decided");
            Ok(Outcome::Done)
        }
        Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 409 | 422) => Ok(Outcome::Overtaken),
        Err(error) => Err(ApplyError::api("take the owner of", &name)(error)),
    }
}

/// The swap: it applies to this object only, and only while the owner and the attempt are what was seen.
pub(crate) fn swap(uid: &str, seen: &Owner, want: &Owner) -> JsonPatch {
    let test =
        |path: [&str; 2], value| PatchOperation::Test(TestOperation { path: PointerBuf::from_tokens(path), value });
    JsonPatch(vec![
        test(["metadata", "uid"], json!(uid)),
        test(["status", "owner"], json!(seen)),
        test(["status", "attempt"], json!(want.attempt)),
        PatchOperation::Replace(ReplaceOperation {
            path: PointerBuf::from_tokens(["status", "owner"]),
            value: json!(want),
        }),
    ])
}
