use super::*;
use crate::throttle::fixture::Pod;

const LIMIT: Duration = Duration::from_secs(30);
const BUSY: [&str; 3] = ["sh", "-c", "while :; do :; done"];

fn freezer(pod: &Pod) -> Freezer {
    Freezer::of_process(pod.pid(), Path::new("/")).expect("freezer")
}

#[test]
fn what_is_frozen_gets_no_cpu_time_until_it_is_thawed() {
    let Some(pod) = Pod::start(&BUSY) else { return };
    let (freezer, usage) = (freezer(&pod), || pod.limits().usage().expect("usage"));
    assert_eq!(freezer.state().expect("state"), FreezerState::Thawed);
    freezer.freeze(LIMIT).expect("freeze");
    assert_eq!(freezer.state().expect("state"), FreezerState::Frozen);
    let frozen = usage();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(usage(), frozen, "it has run");
    freezer.thaw(LIMIT).expect("thaw");
    assert_eq!(freezer.state().expect("state"), FreezerState::Thawed);
    let begun = Instant::now();
    while usage() == frozen {
        assert!(begun.elapsed() < LIMIT, "it does not run");
        std::thread::yield_now();
    }
}

#[test]
fn every_cgroup_of_a_process_is_found() {
    let Some(pod) = Pod::idle() else { return };
    let found = directories(pod.pid(), Path::new("/")).expect("directories");
    let listed = |directory: &Path| std::fs::read_to_string(directory.join("cgroup.procs")).expect("processes");
    assert!(found.iter().any(|directory| listed(directory).trim() == pod.pid().to_string()), "{found:?}");
    for directory in &found {
        assert!(listed(directory).lines().any(|pid| pid == pod.pid().to_string()), "{directory:?}");
    }
}

#[test]
fn what_was_frozen_is_ended_and_its_cgroup_is_empty() {
    let Some(pod) = Pod::start(&BUSY) else { return };
    let freezer = freezer(&pod);
    assert_eq!(freezer.pids().expect("pids"), [pod.pid()]);
    freezer.freeze(LIMIT).expect("freeze");
    freezer.kill_all(LIMIT).expect("kill");
    assert!(freezer.pids().expect("pids").is_empty());
}

#[test]
fn a_freezer_is_found_again_by_its_path_and_is_gone_with_its_container() {
    let Some(mut pod) = Pod::idle() else { return };
    let found = freezer(&pod);
    assert_eq!(Freezer::at(found.path_in_node(), Path::new("/")).expect("the same"), found);
    pod.end();
    assert!(matches!(found.freeze(LIMIT), Err(FreezerError::Gone { .. })));
    assert!(matches!(Freezer::at(found.path_in_node(), Path::new("/")), Err(FreezerError::Gone { .. })));
}
