//! What must hold on a kernel other than this machine's: cgroup v2 alone, soft-dirty. One boot of a virtual machine makes all
//! checks; each test here asks what has become of one of them. The checks are in `e2e/guest/src/checks`.

use std::sync::OnceLock;

use anyhow::{Context, Result, bail, ensure};
use e2e::progress::Progress;
use e2e::vm::boot::tail;
use e2e::vm::report::Report;

/// What the one boot has brought, the same for all tests.
fn report() -> Result<&'static Report> {
    static REPORT: OnceLock<Result<Report, String>> = OnceLock::new();
    let boot = || e2e::vm::run(&Progress::new()).map_err(|error| format!("{:#}", anyhow::Error::from(error)));
    match REPORT.get_or_init(boot) {
        Ok(report) => Ok(report),
        Err(error) => bail!("{error}"),
    }
}

fn passed(name: &str) -> Result<()> {
    let report = report()?;
    let check = report.checks.get(name);
    let found =
        check.with_context(|| format!("the machine has not got there; it said last:\n{}", tail(&report.console)));
    match found? {
        None => Ok(()),
        Some(error) => bail!("{error}\nThe console's end:\n{}", tail(&report.console)),
    }
}

/// A test for each check, and one that no check of the machine's is without its test.
macro_rules! checks {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() -> Result<()> {
            passed(stringify!($name))
        })*

        #[test]
        fn every_check_has_its_test() -> Result<()> {
            let report = report()?;
            ensure!(report.is_complete, "the machine did not come to its end: {}", tail(&report.console));
            let mut checks: Vec<&str> = vec![$(stringify!($name)),*];
            checks.sort_unstable();
            let made: Vec<&str> = report.checks.keys().map(String::as_str).collect();
            ensure!(made == checks, "tests: {checks:?}, checks: {made:?}");
            Ok(())
        }
    };
}

checks! {
    cgroup_v2_is_all_there_is
    soft_dirty_is_tracked
    a_crash_is_followed_by_another_run_in_place
    an_oom_kill_is_told_apart_from_a_sigkill
    an_oom_kill_next_door_is_not_the_containers
    with_oom_group_the_whole_container_is_killed
    without_a_view_of_its_cgroup_an_oom_kill_is_a_sigkill
    strays_end_with_the_run_and_a_debuggers_do_not
    the_tests_of_init_pass
    the_tests_of_freezer_and_cpu_limits_pass
    the_tests_of_the_memory_engine_pass
    a_whole_move_by_write_protection
    a_whole_move_by_soft_dirty_marks
    a_whole_move_by_comparing
    a_dump_leaves_out_memory_that_was_copied
    a_dump_leaves_out_shared_memory
    what_criu_holds_stays_frozen_where_it_dies
}
