//! What is looked at, by name. The names are those of the tests in `e2e/tests/vm`.

mod kernel;
mod own_tests;
mod supervision;

/// A name, and what is looked at.
pub type Check = (&'static str, fn() -> anyhow::Result<()>);

/// Every check, in the order in which they are made.
pub const ALL: &[Check] = &[
    ("cgroup_v2_is_all_there_is", kernel::cgroup_v2_is_all_there_is),
    ("soft_dirty_is_tracked", kernel::soft_dirty_is_tracked),
    ("a_crash_is_followed_by_another_run_in_place", supervision::a_crash_is_followed_by_another_run_in_place),
    ("an_oom_kill_is_told_apart_from_a_sigkill", supervision::an_oom_kill_is_told_apart_from_a_sigkill),
    ("an_oom_kill_next_door_is_not_the_containers", supervision::an_oom_kill_next_door_is_not_the_containers),
    ("with_oom_group_the_whole_container_is_killed", supervision::with_oom_group_the_whole_container_is_killed),
    (
        "without_a_view_of_its_cgroup_an_oom_kill_is_a_sigkill",
        supervision::without_a_view_of_its_cgroup_an_oom_kill_is_a_sigkill,
    ),
    ("strays_end_with_the_run_and_a_debuggers_do_not", supervision::strays_end_with_the_run_and_a_debuggers_do_not),
    ("the_tests_of_init_pass", own_tests::the_tests_of_init_pass),
    ("the_tests_of_freezer_and_cpu_limits_pass", own_tests::the_tests_of_freezer_and_cpu_limits_pass),
    ("the_tests_of_the_memory_engine_pass", own_tests::the_tests_of_the_memory_engine_pass),
    ("a_whole_move_by_write_protection", own_tests::a_whole_move_by_write_protection),
    ("a_whole_move_by_soft_dirty_marks", own_tests::a_whole_move_by_soft_dirty_marks),
    ("a_whole_move_by_comparing", own_tests::a_whole_move_by_comparing),
    ("a_dump_leaves_out_memory_that_was_copied", own_tests::a_dump_leaves_out_memory_that_was_copied),
    ("a_dump_leaves_out_shared_memory", own_tests::a_dump_leaves_out_shared_memory),
    ("what_criu_holds_stays_frozen_where_it_dies", own_tests::what_criu_holds_stays_frozen_where_it_dies),
];
