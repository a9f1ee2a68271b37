//! The Migrations of one pod: which is under way, which has failed, and what the next one is called. Pure.

use crate::condition;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use tideover_crds::migration::Verdict;
use tideover_crds::{Migration, MigrationReason, MigrationSpec, MigrationStatus, Phase, PodRef};

/// As much of a pod's name as goes into the name of its Migrations, so that they fit into a label.
const POD_NAME_KEPT: usize = 45;

/// True once a Migration has been accepted and is not over: it counts against the limits.
pub fn is_under_way(migration: &Migration) -> bool {
    migration.status.as_ref().is_some_and(|status| status.owner.is_some() && !status.phase.is_terminal())
}

/// True of a Migration that is over.
pub fn is_over(migration: &Migration) -> bool {
    migration.status.as_ref().is_some_and(|status| status.phase.is_terminal())
}

/// When a Migration ended, if it is over.
pub fn ended_at(migration: &Migration) -> Option<Timestamp> {
    condition::true_since(&migration.status.as_ref()?.conditions, "Completed")
}

/// True where the Migration moves the pod with this name and UID, from there or to it.
pub fn concerns(migration: &Migration, name: &str, uid: &str) -> bool {
    let status = migration.status.as_ref();
    let source = status.and_then(|status| status.source_pod.as_ref()).map(|pod| pod.uid.as_str());
    let replacement = status.and_then(|status| status.replacement.as_ref()).map(|pod| pod.uid.as_str());
    if source.is_some() || replacement.is_some() {
        return source == Some(uid) || replacement == Some(uid);
    }
    migration.spec.pod.name == name && migration.spec.pod.uid.as_ref().is_none_or(|wanted| wanted == uid)
}

/// What is to be done about moving a pod that shall move.
#[derive(Debug, PartialEq)]
pub enum Next<'a> {
    /// It is being moved.
    UnderWay(&'a Migration),
    /// It was tried, and it failed.
    Failed(&'a Migration),
    /// Nothing stands in the way of a new Migration with this name.
    Create(String),
}

/// Looks at the Migrations of the namespace of `pod`. A failure counts if it ended at `since` or later; without
/// `since`, any does.
pub fn next<'a>(migrations: &'a [Migration], pod: &Pod, since: Option<Timestamp>) -> Next<'a> {
    let (name, uid) = (pod.name_any(), pod.uid().unwrap_or_default());
    let of_pod = || migrations.iter().filter(|migration| concerns(migration, &name, &uid));
    if let Some(migration) = of_pod().find(|migration| !is_over(migration)) {
        return Next::UnderWay(migration);
    }
    let failed = of_pod().filter(|one| one.status.as_ref().is_some_and(has_stayed));
    let counts = |one: &&Migration| since.is_none_or(|since| ended_at(one).is_some_and(|at| at >= since));
    match failed.filter(counts).max_by_key(|one| ended_at(one)) {
        Some(migration) => Next::Failed(migration),
        None => Next::Create(free_name(migrations, &name, &uid)),
    }
}

/// The move has failed, and its pod is where it was. One that was given up after its commit has left that place.
fn has_stayed(status: &MigrationStatus) -> bool {
    status.phase == Phase::Failed && status.verdict() != Verdict::Committed
}

/// The first name that no Migration has. Two that look at the same list choose the same one, and one of them is told
/// by the API server that it exists.
fn free_name(migrations: &[Migration], pod: &str, uid: &str) -> String {
    let keep = pod.len().min(POD_NAME_KEPT);
    let pod = pod[..keep].trim_end_matches(['-', '.']);
    let uid = uid.get(..8).unwrap_or(uid);
    let name = |number: usize| format!("{pod}-{uid}-{number}");
    let taken = |name: &str| migrations.iter().any(|migration| migration.name_any() == name);
    (1..=migrations.len()).map(name).find(|name| !taken(name)).unwrap_or_else(|| name(migrations.len() + 1))
}

/// A Migration of `pod`, by UID.
pub fn migration_of(pod: &Pod, name: String, reason: MigrationReason) -> Migration {
    Migration {
        metadata: ObjectMeta { name: Some(name), namespace: pod.namespace(), ..Default::default() },
        spec: MigrationSpec { pod: PodRef { name: pod.name_any(), uid: pod.uid() }, target_node: None, reason },
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::condition::Says;
    use tideover_crds::{ObjectRef, Owner};

    fn pod() -> Pod {
        let mut pod = Pod::default();
        pod.metadata.name = Some("store-0".into());
        pod.metadata.uid = Some("0123456789abcdef".into());
        pod
    }

    fn ended(name: &str, phase: Phase, second: i64) -> Migration {
        let mut migration = migration_of(&pod(), name.into(), MigrationReason::Drain);
        let mut status = MigrationStatus { phase, ..Default::default() };
        let says = Says { holds: true, reason: "Ended", message: "m" };
        condition::set(&mut status.conditions, "Completed", &says, None, at(second));
        migration.status = Some(status);
        migration
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    #[test]
    fn the_first_one_is_number_one() {
        assert_eq!(next(&[], &pod(), None), Next::Create("store-0-01234567-1".into()));
    }

    #[test]
    fn a_second_one_gets_another_name() {
        let before = [ended("store-0-01234567-1", Phase::Cancelled, 5)];
        assert_eq!(next(&before, &pod(), None), Next::Create("store-0-01234567-2".into()));
    }

    #[test]
    fn one_under_way_is_enough() {
        let before = [migration_of(&pod(), "m".into(), MigrationReason::Manual)];
        assert_eq!(next(&before, &pod(), None), Next::UnderWay(&before[0]));
    }

    #[test]
    fn a_failure_counts_from_when_it_was_asked_for() {
        let before = [ended("store-0-01234567-1", Phase::Failed, 5)];
        assert_eq!(next(&before, &pod(), Some(at(5))), Next::Failed(&before[0]));
        assert_eq!(next(&before, &pod(), Some(at(6))), Next::Create("store-0-01234567-2".into()));
    }

    #[test]
    fn a_move_that_was_given_up_after_its_commit_is_no_failure_to_leave() {
        let mut given_up = ended("store-0-01234567-1", Phase::Failed, 5);
        let status = given_up.status.as_mut().expect("a status");
        status.attempt = 1;
        status.owner = Some(Owner::new("b", 1));
        let pod = |uid: &str, node: &str| {
            Some(ObjectRef { name: "store-0".into(), uid: uid.into(), node: Some(node.into()) })
        };
        status.source_pod = pod("old", "a");
        status.replacement = pod("0123456789abcdef", "b");
        assert_eq!(next(&[given_up], &self::pod(), None), Next::Create("store-0-01234567-2".into()));
    }

    #[test]
    fn another_pod_of_the_same_name_is_another_pod() {
        let mut earlier = migration_of(&pod(), "m".into(), MigrationReason::Manual);
        earlier.spec.pod.uid = Some("other".into());
        assert!(matches!(next(&[earlier], &pod(), None), Next::Create(_)));
    }

    #[test]
    fn names_fit_into_a_label() {
        let mut pod = pod();
        pod.metadata.name = Some("x".repeat(253));
        let Next::Create(name) = next(&[], &pod, None) else { panic!("a name") };
        assert!(name.len() <= 63, "{name}");
    }
}
