//! What the rounds of several containers come to for the pod, which is frozen at one cut. Pure.
//!
//! Each container's rounds are measured while the others' go on beside them, so what is predicted for one has their share of the
//! network and the processors in it already: the freeze is as long as the longest.

use crate::agent::source::precopy::converge::Decision;
use std::time::Duration;
use tideover_crds::{Convergence, PreCopied};

/// What is next for the pod, from what is next for each of its containers. One that would give up ends it for all; then one that
/// has rounds to gain from; then one that must be slowed down, or waited for. The freeze is for all of them.
pub(super) fn decision(each: &[Decision]) -> Decision {
    let rank = |decision: &Decision| match decision {
        Decision::Freeze { .. } => 0,
        Decision::Wait => 1,
        Decision::Throttle { .. } => 2,
        Decision::Again => 3,
        Decision::GiveUp(_) => 4,
    };
    let longest = each.iter().filter_map(|decision| match decision {
        Decision::Freeze { predicted } => Some(*predicted),
        _ => None,
    });
    let longest = longest.max().unwrap_or(Duration::ZERO);
    match each.iter().max_by_key(|decision| rank(decision)) {
        None | Some(Decision::Freeze { .. }) => Decision::Freeze { predicted: longest },
        Some(other) => *other,
    }
}

/// The rounds of all containers whose memory is followed.
pub(super) fn convergence(each: impl Iterator<Item = Convergence>) -> Option<Convergence> {
    each.reduce(|all, one| Convergence {
        sent_per_second: all.sent_per_second + one.sent_per_second,
        written_per_second: all.written_per_second + one.written_per_second,
        predicted_freeze_millis: all.predicted_freeze_millis.max(one.predicted_freeze_millis),
        cpu_percent: [all.cpu_percent, one.cpu_percent].into_iter().flatten().min(),
    })
}

/// What all containers have sent. Their rounds go on side by side.
pub(super) fn pre_copied(each: impl Iterator<Item = PreCopied>) -> Option<PreCopied> {
    each.reduce(|all, one| PreCopied {
        rounds: all.rounds.max(one.rounds),
        bytes: all.bytes + one.bytes,
        millis: all.millis.max(one.millis),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::source::precopy::converge::{Outcome, Refusal};
    use proptest::prelude::*;

    const FREEZE: Decision = Decision::Freeze { predicted: Duration::from_millis(20) };

    fn refusal() -> Decision {
        let (predicted, limit) = (Duration::from_secs(2), Duration::from_secs(1));
        Decision::GiveUp(Refusal { outcome: Outcome::Stalled, predicted, limit })
    }

    #[test]
    fn a_pod_is_frozen_only_when_each_of_its_containers_would_be_for_as_long_as_the_longest_takes() {
        let longer = Decision::Freeze { predicted: Duration::from_millis(50) };
        assert_eq!(decision(&[FREEZE, longer, FREEZE]), longer);
        let throttle = Decision::Throttle { percent: 50 };
        for (each, expected) in [
            (vec![FREEZE, Decision::Again], Decision::Again),
            (vec![Decision::Wait, FREEZE], Decision::Wait),
            (vec![throttle, FREEZE, Decision::Wait], throttle),
            (vec![throttle, Decision::Again], Decision::Again),
            (vec![Decision::Again, refusal(), FREEZE], refusal()),
        ] {
            assert_eq!(decision(&each), expected, "{each:?}");
        }
    }

    #[test]
    fn what_crossed_side_by_side_is_added_up_and_took_as_long_as_the_longest() {
        let one = |rounds, bytes, millis| PreCopied { rounds, bytes, millis };
        let all = pre_copied([one(2, 10, 5.0), one(3, 1, 4.0)].into_iter()).expect("some");
        assert_eq!((all.rounds, all.bytes, all.millis), (3, 11, 5.0));
        let one = |sent_per_second, predicted_freeze_millis, cpu_percent| Convergence {
            sent_per_second,
            written_per_second: 1.0,
            predicted_freeze_millis,
            cpu_percent,
        };
        let all = convergence([one(10.0, 5.0, None), one(20.0, 3.0, Some(50))].into_iter()).expect("some");
        assert_eq!((all.sent_per_second, all.predicted_freeze_millis, all.cpu_percent), (30.0, 5.0, Some(50)));
        assert_eq!(convergence(std::iter::empty()), None);
    }

    fn any_decision() -> impl Strategy<Value = Decision> {
        prop_oneof![
            Just(Decision::Again),
            Just(Decision::Wait),
            (1u64..100).prop_map(|millis| Decision::Freeze { predicted: Duration::from_millis(millis) }),
            (1u32..100).prop_map(|percent| Decision::Throttle { percent }),
            Just(refusal()),
        ]
    }

    proptest! {
        #[test]
        fn the_order_of_containers_does_not_matter_to_whether_they_are_frozen(
            mut each in proptest::collection::vec(any_decision(), 1..5),
        ) {
            let frozen = |decision| matches!(decision, Decision::Freeze { .. });
            let all = each.iter().all(|one| frozen(*one));
            prop_assert_eq!(frozen(decision(&each)), all);
            each.reverse();
            prop_assert_eq!(frozen(decision(&each)), all);
        }
    }
}
