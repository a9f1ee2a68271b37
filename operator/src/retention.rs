//! Removes old Migrations that are over.

use crate::causes::chain;
use crate::moves;
use jiff::{SignedDuration, Timestamp};
use kube::api::{Api, DeleteParams, ListParams, Preconditions};
use kube::{Client, ResourceExt};
use std::collections::BTreeMap;
use std::time::Duration;
use tideover_crds::Migration;
use tracing::{info, warn};

/// How many of those that are over stay in each namespace.
const KEPT: usize = 20;

/// For how long each stays in any case: evictions are answered by what has just ended.
const KEPT_FOR: SignedDuration = SignedDuration::from_mins(10);

/// How often to look.
const PAUSE: Duration = Duration::from_secs(60);

/// Runs until it is dropped.
pub async fn run(client: Client) {
    loop {
        if let Err(error) = sweep(&client).await {
            warn!(error = chain(&error), "removing old Migrations");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn sweep(client: &Client) -> Result<(), kube::Error> {
    let all = Api::<Migration>::all(client.clone()).list(&ListParams::default()).await?;
    for migration in expired(&all.items, Timestamp::now()) {
        let (namespace, name) = (migration.namespace().unwrap_or_default(), migration.name_any());
        let api: Api<Migration> = Api::namespaced(client.clone(), &namespace);
        let only = Preconditions { uid: migration.uid(), resource_version: None };
        match api.delete(&name, &DeleteParams::default().preconditions(only)).await {
            Ok(_) => info!(namespace, name, "an old Migration is removed"),
            Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 409) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Those that may go: over for long enough, and with enough newer ones in their namespace.
fn expired(migrations: &[Migration], now: Timestamp) -> Vec<&Migration> {
    let mut over: BTreeMap<String, Vec<(Timestamp, &Migration)>> = BTreeMap::new();
    for migration in migrations.iter().filter(|migration| moves::is_over(migration)) {
        if let Some(at) = moves::ended_at(migration) {
            over.entry(migration.namespace().unwrap_or_default()).or_default().push((at, migration));
        }
    }
    let mut expired = Vec::new();
    for mut of_namespace in over.into_values() {
        of_namespace.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        let old = of_namespace.into_iter().skip(KEPT).filter(|(at, _)| now.duration_since(*at) > KEPT_FOR);
        expired.extend(old.map(|(_, migration)| migration));
    }
    expired
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ended(name: &str, minutes_ago: i64) -> Migration {
        let at = now() - SignedDuration::from_mins(minutes_ago);
        serde_json::from_value(json!({
            "apiVersion": "tideover.dev/v1alpha1", "kind": "Migration",
            "metadata": { "name": name, "namespace": "ns" }, "spec": { "pod": { "name": "p" } },
            "status": { "phase": "Succeeded", "conditions": [{ "type": "Completed", "status": "True", "reason": "R",
                "message": "", "lastTransitionTime": at }] },
        }))
        .expect("a Migration")
    }

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().expect("a time")
    }

    #[test]
    fn the_newest_twenty_stay_however_old() {
        let all: Vec<_> = (0..25).map(|age| ended(&format!("m{age}"), 100 + age)).collect();
        let names: Vec<_> = expired(&all, now()).into_iter().map(ResourceExt::name_any).collect();
        assert_eq!(names, ["m20", "m21", "m22", "m23", "m24"]);
    }

    #[test]
    fn what_has_just_ended_stays_however_many() {
        let all: Vec<_> = (0..25).map(|age| ended(&format!("m{age}"), 5)).collect();
        assert!(expired(&all, now()).is_empty());
    }

    #[test]
    fn what_is_not_over_stays() {
        let mut all: Vec<_> = (0..25).map(|age| ended(&format!("m{age}"), 100 + age)).collect();
        all.iter_mut().for_each(|one| one.status.get_or_insert_default().phase = tideover_crds::Phase::Committing);
        assert!(expired(&all, now()).is_empty());
    }
}
