//! What is done for a pod whose container waits to be moved because its application was restarted too often. Pure.
//!
//! An application that can't run anywhere would be moved for ever. So it is moved so often in an hour and no more, whatever pod it
//! is in: the policy's status remembers each move, and follows the application from pod to pod.

use crate::moves::{self, Next};
use crate::pod::restarts::Held;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use std::collections::BTreeSet;
use tideover_crds::migration::Verdict;
use tideover_crds::{Migration, MigrationReason, Obstacle, StartLimitMove};

/// How long nothing is moved again for this reason. `tideover-init` itself waits for longer before it asks once more; this is for
/// what a container may claim.
const PAUSE: SignedDuration = SignedDuration::from_mins(5);

/// How often one application is moved for this reason within [`WINDOW`]. A node that is bad for it is left with the first move; what
/// has failed on three more is not a node's fault.
const MOST: usize = 3;
/// For how long a move counts.
const WINDOW: SignedDuration = SignedDuration::from_hours(1);
/// How many moves are remembered.
const REMEMBERED: usize = 100;

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
    /// It is not moved, because it was moved so often before. A sentence.
    Bound(String),
    /// It was moved, or is being moved.
    Nothing,
}

/// The moves that count at `now`: those that are in `moves`, and those among `migrations` that are not and concern one of `pods`, which
/// are the UIDs of the policy's pods. Each names the pod that has the application by now.
pub(super) fn remembered(
    moves: &[StartLimitMove],
    migrations: &[Migration],
    pods: &BTreeSet<String>,
    now: Timestamp,
) -> Vec<StartLimitMove> {
    let counts = |at: &Time| now.duration_since(at.0) < WINDOW;
    let mut all: Vec<StartLimitMove> = moves
        .iter()
        .filter(|one| counts(&one.at))
        .map(|one| StartLimitMove { pod_uid: whereabouts(&one.pod_uid, migrations), ..one.clone() })
        .collect();
    for migration in migrations.iter().filter(|one| one.spec.reason == MigrationReason::StartLimit) {
        let (Some(at), Some(uid)) = (migration.creation_timestamp(), migration.spec.pod.uid.clone()) else { continue };
        let (name, now_in) = (migration.name_any(), whereabouts(&uid, migrations));
        let ours = pods.contains(&uid) || pods.contains(&now_in);
        if ours && counts(&at) && !all.iter().any(|one| one.migration == name) {
            all.push(StartLimitMove { migration: name, pod_uid: now_in, at });
        }
    }
    all.sort_by(|left, right| (left.at.0, &left.migration).cmp(&(right.at.0, &right.migration)));
    let surplus = all.len().saturating_sub(REMEMBERED);
    all.split_off(surplus)
}

/// The pod that has the application of pod `uid` after these `migrations`.
fn whereabouts(uid: &str, migrations: &[Migration]) -> String {
    let mut uid = uid.to_owned();
    let mut seen = BTreeSet::new();
    let left = |uid: &str| {
        migrations.iter().filter_map(|migration| migration.status.as_ref()).find_map(|status| {
            let from =
                status.source_pod.as_ref().filter(|pod| pod.uid == uid && status.verdict() == Verdict::Committed);
            from.and(status.replacement.as_ref()).map(|pod| pod.uid.clone())
        })
    };
    while seen.insert(uid.clone()) {
        match left(&uid) {
            Some(next) => uid = next,
            None => break,
        }
    }
    uid
}

/// What is done for `pod`, which is `held`, has these obstacles, and is in the namespace of `migrations`. There is one Migration for each
/// time that it waits, whatever becomes of it. `moves` are those that are [`remembered`].
pub(super) fn answer(
    pod: &Pod,
    held: &Held,
    obstacles: &[Obstacle],
    (migrations, moves): (&[Migration], &[StartLimitMove]),
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
    if let Some(recent) = migrations.iter().find(recent) {
        return Answer::Refuse(format!(
            "the Migration {} has ended less than {} minutes ago, for the same reason",
            recent.name_any(),
            PAUSE.as_mins()
        ));
    }
    let mut of_pod = moves.iter().filter(|one| one.pod_uid == uid);
    match of_pod.nth_back(MOST - 1) {
        // Of the newest ones, the first that will not count any more.
        Some(oldest) => Answer::Bound(format!(
            "it was moved {MOST} times within an hour for the same reason, and is not before {:.0}",
            oldest.at.0 + WINDOW
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
    use tideover_crds::{MigrationStatus, ObjectRef, ObstacleReason, Owner, Phase};

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
            assert_eq!(answer(&pod(), &held(), &[], (&migrations, &[]), at(1001)), expected, "{what}");
        }
    }

    #[test]
    fn a_pod_that_is_not_movable_is_refused_with_the_reason() {
        let obstacle = Obstacle { reason: ObstacleReason::Terminal, message: "tty is true".into() };
        let refused = Answer::Refuse("it can't be moved: tty is true".into());
        assert_eq!(answer(&pod(), &held(), &[obstacle], (&[], &[]), at(1001)), refused);
    }

    fn moved(migration: &str, uid: &str, second: i64) -> StartLimitMove {
        StartLimitMove { migration: migration.into(), pod_uid: uid.into(), at: Time(at(second)) }
    }

    #[test]
    fn an_application_is_moved_so_often_in_an_hour_and_no_more() {
        let begin = Answer::Begin("store-0-01234567-abcdef-5".into());
        let bound = |when: &str| {
            Answer::Bound(format!("it was moved 3 times within an hour for the same reason, and is not before {when}"))
        };
        let ours = |seconds: &[i64]| seconds.iter().map(|second| moved("m", POD_UID, *second)).collect::<Vec<_>>();
        let strangers = vec![moved("a", "x", 1), moved("b", "x", 2), moved("c", POD_UID, 3), moved("d", POD_UID, 4)];
        let table = [
            ("never", ours(&[]), begin),
            ("twice", ours(&[100, 400]), Answer::Begin("store-0-01234567-abcdef-5".into())),
            ("three times", ours(&[100, 400, 700]), bound("1970-01-01T01:01:40Z")),
            ("more often, under an agent that did not count", ours(&[1, 100, 400, 700]), bound("1970-01-01T01:01:40Z")),
            ("other applications count for themselves", strangers, Answer::Begin("store-0-01234567-abcdef-5".into())),
        ];
        for (what, moves, expected) in table {
            assert_eq!(answer(&pod(), &held(), &[], (&[], &moves), at(1001)), expected, "{what}");
        }
    }

    /// A Migration from pod `from` to pod `to`, created at `second`, committed or not.
    fn between(
        name: &str,
        reason: MigrationReason,
        (from, to): (&str, &str),
        second: i64,
        committed: bool,
    ) -> Migration {
        let mut migration = migration(name, reason, Phase::Succeeded, Some(second));
        migration.metadata.creation_timestamp = Some(Time(at(second)));
        migration.spec.pod.uid = Some(from.into());
        let reference =
            |uid: &str, node: &str| Some(ObjectRef { name: "p".into(), uid: uid.into(), node: Some(node.into()) });
        let status = migration.status.get_or_insert_default();
        (status.source_pod, status.replacement) = (reference(from, "a"), reference(to, "b"));
        status.attempt = 1;
        status.owner = Some(Owner::new(if committed { "b" } else { "a" }, 1));
        migration
    }

    #[test]
    fn a_move_is_remembered_with_the_pod_that_has_the_application_now() {
        use MigrationReason::{Drain, StartLimit};
        let pods = |uids: &[&str]| uids.iter().map(|uid| (*uid).to_owned()).collect::<BTreeSet<String>>();
        let chain = [
            between("one", StartLimit, ("u", "v"), 100, true),
            between("drain", Drain, ("v", "w"), 200, true),
            between("two", StartLimit, ("w", "x"), 300, false),
            between("other", StartLimit, ("s", "t"), 300, true),
        ];
        let found = remembered(&[], &chain, &pods(&["w"]), at(400));
        assert_eq!(found, [moved("one", "w", 100), moved("two", "w", 300)], "the last one was rolled back");
        // The Migrations are gone, but for one; and so is the pod.
        let rest = [between("three", Drain, ("w", "y"), 500, true)];
        let found = remembered(&found, &rest, &pods(&[]), at(3_699));
        assert_eq!(found, [moved("one", "y", 100), moved("two", "y", 300)]);
        assert_eq!(remembered(&found, &[], &pods(&["y"]), at(3_700)), [moved("two", "y", 300)], "an hour has passed");
    }

    #[test]
    fn not_more_moves_are_remembered_than_a_status_should_have() {
        let many: Vec<_> = (0..150).map(|second| moved(&format!("m{second}"), "u", second)).collect();
        let found = remembered(&many, &[], &BTreeSet::new(), at(200));
        assert_eq!((found.len(), found[0].at.0), (100, at(50)));
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
