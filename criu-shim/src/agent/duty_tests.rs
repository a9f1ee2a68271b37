//! The table of duties, and the two rules that hold for every sequence of objects.

use super::*;
use crate::agent::fixture::{PHASES, migration};
use proptest::prelude::{any, prop, prop_assert, prop_assert_eq, prop_assume, proptest};
use tideover_crds::Owner;

fn source(attempt: u32, at: SourceAt) -> SourceLocal {
    SourceLocal { attempt, at }
}

#[test]
fn a_source_does_one_thing_after_the_other() {
    let base = migration().attempt(1).target_step(TargetStep::Listening);
    let duty = |phase, at| source_duty(&base.clone().phase(phase).build(), source(1, at));
    assert_eq!(duty(Phase::Pending, SourceAt::Idle), SourceDuty::None);
    assert_eq!(duty(Phase::Preparing, SourceAt::Idle), SourceDuty::Preflight(1));
    assert_eq!(duty(Phase::Preparing, SourceAt::Ready), SourceDuty::None);
    assert_eq!(duty(Phase::PreCopying, SourceAt::Ready), SourceDuty::Connect(1));
    assert_eq!(duty(Phase::Rehearsing, SourceAt::Connected), SourceDuty::Cut(1));
    assert_eq!(duty(Phase::Rehearsing, SourceAt::Cut), SourceDuty::None, "one cut is enough");
    assert_eq!(duty(Phase::Freezing, SourceAt::Cut), SourceDuty::Freeze(1));
    assert_eq!(duty(Phase::Handover, SourceAt::Connected), SourceDuty::None);
    assert_eq!(duty(Phase::Freezing, SourceAt::Connected), SourceDuty::Freeze(1));
    assert_eq!(duty(Phase::Freezing, SourceAt::Frozen), SourceDuty::Settle(1));
    assert_eq!(duty(Phase::Freezing, SourceAt::Failed), SourceDuty::None);
}

#[test]
fn nothing_is_frozen_for_a_migration_that_is_being_deleted() {
    let deleted = migration().attempt(1).phase(Phase::Freezing).deleted().build();
    assert_eq!(source_duty(&deleted, source(1, SourceAt::Connected)), SourceDuty::None);
}

#[test]
fn an_aborted_attempt_ends_in_thawed_whether_or_not_it_froze() {
    let aborted = migration().attempt(1).phase(Phase::RollingBack).owner("a", 1);
    let build = aborted.build();
    assert_eq!(source_duty(&build, source(1, SourceAt::Frozen)), SourceDuty::Thaw(1));
    assert_eq!(source_duty(&build, source(1, SourceAt::Connected)), SourceDuty::Abandon(1));
    assert_eq!(source_duty(&build, source(0, SourceAt::Idle)), SourceDuty::Abandon(1));
    let reported = aborted.source_step(SourceStep::Thawed).build();
    assert_eq!(source_duty(&reported, source(0, SourceAt::Idle)), SourceDuty::None);
}

#[test]
fn a_pod_frozen_for_an_earlier_attempt_is_judged_by_that_attempt() {
    let next = migration().attempt(2).phase(Phase::Preparing).owner("a", 1).build();
    assert_eq!(source_duty(&next, source(1, SourceAt::Frozen)), SourceDuty::Thaw(1));
    assert_eq!(source_duty(&next, source(1, SourceAt::Thawed)), SourceDuty::Preflight(2));
}

#[test]
fn a_commit_retires_the_source_whatever_it_remembers() {
    let committed = migration().attempt(1).phase(Phase::Succeeded).owner("b", 1);
    for at in [SourceAt::Idle, SourceAt::Connected, SourceAt::Frozen, SourceAt::Thawed] {
        assert_eq!(source_duty(&committed.build(), source(1, at)), SourceDuty::Retire(1), "{at:?}");
    }
    let reported = committed.source_step(SourceStep::Retired).build();
    assert_eq!(source_duty(&reported, source(0, SourceAt::Idle)), SourceDuty::None);
}

fn listening() -> TargetLocal {
    TargetLocal { attempt: 1, listening: true, ..TargetLocal::default() }
}

#[test]
fn a_target_holds_before_it_commits_where_the_replacement_comes_first() {
    let base = migration().attempt(1).phase(Phase::Freezing).build();
    let duty = |local| target_duty(&base, "b", local);
    assert_eq!(duty(TargetLocal::default()), TargetDuty::Listen(1));
    assert_eq!(duty(listening()), TargetDuty::None);
    let waiting = TargetLocal { waiting: true, ..listening() };
    assert_eq!(duty(waiting), TargetDuty::Take(1), "the go");
    assert_eq!(duty(TargetLocal { taking: Taking::UnderWay, ..waiting }), TargetDuty::None);
    assert_eq!(duty(TargetLocal { failed: true, ..waiting }), TargetDuty::None);
    let before = migration().attempt(1).phase(Phase::Handover).build();
    assert_eq!(target_duty(&before, "b", waiting), TargetDuty::None, "not before the go");
    assert_eq!(duty(TargetLocal { staged: true, ..listening() }), TargetDuty::None);
    let ready = TargetLocal { staged: true, waiting: true, ..listening() };
    assert_eq!(duty(ready), TargetDuty::Release(1));
    assert_eq!(duty(TargetLocal { released: true, ..ready }), TargetDuty::None);
    let held = TargetLocal { released: true, held: true, ..ready };
    assert_eq!(duty(held), TargetDuty::None, "not its own yet");
    assert_eq!(duty(TargetLocal { taking: Taking::UnderWay, ..held }), TargetDuty::None);
    assert_eq!(duty(TargetLocal { taking: Taking::Done, ..held }), TargetDuty::Run(1), "the watch is behind");
    assert_eq!(duty(TargetLocal { taking: Taking::Done, held: false, ..held }), TargetDuty::None);
    assert_eq!(duty(TargetLocal { taking: Taking::Done, failed: true, ..held }), TargetDuty::None);
}

#[test]
fn what_was_taken_is_run_by_its_taker_and_committed_or_given_back_by_the_agent_that_comes_after_it() {
    let taken = migration().attempt(1).phase(Phase::Freezing).taken("b", 1).build();
    let duty = |local| target_duty(&taken, "b", local);
    let restoring = TargetLocal { staged: true, waiting: true, released: true, taking: Taking::Done, ..listening() };
    assert_eq!(duty(restoring), TargetDuty::None);
    let held = TargetLocal { held: true, ..restoring };
    assert_eq!(duty(held), TargetDuty::Run(1));
    assert_eq!(duty(TargetLocal { failed: true, ..held }), TargetDuty::None, "it is given back");
    assert_eq!(duty(TargetLocal { resumed: true, ..restoring }), TargetDuty::None, "the commit is on its way");
    assert_eq!(duty(TargetLocal { taking: Taking::UnderWay, ..held }), TargetDuty::None);
    let adopted = TargetLocal { taking: Taking::Not, failed: true, ..held };
    assert_eq!(duty(adopted), TargetDuty::Commit(1));
    assert_eq!(duty(TargetLocal { resumed: true, ..adopted }), TargetDuty::Commit(1));
    assert_eq!(duty(TargetLocal { listening: false, ..adopted }), TargetDuty::None, "nothing of it is here");
    let unreleased = TargetLocal { unreleased: true, released: false, held: false, ..adopted };
    assert_eq!(duty(unreleased), TargetDuty::Take(1), "nothing was let run: to give it back");
    assert_eq!(duty(TargetLocal { taking: Taking::UnderWay, ..unreleased }), TargetDuty::None);
    let again = TargetLocal { released: false, ..restoring };
    assert_eq!(duty(again), TargetDuty::Release(1), "all has landed, or its relay has come back without the word");
    assert_eq!(duty(TargetLocal { staged: false, ..again }), TargetDuty::None);
    assert_eq!(duty(TargetLocal { staged: false, ..held }), TargetDuty::None);
    assert_eq!(duty(TargetLocal { failed: true, ..again }), TargetDuty::None);
    assert_eq!(target_duty(&taken, "c", adopted), TargetDuty::None, "another node's");
}

#[test]
fn a_source_comes_to_the_freeze_of_what_the_target_has_taken_or_takes_it_back() {
    let taken = migration().attempt(1).phase(Phase::Freezing).taken("b", 1).build();
    for (at, duty) in [
        (SourceAt::Idle, SourceDuty::TakeBack(1)),
        (SourceAt::Ready, SourceDuty::TakeBack(1)),
        (SourceAt::Failed, SourceDuty::TakeBack(1)),
        (SourceAt::Connected, SourceDuty::Freeze(1)),
        (SourceAt::Cut, SourceDuty::Freeze(1)),
        (SourceAt::Frozen, SourceDuty::Settle(1)),
        (SourceAt::Thawed, SourceDuty::None),
    ] {
        assert_eq!(source_duty(&taken, source(1, at)), duty, "{at:?}");
    }
    let deleted = migration().attempt(1).phase(Phase::Freezing).taken("b", 1).deleted().build();
    for at in [SourceAt::Connected, SourceAt::Cut] {
        assert_eq!(source_duty(&deleted, source(1, at)), SourceDuty::TakeBack(1), "{at:?}");
    }
}

#[test]
fn a_target_commits_what_is_staged_where_the_name_must_be_free_first() {
    let base = migration().attempt(1).phase(Phase::Freezing).strategy(Strategy::DeleteFirst);
    let staged = TargetLocal { staged: true, ..listening() };
    assert_eq!(target_duty(&base.build(), "b", staged), TargetDuty::Commit(1));
    let committed = base.owner("b", 1).build();
    assert_eq!(target_duty(&committed, "b", staged), TargetDuty::None);
    let asked = TargetLocal { waiting: true, ..staged };
    assert_eq!(target_duty(&committed, "b", asked), TargetDuty::Release(1));
    let held = TargetLocal { released: true, held: true, ..asked };
    assert_eq!(target_duty(&committed, "b", held), TargetDuty::Resume(1));
    assert_eq!(target_duty(&committed, "b", TargetLocal { resumed: true, ..held }), TargetDuty::Clean(1));
}

#[test]
fn a_node_that_was_the_target_of_an_earlier_attempt_cleans_up() {
    let next = migration().attempt(2).owner("a", 1).phase(Phase::Preparing).target_node("c").build();
    assert_eq!(target_duty(&next, "b", listening()), TargetDuty::Destroy(1));
    let done = TargetLocal { destroyed: true, ..listening() };
    assert_eq!(target_duty(&next, "b", done), TargetDuty::None, "another node is the target now");
}

#[test]
fn a_state_that_was_given_up_after_the_commit_is_destroyed_and_never_resumed() {
    let committed = migration().attempt(1).phase(Phase::Committing).owner("b", 1);
    let given_up = committed.given_up().build();
    let held = TargetLocal { staged: true, waiting: true, released: true, held: true, ..listening() };
    assert_eq!(target_duty(&given_up, "b", held), TargetDuty::Destroy(1));
    let waiting = TargetLocal { released: false, held: false, ..held };
    assert_eq!(target_duty(&given_up, "b", waiting), TargetDuty::Destroy(1));
    assert_eq!(target_duty(&given_up, "b", TargetLocal { destroyed: true, ..waiting }), TargetDuty::None);
    assert_eq!(target_duty(&given_up, "b", TargetLocal::default()), TargetDuty::None);
    let resumed = TargetLocal { resumed: true, ..held };
    assert_eq!(target_duty(&given_up, "b", resumed), TargetDuty::Clean(1), "too late, it runs");
}

fn any_taking() -> impl proptest::strategy::Strategy<Value = Taking> {
    prop::sample::select(&[Taking::Not, Taking::UnderWay, Taking::Done][..])
}

fn any_phase() -> impl proptest::strategy::Strategy<Value = Phase> {
    prop::sample::select(&PHASES[..])
}

proptest! {
    /// Whatever the objects say in whatever order, a pod frozen for attempt N thaws only where N is aborted, and
    /// is retired only where something is committed.
    #[test]
    fn no_thaw_without_an_abort_and_no_end_without_a_commit(
        frozen_for in 1_u32..4, attempt in 0_u32..5, phase in any_phase(), on_target: bool, decided in 0_u32..5,
        deleted: bool, delete_first: bool, tentative: bool,
    ) {
        let node = if on_target { "b" } else { "a" };
        let mut fixture = migration().attempt(attempt).phase(phase).owner(node, decided);
        if on_target && tentative { fixture = fixture.taken(node, decided); }
        if deleted { fixture = fixture.deleted(); }
        if delete_first { fixture = fixture.strategy(Strategy::DeleteFirst); }
        let object = fixture.build();
        let duty = source_duty(&object, source(frozen_for, SourceAt::Frozen));
        match duty {
            SourceDuty::Thaw(n) => prop_assert!(n == frozen_for && !on_target && decided >= frozen_for),
            SourceDuty::Retire(_) => prop_assert!(on_target && !tentative),
            SourceDuty::Settle(_) if on_target => prop_assert!(tentative),
            SourceDuty::Settle(_) => prop_assert!(decided < frozen_for),
            other => prop_assert!(false, "a frozen pod was answered with {other:?}"),
        }
    }

    /// Whatever a target has done and whatever the objects say, it resumes only where this node owns the application,
    /// and commits only what is complete.
    #[test]
    fn no_resume_without_a_commit_to_this_node(
        attempt in 0_u32..4, local_attempt in 0_u32..4, phase in any_phase(), owner in "[abc]", decided in 0_u32..4,
        flags in proptest::collection::vec(any::<bool>(), 9), taking in any_taking(), delete_first: bool, given_up: bool,
        tentative: bool,
    ) {
        let mut fixture = migration().attempt(attempt).phase(phase).owner(&owner, decided);
        let tentative = tentative && owner != "a";
        if tentative { fixture = fixture.taken(&owner, decided); }
        if given_up { fixture = fixture.given_up(); }
        if delete_first { fixture = fixture.strategy(Strategy::DeleteFirst); }
        let local = TargetLocal {
            attempt: local_attempt, listening: flags[0], staged: flags[1], waiting: flags[2], released: flags[3],
            held: flags[4], resumed: flags[5], failed: flags[6], destroyed: flags[7], unreleased: flags[8], taking,
        };
        match target_duty(&fixture.build(), "b", local) {
            TargetDuty::Resume(_) => prop_assert!(owner == "b" && !tentative && local.held && !given_up),
            TargetDuty::Run(n) => {
                prop_assert!(local.taking == Taking::Done && local.staged && local.held);
                prop_assert!(!local.failed && n == local.attempt);
                prop_assert!((owner == "b" && tentative) || (owner == "a" && (decided < n || n == 0)));
            }
            TargetDuty::Commit(n) if owner == "b" => {
                prop_assert!(tentative && (n != local.attempt || (local.taking == Taking::Not && !local.unreleased)));
            }
            TargetDuty::Take(n) => {
                prop_assert!(n == local.attempt && local.taking == Taking::Not);
                let at_the_go = owner == "a" && decided < n && phase == Phase::Freezing && !local.failed && !delete_first;
                prop_assert!(at_the_go || (owner == "b" && tentative && local.unreleased));
            }
            TargetDuty::Commit(n) => {
                prop_assert!(owner == "a" && decided < n && n == local.attempt && !local.failed);
                prop_assert!(delete_first && local.staged);
            }
            TargetDuty::Release(n) => {
                let taken = tentative && local.taking != Taking::Not && !local.failed;
                prop_assert!((owner == "b" && (taken || (!tentative && !given_up))) || (owner == "a" && decided < n));
            }
            TargetDuty::Destroy(n) => {
                let given_up = owner == "b" && !tentative && given_up && !local.resumed;
                prop_assert!(given_up || (owner == "a" && decided >= n));
            }
            TargetDuty::Clean(_) => prop_assert!(owner == "b" && !tentative && local.resumed),
            TargetDuty::Listen(n) => prop_assert!(owner == "a" && decided < n && n == attempt),
            TargetDuty::None => {}
        }
    }

    /// The two sides never both go on: where one may run the application, the other may not.
    #[test]
    fn the_two_sides_never_both_run(
        attempt in 1_u32..4, phase in any_phase(), on_target: bool, tentative: bool, decided in 0_u32..4,
        taking in any_taking(),
    ) {
        let fixture = migration().attempt(attempt).phase(phase);
        let object = match (on_target, tentative) {
            (false, _) => fixture.owner("a", decided),
            (true, false) => fixture.owner("b", decided),
            (true, true) => fixture.taken("b", decided),
        };
        let object = object.build();
        let thaws = matches!(source_duty(&object, source(attempt, SourceAt::Frozen)), SourceDuty::Thaw(_));
        let held = TargetLocal { staged: true, waiting: true, released: true, held: true, attempt, listening: true,
            taking, ..TargetLocal::default() };
        let resumes = matches!(target_duty(&object, "b", held), TargetDuty::Resume(_) | TargetDuty::Run(_));
        prop_assert!(!(thaws && resumes));
    }
}

#[test]
fn the_owner_alone_decides_and_not_the_phase() {
    let mut object = migration().attempt(1).phase(Phase::Failed).build();
    assert_eq!(source_duty(&object, source(1, SourceAt::Frozen)), SourceDuty::Settle(1));
    let status = object.status.as_mut().expect("status");
    status.owner = Some(Owner::new("a", 1));
    assert_eq!(source_duty(&object, source(1, SourceAt::Frozen)), SourceDuty::Thaw(1));
}

fn any_lane() -> impl proptest::strategy::Strategy<Value = LaneLocal> {
    use proptest::strategy::Strategy as _;
    any::<(bool, bool, bool, bool, bool)>().prop_map(|(staged, waiting, released, held, resumed)| LaneLocal {
        staged,
        waiting,
        released,
        held,
        resumed,
    })
}

const HELD: LaneLocal = LaneLocal { staged: true, waiting: true, released: true, held: true, resumed: false };

#[test]
fn a_pod_is_committed_when_the_last_of_its_containers_is_held() {
    let base = migration().attempt(1).phase(Phase::Freezing).build();
    let taken = TargetLocal { taking: Taking::Done, ..listening() };
    let duty = |lanes: &[LaneLocal]| target_duty(&base, "b", taken.of_pod(lanes, true));
    let waits = LaneLocal { released: false, held: false, ..HELD };
    assert_eq!(duty(&[waits, LaneLocal { waiting: false, ..waits }]), TargetDuty::None);
    assert_eq!(duty(&[waits, LaneLocal { staged: false, ..waits }]), TargetDuty::None);
    assert_eq!(duty(&[waits, waits]), TargetDuty::Release(1));
    assert_eq!(duty(&[HELD, LaneLocal { held: false, ..HELD }]), TargetDuty::None);
    assert_eq!(duty(&[HELD, HELD]), TargetDuty::Run(1));
}

#[test]
fn what_is_committed_before_it_is_held_is_let_run_when_all_of_it_is() {
    let committed = migration().attempt(1).phase(Phase::Committing).owner("b", 1).build();
    let duty = |lanes: &[LaneLocal]| target_duty(&committed, "b", listening().of_pod(lanes, true));
    let gone = LaneLocal { staged: true, ..LaneLocal::default() };
    let waits = LaneLocal { waiting: true, ..gone };
    assert_eq!(duty(&[waits, gone]), TargetDuty::None);
    assert_eq!(duty(&[waits, waits]), TargetDuty::Release(1));
    assert_eq!(duty(&[HELD, waits]), TargetDuty::Release(1), "an agent before this one has released the other");
    assert_eq!(duty(&[HELD, LaneLocal { held: false, ..HELD }]), TargetDuty::None);
    assert_eq!(duty(&[HELD, gone]), TargetDuty::None);
    assert_eq!(duty(&[HELD, HELD]), TargetDuty::Resume(1));
}

#[test]
fn once_they_are_told_to_run_each_container_goes_for_itself() {
    let committed = migration().attempt(1).phase(Phase::Committing).owner("b", 1).build();
    let duty = |lanes: &[LaneLocal]| target_duty(&committed, "b", listening().of_pod(lanes, false));
    let runs = LaneLocal { held: false, resumed: true, ..HELD };
    assert_eq!(duty(&[HELD, HELD]), TargetDuty::Resume(1));
    assert_eq!(duty(&[runs, HELD]), TargetDuty::Resume(1));
    let gone = LaneLocal { staged: true, ..LaneLocal::default() };
    assert_eq!(duty(&[runs, gone]), TargetDuty::None, "its `create` comes again");
    assert_eq!(duty(&[runs, LaneLocal { waiting: true, ..gone }]), TargetDuty::Release(1));
    assert_eq!(duty(&[HELD, LaneLocal { waiting: true, ..gone }]), TargetDuty::Resume(1));
    assert_eq!(duty(&[runs, runs]), TargetDuty::Clean(1));
}

proptest! {
    #[test]
    fn nothing_is_committed_for_a_pod_of_which_anything_is_not_held(
        lanes in prop::collection::vec(any_lane(), 0..5),
    ) {
        let base = migration().attempt(1).phase(Phase::Freezing).build();
        let taken = TargetLocal { taking: Taking::Done, ..listening() };
        let duty = target_duty(&base, "b", taken.of_pod(&lanes, true));
        prop_assert!(duty != TargetDuty::Run(1) || (!lanes.is_empty() && lanes.iter().all(|lane| lane.held)));
        prop_assert!(duty != TargetDuty::Release(1) || lanes.iter().all(|lane| lane.staged && lane.waiting));
    }

    #[test]
    fn one_container_is_to_its_pod_what_it_is_to_itself(lane in any_lane(), together in any::<bool>()) {
        let LaneLocal { staged, waiting, released, held, resumed } = lane;
        // What has run is never waited for again, and what is held was released.
        prop_assume!(!resumed && (released || !held) && (waiting || !released));
        let pod = listening().of_pod(&[lane], together);
        prop_assert_eq!(pod, TargetLocal { staged, waiting, released, held, ..listening() });
    }
}
