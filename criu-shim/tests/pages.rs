//! The page daemon with real userfaultfds: another process plays CRIU and what CRIU restores.

#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "pages/application.rs"]
mod application;
#[path = "pages/machine.rs"]
mod machine;
#[path = "pages/scenarios.rs"]
mod scenarios;

use criu_shim::pages::daemon::Status;
use machine::Machine;
use scenarios::Scenario;
use std::time::Instant;

/// Pages of a usual process here: 16 MiB.
const PAGES: u64 = 4096;

/// Serves `scenario` to its end, and sees that nothing is left over.
fn check(scenario: Scenario) {
    let machine = Machine::on_tmpfs().with_store(17, PAGES);
    machine.serve_to_the_end(&[17], scenario);
}

/// Not a test: what the process that plays CRIU runs.
#[test]
#[ignore = "started by the other tests"]
fn plays_criu() {
    scenarios::play();
}

#[test]
fn every_page_is_right_while_the_fill_runs_and_pages_are_touched_at_random() {
    check(Scenario::TouchedAtRandom);
}

#[test]
fn pages_that_nobody_touches_are_there_in_the_end() {
    check(Scenario::Untouched);
}

#[test]
fn a_store_on_a_disk_serves_as_well() {
    let machine = Machine::on_disk().with_store(17, PAGES);
    machine.serve_to_the_end(&[17], Scenario::TouchedAtRandom);
}

#[test]
fn a_store_that_lasts_is_there_for_another_restore_until_the_processes_have_run() {
    let machine = Machine::on_tmpfs().with_lasting_store(17, PAGES);
    let blocks = machine.blocks(17);
    // CRIU has finished, and has failed after that: nothing says that anything ran.
    let mut daemon = machine.daemon(&[17]);
    let mut application = machine.application(Scenario::TouchedAtRandom);
    machine.let_it_fill(&mut daemon);
    assert!(application.wait().unwrap().success() && daemon.wait().unwrap().success());
    assert_eq!(machine.blocks(17), blocks, "all of it is there");
    machine.mark_ran();
    machine.serve_to_the_end(&[17], Scenario::TouchedAtRandom);
}

#[test]
fn a_page_of_a_store_that_lasts_is_never_served_damaged() {
    let machine = Machine::on_tmpfs().with_lasting_store(17, PAGES);
    (0..32).for_each(|place| machine.damage(17, place));
    let mut daemon = machine.daemon(&[17]);
    let application = machine.application(Scenario::Held);
    machine.wait_for_failure("damaged");
    machine.wait_until_it_sleeps(&application);
    drop(application);
    assert!(!daemon.wait().unwrap().success());
}

#[test]
fn what_was_thrown_away_before_it_came_reads_as_zero() {
    check(Scenario::ThrownAway);
}

#[test]
fn what_is_thrown_away_while_it_comes_reads_as_zero() {
    check(Scenario::ThrownAwayDuringTheFill);
}

#[test]
fn what_moved_before_it_came_is_right_where_it_went() {
    check(Scenario::Moved);
}

#[test]
fn what_moves_while_it_comes_is_right_where_it_goes() {
    check(Scenario::MovedDuringTheFill);
}

#[test]
fn what_moved_and_shrank_leaves_its_new_neighbours_alone() {
    check(Scenario::MovedAndShrunk);
}

#[test]
fn what_was_unmapped_before_it_came_troubles_nobody() {
    check(Scenario::Unmapped);
}

#[test]
fn mappings_that_were_split_are_served_on_both_sides() {
    check(Scenario::Split);
}

#[test]
fn a_child_that_was_forked_before_the_pages_came_has_them_like_its_parent() {
    check(Scenario::Forked);
}

#[test]
fn children_that_are_forked_while_the_pages_come_have_them() {
    check(Scenario::ForkedDuringTheFill);
}

#[test]
fn a_child_does_not_get_what_was_kept_from_it() {
    check(Scenario::KeptFromTheChild);
}

#[test]
fn several_processes_are_served_at_once() {
    let machine = Machine::on_tmpfs().with_store(17, PAGES).with_store(23, PAGES).with_store(24, 0);
    machine.serve_to_the_end(&[17, 23, 24], Scenario::Several);
}

#[test]
fn a_process_that_dies_is_let_go_of() {
    check(Scenario::Dies);
}

#[test]
fn stale_pages_are_never_served() {
    let machine = Machine::on_tmpfs().with_stale_store(17, PAGES);
    machine.serve_to_the_end(&[17], Scenario::Stale);
}

#[test]
fn the_store_shrinks_while_it_is_used_up() {
    let machine = Machine::on_tmpfs().with_store(17, 8 * PAGES);
    let full = machine.blocks(17);
    let data = machine.data_file(17);
    let mut between = 0;
    let mut daemon = machine.daemon(&[17]);
    let mut application = machine.application(Scenario::Untouched);
    machine.let_it_fill(&mut daemon);
    loop {
        let blocks = machine::blocks(&data);
        between += u32::from(blocks > 0 && blocks < full);
        if blocks == 0 || application.try_wait().unwrap().is_some() {
            break;
        }
    }
    assert!(application.wait().unwrap().success());
    assert!(daemon.wait().unwrap().success());
    assert!(between > 0, "it went from full to empty at once");
}

#[test]
fn a_process_whose_daemon_was_killed_stands_still_and_sees_no_zeros() {
    let machine = Machine::on_tmpfs().with_store(17, PAGES);
    let mut daemon = machine.daemon(&[17]);
    let mut application = machine.application(Scenario::Orphaned);
    machine.wait_for(&Status::Serving);
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    machine.wait_for_failure("the page daemon was killed");
    machine.wait_until_it_sleeps(&application);
    assert!(application.try_wait().unwrap().is_none(), "it went on without its pages");
    application.kill().unwrap();
    application.wait().unwrap();
    machine.wait_until_nobody_serves();
}

#[test]
fn a_daemon_to_which_nobody_comes_ends_with_who_started_it() {
    let machine = Machine::on_tmpfs().with_store(17, PAGES);
    let mut daemon = machine.daemon(&[17]);
    drop(daemon.stdin.take());
    assert!(!daemon.wait().unwrap().success());
    machine.wait_for_failure("before CRIU asked");
    machine.wait_until_nobody_serves();
}

#[test]
fn a_process_without_a_store_stands_still_until_it_is_ended() {
    for (pids, why) in [(&[18][..], "not announced or came twice"), (&[17, 18], "use the page store of process 17")] {
        let machine = Machine::on_tmpfs();
        let mut daemon = machine.daemon(pids);
        let mut application = machine.application(Scenario::Held);
        machine.wait_for_failure(why);
        machine.wait_until_it_sleeps(&application);
        assert!(daemon.try_wait().unwrap().is_none(), "it let go of a process without its pages");
        assert!(application.try_wait().unwrap().is_none(), "it went on without its pages");
        application.kill().unwrap();
        application.wait().unwrap();
        assert!(!daemon.wait().unwrap().success());
    }
}

#[test]
fn a_restore_that_is_given_up_is_a_failure_and_leaves_the_store_for_the_next() {
    let machine = Machine::on_tmpfs().with_store(17, PAGES);
    let full = machine.blocks(17);
    let mut daemon = machine.daemon(&[17]);
    assert!(machine.application(Scenario::GivenUp).wait().unwrap().success());
    assert!(!daemon.wait().unwrap().success());
    machine.wait_for_failure("closed the connection");
    assert_eq!(machine.blocks(17), full);
    machine.serve_to_the_end(&[17], Scenario::TouchedAtRandom);
}

#[test]
fn a_restore_that_finishes_without_an_announced_process_is_a_failure() {
    let machine = Machine::on_tmpfs().with_store(17, PAGES).with_store(18, 1);
    let mut daemon = machine.daemon(&[17, 18]);
    let mut application = machine.application(Scenario::Held);
    machine.wait_for_failure("without process 18");
    application.kill().unwrap();
    application.wait().unwrap();
    assert!(!daemon.wait().unwrap().success());
}

#[test]
fn memory_that_criu_did_not_register_is_a_failure() {
    let machine = Machine::on_tmpfs().with_store(17, PAGES + 1);
    let mut daemon = machine.daemon(&[17]);
    let mut application = machine.application(Scenario::NotRegistered);
    machine.wait_for_failure("is lazy in the image and not registered");
    application.kill().unwrap();
    application.wait().unwrap();
    assert!(!daemon.wait().unwrap().success());
}

#[test]
#[ignore = "a measurement"]
fn measure_256_mib() {
    for scenario in [Scenario::Untouched, Scenario::Measured] {
        let machine = Machine::on_tmpfs().with_plain_store(17, 65536);
        let begin = Instant::now();
        machine.serve_to_the_end(&[17], scenario);
        println!("{scenario:?}: {:?} with both processes' start", begin.elapsed());
    }
}
