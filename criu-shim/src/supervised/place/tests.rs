use super::*;
use tideover_crds::RestartPolicy;
use tideover_init::record::{NEW, Outcome};

fn identity() -> Identity {
    Identity {
        pod_namespace: "shop".into(),
        pod_name: "web-0".into(),
        pod_uid: "u".into(),
        container_name: "app".into(),
        program: "0123456789abcdef0123456789abcdef".into(),
        checkpoints: None,
    }
}

fn config() -> Config {
    crate::supervised::rules::config(&serde_json::from_str::<RestartPolicy>("{}").unwrap()).unwrap()
}

/// A line as init writes it.
fn line(sequence: u64) -> String {
    format!(
        r#"{{"version":1,"sequence":{sequence},"atMillis":1,"cause":"uncleanSignal","signal":9,"ranMillis":5,"outcome":{{"restart":{{"delayMillis":1,"attempt":1}}}},"rule":"policy"}}"#
    ) + "\n"
}

#[test]
fn a_place_is_made_for_any_user_of_the_container_and_nobody_else() {
    let places = tempfile::tempdir().unwrap();
    let place = Place::of(places.path(), "c1");
    place.make(&identity(), Some(&config())).unwrap();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&places.path().join("c1")), 0o700);
    assert_eq!(mode(&place.inside()), 0o1777);
    assert_eq!(mode(&place.inside().join("config.json")), 0o644);
    assert_eq!(Config::read(&place.inside().join("config.json")).unwrap(), config());
    assert_eq!(place.identity().unwrap(), identity());
    assert_eq!(Place::all(places.path()).unwrap(), [("c1".to_owned(), place.clone())]);
    place.end().unwrap();
    assert_eq!(places.path().read_dir().unwrap().count(), 0, "nothing was written, so nothing is to be told");
}

#[test]
fn a_container_can_fill_nothing_but_its_own() {
    let places = tempfile::tempdir().unwrap();
    let place = Place::of(places.path(), "c1");
    place.make(&identity(), None).unwrap();
    let full = std::fs::write(place.inside().join("big"), vec![1; 1 << 20]).unwrap_err();
    let files = (0..100).find_map(|number| std::fs::write(place.inside().join(number.to_string()), "").err());
    let described = place.inside().join("config.json").exists();
    place.end().unwrap();
    assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
    assert_eq!(files.unwrap().raw_os_error(), Some(libc::ENOSPC));
    assert!(!described, "a restored init has read it long ago");
}

#[test]
fn each_place_can_be_told_from_every_other_where_it_is_mounted_again() {
    let places = tempfile::tempdir().unwrap();
    let seen = ["c1", "c2"].map(|id| {
        let place = Place::of(places.path(), id);
        place.make(&identity(), None).unwrap();
        // As runc and CRIU do.
        let container = places.path().join(format!("in-{id}"));
        std::fs::create_dir(&container).unwrap();
        mount(Some(&place.inside()), &container, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        place.end().unwrap();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        umount2(&container, MntFlags::MNT_DETACH).unwrap();
        let line = mounts.lines().find(|line| line.contains(container.to_str().unwrap())).unwrap();
        line.split_once(" - ").unwrap().1.split(' ').nth(1).unwrap().to_owned()
    });
    assert_eq!(seen, ["tideover-init:c1", "tideover-init:c2"]);
}

#[test]
fn what_a_record_says_outlives_its_container_until_it_is_told() {
    let places = tempfile::tempdir().unwrap();
    let place = Place::of(places.path(), "c1");
    place.make(&identity(), Some(&config())).unwrap();
    std::fs::write(place.inside().join(NEW), line(1) + &line(2)).unwrap();
    assert!(!place.contents().unwrap().ended);
    assert_eq!(place.contents().unwrap().lines.len(), 2);
    assert_eq!(place.told().unwrap(), Told::default());
    place.set_told(Told { sequence: 1, counted: 0 }).unwrap();

    place.end().unwrap();
    place.end().unwrap();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(places.path().to_str().unwrap()));
    let contents = place.contents().unwrap();
    assert!(contents.ended);
    assert_eq!(contents.lines[1].outcome, Outcome::Restart { delay_millis: 1, attempt: 1 });
    assert_eq!(place.told().unwrap(), Told { sequence: 1, counted: 0 });
    place.remove().unwrap();
    place.remove().unwrap();
    assert_eq!(Place::all(places.path()).unwrap(), []);
}

#[test]
fn a_node_without_an_agent_keeps_no_more_than_so_many_records() {
    let places = tempfile::tempdir().unwrap();
    for number in 0..MAX_ENDED {
        let other = places.path().join(number.to_string());
        std::fs::create_dir(&other).unwrap();
        std::fs::write(other.join(ENDED), "[]").unwrap();
    }
    let place = Place::of(places.path(), "last");
    place.make(&identity(), None).unwrap();
    std::fs::write(place.inside().join(NEW), line(1)).unwrap();
    place.end().unwrap();
    assert!(!places.path().join("last").exists());
}

#[test]
fn a_container_that_was_never_supervised_has_no_place_to_end() {
    let places = tempfile::tempdir().unwrap();
    Place::of(places.path(), "c1").end().unwrap();
    assert_eq!(Place::all(&places.path().join("absent")).unwrap(), []);
}
