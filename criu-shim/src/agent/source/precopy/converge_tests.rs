use super::*;
use proptest::prelude::*;

const AIM: Duration = Duration::from_millis(300);
const BESIDE: Duration = Duration::from_millis(100);
const PLENTY: Duration = Duration::from_secs(1_000);
const POLICIES: [NonConvergence; 3] = [NonConvergence::Proceed, NonConvergence::WaitForQuiet, NonConvergence::GiveUp];

fn aims(on_non_convergence: NonConvergence) -> Aims {
    Aims { max_downtime: AIM, max_rounds: 30, on_non_convergence, auto_converge: false }
}

fn progress(rounds: &[RoundSeen]) -> Progress<'_> {
    Progress { rounds, since: 0, cpu_percent: 100, stage: Stage::Before, beside: BESIDE, left: PLENTY }
}

/// Rounds sent one right after the other, in MiB and milliseconds.
fn back_to_back(rounds: &[(u64, u64)]) -> Vec<RoundSeen> {
    let millis = |index: usize| Duration::from_millis(rounds[index].1);
    let exposed = |index: usize| index.checked_sub(1).map_or(Duration::ZERO, millis);
    (0..rounds.len())
        .map(|index| RoundSeen {
            bytes: rounds[index].0 << 20,
            took: millis(index),
            exposed: exposed(index),
            held_back: Duration::ZERO,
            all_looked: true,
            placing: None,
        })
        .collect()
}

fn is_freeze(decision: Decision) -> bool {
    matches!(decision, Decision::Freeze { .. })
}

#[test]
fn one_round_says_nothing_about_what_is_written() {
    for policy in POLICIES {
        assert_eq!(next(&aims(policy), &progress(&[])), Decision::Again);
        assert_eq!(next(&aims(policy), &progress(&back_to_back(&[(64, 100)]))), Decision::Again);
    }
}

#[test]
fn a_process_that_writes_little_converges_at_once() {
    for rounds in [[(1024, 2_000), (5, 10)], [(1024, 2_000), (0, 1)]] {
        assert!(is_freeze(next(&aims(NonConvergence::GiveUp), &progress(&back_to_back(&rounds)))));
    }
}

#[test]
fn a_process_that_writes_slower_than_it_is_sent_needs_some_rounds() {
    let rounds = back_to_back(&[(4096, 8_000), (2400, 4_800), (1440, 2_880)]);
    for policy in POLICIES {
        assert_eq!(next(&aims(policy), &progress(&rounds)), Decision::Again);
        assert_eq!(next(&aims(policy), &progress(&rounds[..2])), Decision::Again);
    }
}

#[test]
fn the_policy_says_what_follows_where_memory_is_written_as_fast_as_it_is_sent() {
    let rounds = back_to_back(&[(1000, 2_000); 4]);
    assert_eq!(next(&aims(NonConvergence::GiveUp), &progress(&rounds[..3])), Decision::Again, "one may be a burst");
    let proceed = next(&aims(NonConvergence::Proceed), &progress(&rounds));
    assert!(matches!(proceed, Decision::Freeze { predicted } if predicted > AIM));
    assert_eq!(next(&aims(NonConvergence::WaitForQuiet), &progress(&rounds)), Decision::Wait);
    let given_up = next(&aims(NonConvergence::GiveUp), &progress(&rounds));
    let Decision::GiveUp(refusal) = given_up else { panic!("{given_up:?}") };
    let sentence =
        "memory is written about as fast as it is copied: the freeze would take about 2100 ms, 300 ms are allowed";
    assert_eq!(refusal.to_string(), sentence);
}

#[test]
fn whoever_waits_for_quiet_gives_up_when_the_time_is_over() {
    let rounds = back_to_back(&[(1000, 2_000); 4]);
    let late = Progress { left: Duration::ZERO, ..progress(&rounds) };
    let decision = next(&aims(NonConvergence::WaitForQuiet), &late);
    assert!(matches!(decision, Decision::GiveUp(Refusal { outcome: Outcome::TimeUsedUp, .. })), "{decision:?}");
}

#[test]
fn a_round_that_would_not_land_in_time_is_not_begun() {
    let rounds = back_to_back(&[(4096, 8_000), (2400, 4_800)]);
    let short = Progress { left: Duration::from_secs(4), ..progress(&rounds) };
    assert!(is_freeze(next(&aims(NonConvergence::Proceed), &short)));
    for policy in [NonConvergence::WaitForQuiet, NonConvergence::GiveUp] {
        let decision = next(&aims(policy), &short);
        assert!(matches!(decision, Decision::GiveUp(Refusal { outcome: Outcome::TimeUsedUp, .. })), "{decision:?}");
    }
    let first = Progress { rounds: &rounds[..1], ..short };
    assert_eq!(next(&aims(NonConvergence::GiveUp), &first), Decision::Again, "nothing is known of the second round");
}

#[test]
fn whoever_waits_for_quiet_freezes_when_it_has_come() {
    let mut rounds = back_to_back(&[(1000, 2_000); 4]);
    let quiet = RoundSeen {
        bytes: 1 << 20,
        took: Duration::from_millis(2),
        exposed: Duration::from_millis(250),
        held_back: Duration::ZERO,
        all_looked: true,
        placing: None,
    };
    rounds.extend([quiet; 2]);
    assert!(is_freeze(next(&aims(NonConvergence::WaitForQuiet), &progress(&rounds))));
}

#[test]
fn rounds_that_did_not_look_are_no_quiet() {
    let mut rounds = back_to_back(&[(1000, 2_000); 4]);
    let rested = RoundSeen { bytes: 0, took: Duration::from_millis(2), all_looked: false, ..rounds[3] };
    rounds.extend([rested; 3]);
    for policy in [NonConvergence::WaitForQuiet, NonConvergence::GiveUp] {
        let decision = next(&aims(policy), &progress(&rounds));
        assert!(!is_freeze(decision), "{policy:?}: {decision:?}");
    }
}

#[test]
fn rounds_that_still_gain_end_with_what_the_policy_allows() {
    let rounds = back_to_back(&[(16_000, 32_000), (10_000, 20_000), (6_000, 12_000), (3_600, 7_200)]);
    let few = Aims { max_rounds: 4, ..aims(NonConvergence::GiveUp) };
    assert_eq!(next(&few, &progress(&rounds[..3])), Decision::Again);
    let decision = next(&few, &progress(&rounds));
    assert!(matches!(decision, Decision::GiveUp(Refusal { outcome: Outcome::RoundsUsedUp, .. })), "{decision:?}");
}

#[test]
fn a_freeze_that_would_be_rolled_back_is_not_begun() {
    let rounds = back_to_back(&[(100_000, 200_000); 4]);
    let decision = next(&aims(NonConvergence::Proceed), &progress(&rounds));
    assert!(
        matches!(decision, Decision::GiveUp(Refusal { limit: LONGEST_FREEZE, .. })),
        "the policy says to proceed, but not for minutes: {decision:?}"
    );
}

#[test]
fn a_container_is_slowed_down_before_the_policy_is_asked() {
    let rounds = back_to_back(&[(1000, 2_000); 5]);
    for policy in POLICIES {
        let allowed = Aims { auto_converge: true, ..aims(policy) };
        assert_eq!(next(&allowed, &progress(&rounds)), Decision::Throttle { percent: 80 });
        // The round after a step was written partly before it.
        let step = Progress { since: 6, cpu_percent: 80, ..progress(&rounds) };
        assert_eq!(next(&allowed, &step), Decision::Again);
        let more = back_to_back(&[(1000, 2_000); 8]);
        let step = Progress { since: 6, cpu_percent: 80, ..progress(&more) };
        assert_eq!(next(&allowed, &step), Decision::Throttle { percent: 70 });
        let last = Progress { since: 6, cpu_percent: 10, ..progress(&more) };
        assert_eq!(next(&allowed, &last), Decision::Again, "without another step one may be a burst again");
        let most = back_to_back(&[(1000, 2_000); 10]);
        let last = Progress { since: 6, cpu_percent: 10, ..progress(&most) };
        assert!(!matches!(next(&allowed, &last), Decision::Throttle { .. } | Decision::Again));
    }
}

#[test]
fn a_container_that_has_converged_before_the_handover_is_slowed_down_further_at_the_go() {
    let allowed = Aims { auto_converge: true, ..aims(NonConvergence::GiveUp) };
    // 200 ms of 300 are for what is written, which takes 500 now.
    let rounds = back_to_back(&[(1000, 2_000), (250, 500), (250, 500), (250, 500)]);
    let go = Progress { stage: Stage::AtTheGo, since: 2, cpu_percent: 80, ..progress(&rounds) };
    assert_eq!(next(&allowed, &go), Decision::Throttle { percent: 30 }, "the first step that would do");
    let files: Vec<_> = rounds.iter().map(|round| RoundSeen { placing: Some(round.took), ..*round }).collect();
    let with_files = Progress { rounds: &files, ..go };
    assert_eq!(next(&allowed, &with_files), Decision::Throttle { percent: 10 }, "files are written as memory is");
    let unslowed = Progress { cpu_percent: 100, ..go };
    assert_eq!(next(&allowed, &unslowed), Decision::Again, "one may be a burst");
    let never = Progress { beside: AIM, ..go };
    assert_eq!(next(&allowed, &never), Decision::Throttle { percent: 10 }, "to the last before it gives up");
    let late = Progress { left: Duration::ZERO, ..go };
    assert!(matches!(next(&allowed, &late), Decision::GiveUp(Refusal { outcome: Outcome::TimeUsedUp, .. })));
}

#[test]
fn at_the_go_one_more_round_is_enough_for_whoever_proceeds() {
    let rounds = back_to_back(&[(1000, 2_000); 5]);
    let go = Progress { stage: Stage::AtTheGo, since: 3, ..progress(&rounds) };
    assert!(is_freeze(next(&aims(NonConvergence::Proceed), &go)));
    assert_eq!(next(&aims(NonConvergence::GiveUp), &go), Decision::Again);
}

#[test]
fn at_the_go_rounds_that_gain_go_on() {
    let rounds = back_to_back(&[(1000, 2_000), (600, 1_200), (300, 600)]);
    let go = Progress { stage: Stage::AtTheGo, since: 1, ..progress(&rounds) };
    assert_eq!(next(&aims(NonConvergence::Proceed), &go), Decision::Again);
}

fn any_aims() -> impl Strategy<Value = Aims> {
    (0..5_000_u64, 2..60_usize, prop::sample::select(POLICIES.to_vec()), any::<bool>()).prop_map(
        |(millis, max_rounds, on_non_convergence, auto_converge)| Aims {
            max_downtime: Duration::from_millis(millis),
            max_rounds,
            on_non_convergence,
            auto_converge,
        },
    )
}

fn any_round() -> impl Strategy<Value = RoundSeen> {
    (0..1_u64 << 44, 0..100_000_u64, 0..100_000_u64).prop_map(|(bytes, took, exposed)| RoundSeen {
        bytes,
        took: Duration::from_millis(took),
        exposed: Duration::from_millis(exposed),
        held_back: Duration::ZERO,
        all_looked: true,
        placing: None,
    })
}

/// Follows the decisions over `rounds`, as the driver does. Returns them all: the last is an end, or the rounds were used up.
fn follow(aims: &Aims, rounds: &[RoundSeen], stage: Stage) -> Vec<Decision> {
    let (mut since, mut cpu_percent, mut all) = (0, 100, Vec::new());
    for count in 1..=rounds.len() {
        let seen = Progress { since, cpu_percent, stage, ..progress(&rounds[..count]) };
        let decision = next(aims, &seen);
        all.push(decision);
        match decision {
            Decision::Throttle { percent } => (since, cpu_percent) = (count + 1, percent),
            Decision::Freeze { .. } | Decision::GiveUp(_) => break,
            Decision::Again | Decision::Wait => {}
        }
    }
    all
}

fn is_end(decision: &Decision) -> bool {
    matches!(decision, Decision::Freeze { .. } | Decision::GiveUp(_))
}

proptest! {
    /// Whatever the rounds are like: only who waits for quiet sends more of them than allowed.
    #[test]
    fn rounds_come_to_an_end(aims in any_aims(), rounds in prop::collection::vec(any_round(), 60..70)) {
        let all = follow(&aims, &rounds, Stage::Before);
        let active = all.iter().filter(|decision| **decision != Decision::Wait).count();
        prop_assert!(active <= aims.max_rounds);
        prop_assert!(is_end(&all[all.len() - 1]) || aims.on_non_convergence == NonConvergence::WaitForQuiet);
        let waits = all.contains(&Decision::Wait);
        prop_assert!(!waits || aims.on_non_convergence == NonConvergence::WaitForQuiet);
    }

    /// Nothing is decided after the time is used up but an end.
    #[test]
    fn the_time_is_kept(aims in any_aims(), rounds in prop::collection::vec(any_round(), 1..70)) {
        let late = Progress { left: Duration::ZERO, ..progress(&rounds) };
        prop_assert!(is_end(&next(&aims, &late)));
        let at_the_go = Progress { stage: Stage::AtTheGo, since: rounds.len() - 1, ..late };
        prop_assert!(is_end(&next(&aims, &at_the_go)));
    }

    #[test]
    fn a_freeze_longer_than_wished_for_is_decided_only_where_the_policy_says_to_proceed(
        aims in any_aims(),
        rounds in prop::collection::vec(any_round(), 1..40),
        since in 0..42_usize,
        left in 0..100_u64,
        at_the_go in any::<bool>(),
    ) {
        let stage = if at_the_go { Stage::AtTheGo } else { Stage::Before };
        let seen = Progress { since, stage, left: Duration::from_secs(left), ..progress(&rounds) };
        match next(&aims, &seen) {
            Decision::Freeze { predicted } if aims.on_non_convergence == NonConvergence::Proceed => {
                prop_assert!(predicted <= LONGEST_FREEZE);
            }
            Decision::Freeze { predicted } => prop_assert!(predicted <= aims.max_downtime),
            Decision::GiveUp(refusal) => {
                prop_assert!(aims.on_non_convergence != NonConvergence::Proceed || refusal.predicted > LONGEST_FREEZE);
            }
            Decision::Throttle { percent } => prop_assert!(aims.auto_converge && STEPS.contains(&percent)),
            Decision::Again | Decision::Wait => prop_assert!(left > 0),
        }
    }

    /// Each step leaves less than the one before, and none less than the last of the list.
    #[test]
    fn a_container_is_slowed_down_step_by_step_and_not_to_a_standstill(
        aims in any_aims(),
        rounds in prop::collection::vec(any_round(), 60..70),
        at_the_go in any::<bool>(),
    ) {
        let aims = Aims { auto_converge: true, ..aims };
        let all = follow(&aims, &rounds, if at_the_go { Stage::AtTheGo } else { Stage::Before });
        let steps: Vec<u32> = all
            .iter()
            .filter_map(|decision| match decision {
                Decision::Throttle { percent } => Some(*percent),
                _ => None,
            })
            .collect();
        prop_assert!(steps.windows(2).all(|pair| pair[1] < pair[0]));
        prop_assert!(steps.iter().all(|percent| (10..100).contains(percent)));
    }

    /// A process that writes evenly at half the rate at which it is sent, or slower, converges before rounds or patience end.
    #[test]
    fn what_is_written_at_half_the_rate_of_the_connection_converges(
        mib in 16..100_000_u64,
        sent in 100..5_000_u64,
        share in 0..50_u64,
    ) {
        let (mut rounds, mut exposed) = (Vec::new(), Duration::ZERO);
        let (sent, written) = ((sent << 20) as f64, (sent << 20) as f64 * share as f64 / 100.0);
        let mut bytes = (mib << 20) as f64;
        let decision = loop {
            let took = Duration::from_secs_f64(bytes / sent);
            rounds.push(RoundSeen { bytes: bytes as u64, took, exposed, held_back: Duration::ZERO, all_looked: true, placing: None });
            let decision = next(&aims(NonConvergence::GiveUp), &progress(&rounds));
            if decision != Decision::Again {
                break decision;
            }
            (bytes, exposed) = (written * took.as_secs_f64(), took);
        };
        prop_assert!(is_freeze(decision), "{decision:?} after {} rounds", rounds.len());
    }
}
