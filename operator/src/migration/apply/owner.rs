//! The operator's half of the race for an attempt: `status.owner` goes to the source, if nobody has decided yet.

use super::{ApplyError, Outcome, migrations};
use crate::migration::Context;
use json_patch::jsonptr::PointerBuf;
use json_patch::{Patch as JsonPatch, PatchOperation, ReplaceOperation, TestOperation};
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tideover_crds::{Migration, Owner};
use tracing::info;

/// Swaps `seen` for the source. Who won is read from the object by the next look, whatever the answer was: a reply
/// can be lost after the write.
pub(super) async fn abort(
    context: &Context,
    migration: &Migration,
    seen: &Owner,
    node: &str,
    attempt: u32,
) -> Result<Outcome, ApplyError> {
    let name = migration.name_any();
    let uid = migration.metadata.uid.clone().unwrap_or_default();
    let patch = Patch::Json::<()>(swap(&uid, seen, &Owner { node: node.to_owned(), attempt }));
    match migrations(context, migration).patch_status(&name, &PatchParams::default(), &patch).await {
        Ok(_) => {
            info!(name, attempt, "attempt aborted");
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
    let value = |owner: &Owner| json!({ "node": owner.node, "attempt": owner.attempt });
    JsonPatch(vec![
        test(["metadata", "uid"], json!(uid)),
        test(["status", "owner"], value(seen)),
        test(["status", "attempt"], json!(want.attempt)),
        PatchOperation::Replace(ReplaceOperation {
            path: PointerBuf::from_tokens(["status", "owner"]),
            value: value(want),
        }),
    ])
}
