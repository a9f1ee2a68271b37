//! The patch that writes what the operator decided into a Migration's status, and nothing that is not the operator's.
//!
//! It applies only to the object that the decision was taken on: same UID, and still in the same phase and attempt,
//! with the same owner. So neither a decision that came late nor one of a former leader can overwrite a newer one, while
//! the agents' reports, which change all the time, do not get in the way.

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation, RemoveOperation, TestOperation};
use serde_json::{Map, Value};
use tideover_crds::{Migration, MigrationStatus};

/// Fields of the status that agents write.
const AGENTS: [&str; 2] = ["source", "target"];

/// Builds the patch from the observed Migration to `status`.
///
/// # Errors
/// Where a status can't be turned into JSON.
pub fn status_patch(observed: &Migration, status: &MigrationStatus) -> Result<Patch, serde_json::Error> {
    let before = observed.status.as_ref();
    let mut operations = vec![test(&["metadata", "uid"], observed.metadata.uid.clone().into())];
    let accepted = before.is_some_and(|before| before.owner.is_some());
    let old = before.map_or_else(|| Ok(Map::new()), fields)?;
    let new = fields(status)?;
    if accepted {
        for field in ["phase", "attempt", "owner"] {
            operations.push(test(&["status", field], old.get(field).cloned().unwrap_or_default()));
        }
    } else {
        // Nobody else writes before the Migration is accepted, and a missing field can't be tested for.
        let version = observed.metadata.resource_version.clone();
        operations.push(test(&["metadata", "resourceVersion"], version.into()));
        if before.is_none() {
            operations.push(add(&["status"], Value::Object(Map::new())));
        }
    }
    let ours = |field: &str| !(AGENTS.contains(&field) || accepted && field == "owner");
    for (field, value) in new.iter().filter(|(field, value)| ours(field) && old.get(*field) != Some(*value)) {
        operations.push(add(&["status", field], value.clone()));
    }
    for field in old.keys().filter(|field| ours(field) && !new.contains_key(*field)) {
        operations.push(PatchOperation::Remove(RemoveOperation { path: pointer(&["status", field]) }));
    }
    Ok(Patch(operations))
}

fn fields(status: &MigrationStatus) -> Result<Map<String, Value>, serde_json::Error> {
    Ok(match serde_json::to_value(status)? {
        Value::Object(fields) => fields,
        _ => Map::new(),
    })
}

fn pointer(tokens: &[&str]) -> PointerBuf {
    PointerBuf::from_tokens(tokens.iter().copied())
}

fn test(path: &[&str], value: Value) -> PatchOperation {
    PatchOperation::Test(TestOperation { path: pointer(path), value })
}

fn add(path: &[&str], value: Value) -> PatchOperation {
    PatchOperation::Add(AddOperation { path: pointer(path), value })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tideover_crds::{Owner, Phase};

    fn migration(status: Value) -> Migration {
        serde_json::from_value(json!({
            "apiVersion": "tideover.dev/v1alpha1", "kind": "Migration",
            "metadata": { "name": "m", "uid": "u", "resourceVersion": "7" },
            "spec": { "pod": { "name": "p" } }, "status": status,
        }))
        .expect("a Migration")
    }

    fn accepted() -> Value {
        json!({ "phase": "Preparing", "attempt": 1, "owner": { "node": "a", "attempt": 0 }, "conditions": [],
                "targetNode": "b" })
    }

    /// The object in the API server after the patch, if it applies.
    fn after(observed: &Migration, status: &MigrationStatus, mut stored: Value) -> Option<Value> {
        let patch = status_patch(observed, status).expect("a patch");
        json_patch::patch(&mut stored, &patch).ok().map(|()| stored)
    }

    fn stored(status: Value) -> Value {
        json!({ "metadata": { "uid": "u", "resourceVersion": "9" }, "status": status })
    }

    #[test]
    fn a_report_that_came_in_between_stays() {
        let observed = migration(accepted());
        let mut status = observed.status.clone().expect("a status");
        status.phase = Phase::PreCopying;
        status.target_node = None;
        let mut now = accepted();
        now["source"] = json!({ "attempt": 1, "step": "Ready" });
        let stored = after(&observed, &status, stored(now)).expect("it applies");
        assert_eq!(stored["status"]["phase"], "PreCopying");
        assert_eq!(stored["status"]["source"]["step"], "Ready");
        assert_eq!(stored["status"].get("targetNode"), None);
    }

    #[test]
    fn a_decision_about_another_phase_attempt_or_owner_does_not_apply() {
        let observed = migration(accepted());
        let mut status = observed.status.clone().expect("a status");
        status.phase = Phase::PreCopying;
        for (field, value) in
            [("phase", json!("RollingBack")), ("attempt", json!(2)), ("owner", json!({ "node": "b", "attempt": 1 }))]
        {
            let mut now = accepted();
            now[field] = value;
            assert_eq!(after(&observed, &status, stored(now)), None, "{field}");
        }
    }

    #[test]
    fn the_owner_is_written_once_when_the_migration_is_accepted() {
        let observed = migration(Value::Null);
        let status = MigrationStatus { owner: Some(Owner::new("a", 0)), ..Default::default() };
        let fresh = json!({ "metadata": { "uid": "u", "resourceVersion": "7" } });
        let stored = after(&observed, &status, fresh).expect("it applies");
        assert_eq!(stored["status"]["owner"], json!({ "node": "a", "attempt": 0 }));

        let observed = migration(accepted());
        let mut status = observed.status.clone().expect("a status");
        status.owner = Some(Owner::new("b", 1));
        let patch = status_patch(&observed, &status).expect("a patch");
        let adds = |operation: &&PatchOperation| matches!(operation, PatchOperation::Add(_));
        assert_eq!(patch.0.iter().filter(adds).count(), 0);
    }
}
