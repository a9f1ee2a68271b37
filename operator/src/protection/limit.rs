//! What is done for a pod whose container waits to be moved because its application was restarted too often. Pure.

use crate::moves::{self, Next};
use crate::pod::restarts::Held;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use tideover_crds::{Migration, MigrationReason, Obstacle};

/// How long nothing is moved again for this reason. `tideover-init` itself waits for longer before it asks once more; this is for
/// what a container may claim.
const PAUSE: SignedDuration = SignedDuration::from_mins(5);

/// As much of a pod's name as goes into the name of the Migration, so that it fits into a label.
const POD_NAME_KEPT: usize = 28;
/// As much of the container's id.
const ID_KEPT: usize = 6;

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// A Migration is to be created, with this name.
    Begin(String),
    /// It is not moved, for this reason. The container ends by itself when it has waited long enough.
    Refuse(String),
    /// It was moved, or is being moved.
    Nothing,
}

/// What is done for `pod`, which is `held`, has these obstacles, and is in the namespace of `migrations`. There is one Migration for each
/// time that it waits, whatever becomes of it.
pub(super) fn answer(
    pod: &Pod,
    held: &Held,
    obstacles: &[Obstacle],
    migrations: &[Migration],
    now: Timestamp,
) -> Answer {
    let (pod_name, uid) = (pod.name_any(), pod.uid().unwrap_or_default());
    let name = name(&pod_name, &uid, held);
    let began = migrations.iter().any(|migration| migration.name_any() == name);
    match moves::next(migrations, pod, Some(held.since)) {
        _ if began => return Answer::Nothing,
        Next::UnderWay(_) | Next::Failed(_) => return Answer::Nothing,
        Next::Create(_) => {}
    }
    if let Some(obstacle) = obstacles.first() {
        return Answer::Refuse(format!("it can't be moved: {}", obstacle.message));
    }
    let recent = |migration: &&Migration| {
        migration.spec.reason == MigrationReason::StartLimit
            && moves::concerns(migration, &pod_name, &uid)
            && moves::ended_at(migration).is_some_and(|at| now.duration_since(at) < PAUSE)
    };
    match migrations.iter().find(recent) {
        Some(recent) => Answer::Refuse(format!(
            "the Migration {} has ended less than {} minutes ago, for the same reason",
            recent.name_any(),
            PAUSE.as_mins()
        )),
        None => Answer::Begin(name),
    }
}

/// The same whenever it is made, so that the API server itself sees to it that there is one.
fn name(pod: &str, uid: &str, held: &Held) -> String {
    let pod: String = pod.chars().take(POD_NAME_KEPT).collect();
    let pod = pod.trim_end_matches(['-', '.']);
    let uid = uid.get(..8).unwrap_or(uid);
    // Of a pod's containers that kubelet has made one after another, each numbers its ends from 1.
    let id = held.id.get(..ID_KEPT).unwrap_or(&held.id);
    format!("{pod}-{uid}-{id}-{:x}", held.sequence)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::condition::{self, Says};
    use tideover_crds::{MigrationStatus, ObstacleReason, Phase};

    const POD_UID: &str = "0123456789abcdef";

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn pod() -> Pod {
        let mut pod = Pod::default();
        pod.metadata.name = Some("store-0".into());
        pod.metadata.uid = Some(POD_UID.into());
        pod
    }

    fn held() -> Held {
        Held { since: at(1000), id: "abcdef0123456789".into(), sequence: 5 }
    }

    /// A Migration of the pod that ended at `second`, or has not ended.
    fn migration(name: &str, reason: MigrationReason, phase: Phase, second: Option<i64>) -> Migration {
        let mut migration = moves::migration_of(&pod(), name.into(), reason);
        let mut status = MigrationStatus { phase, ..Default::default() };
        if let Some(second) = second {
            let says = Says { holds: true, reason: "Ended", message: "m" };
            condition::set(&mut status.conditions, "Completed", &says, None, at(second));
        }
        migration.status = Some(status);
        migration
    }

    #[test]
    fn a_container_that_waits_is_moved_once() {
        use Answer::{Begin, Nothing, Refuse};
        use MigrationReason::{Drain, StartLimit};
        let ours = "store-0-01234567-abcdef-5";
        let too_soon =
            |name| Refuse(format!("the Migration {name} has ended less than 5 minutes ago, for the same reason"));
        let table = [
            ("nothing was done", vec![], Begin(ours.into())),
            ("it was begun", vec![migration(ours, StartLimit, Phase::Pending, None)], Nothing),
            ("it has failed", vec![migration(ours, StartLimit, Phase::Failed, Some(1001))], Nothing),
            ("it was called off", vec![migration(ours, StartLimit, Phase::Cancelled, Some(1001))], Nothing),
            ("a drain moves it", vec![migration("d", Drain, Phase::PreCopying, None)], Nothing),
            ("a drain could not move it", vec![migration("d", Drain, Phase::Failed, Some(1001))], Nothing),
            ("a drain could not before", vec![migration("d", Drain, Phase::Failed, Some(999))], Begin(ours.into())),
            ("it has just come", vec![migration("m", StartLimit, Phase::Succeeded, Some(800))], too_soon("m")),
            ("it has failed before", vec![migration("m", StartLimit, Phase::Failed, Some(800))], too_soon("m")),
            ("it came long ago", vec![migration("m", StartLimit, Phase::Succeeded, Some(700))], Begin(ours.into())),
            ("a drain has brought it", vec![migration("d", Drain, Phase::Succeeded, Some(999))], Begin(ours.into())),
        ];
        for (what, migrations, expected) in table {
            assert_eq!(answer(&pod(), &held(), &[], &migrations, at(1001)), expected, "{what}");
        }
    }

    #[test]
    fn a_pod_that_is_not_movable_is_refused_with_the_reason() {
        let obstacle = Obstacle { reason: ObstacleReason::Terminal, message: "tty is true".into() };
        let refused = Answer::Refuse("it can't be moved: tty is true".into());
        assert_eq!(answer(&pod(), &held(), &[obstacle], &[], at(1001)), refused);
    }

    #[test]
    fn another_time_and_another_container_are_another_move() {
        let names = [
            name("store-0", POD_UID, &held()),
            name("store-0", POD_UID, &Held { sequence: 6, ..held() }),
            name("store-0", POD_UID, &Held { id: "0".repeat(64), ..held() }),
            name("store-0", "fedcba98", &held()),
        ];
        assert!((1..names.len()).all(|index| !names[..index].contains(&names[index])), "{names:?}");
    }

    #[test]
    fn names_fit_into_a_label() {
        let longest = name(&"x".repeat(253), POD_UID, &Held { sequence: u64::MAX, ..held() });
        assert!(longest.len() <= 63, "{longest}");
    }
}
