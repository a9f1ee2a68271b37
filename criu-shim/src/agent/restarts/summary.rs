//! What the pods of this node are to say of the restarts of their containers. Pure: time is an argument.
//!
//! A pod's own object says how far its restarts are counted, by the number of the last one, so that an agent that starts afresh
//! goes on from there and nothing is counted twice.

use super::words;
use crate::supervised::Identity;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};
use tideover_crds::RestartReport;
use tideover_crds::restart_report::{CONTAINERS_MAX, COUNT_MAX, ContainerReport, LastEnd, Outcome};
use tideover_init::decide::Rule;
use tideover_init::record::{self, Line};

/// How often one pod is written to. The first news goes out at once, and so does, as often again, that a run was not followed by
/// another: somebody has to do something.
const EACH: Duration = Duration::from_secs(10);

/// The newest end in the record of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Newest {
    /// The container.
    id: String,
    /// Its name.
    name: String,
    sequence: u64,
    restarts: u64,
    last: LastEnd,
}

/// One pod.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Namespace of the pod.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What its object says, once that is known.
    pub there: Option<RestartReport>,
    /// What is to be said besides: of each container one end at most.
    pending: Vec<Newest>,
    /// Its containers that have a place, by id, with the number of the last end that was heard.
    heard: HashMap<String, u64>,
    /// When its object was written, or that was tried.
    tried: Option<Instant>,
    /// When that was the last time because it could not wait.
    hurried: Option<Instant>,
}

impl Summary {
    /// What the pod's object is to say where it says `there`; none where it says that already.
    pub fn report(&self, there: &RestartReport) -> Option<RestartReport> {
        let mut report = there.clone();
        for newest in &self.pending {
            merge(&mut report, newest);
        }
        (report != *there).then_some(report)
    }

    /// It was tried to write to the pod.
    pub fn tried(&mut self, now: Instant) {
        if !has_rested(self.tried, now) {
            self.hurried = Some(now);
        }
        self.tried = Some(now);
    }

    fn is_due(&self, now: Instant) -> bool {
        let hurries = || self.pending.iter().any(|newest| newest.last.outcome != Outcome::Restart);
        !self.pending.is_empty() && (has_rested(self.tried, now) || hurries() && has_rested(self.hurried, now))
    }

    /// Nothing is left to be said: the pod's object says `there`, or nobody will ever have it say more.
    pub fn settle(&mut self, there: Option<RestartReport>) {
        self.there = there.or(self.there.take());
        self.pending.clear();
    }
}

/// The pods of this node, by UID.
#[derive(Debug, Default)]
pub struct Summaries {
    pods: HashMap<String, Summary>,
}

impl Summaries {
    /// The record of the container `id` says `lines`. It is `now`, by the node's clock.
    pub fn hear(&mut self, id: &str, identity: &Identity, lines: &[Line], now: Timestamp) {
        let Identity { pod_namespace, pod_name, pod_uid, container_name, .. } = identity;
        // Whoever asked for a stop knows of it, and the pod is most often about to go.
        let ends = lines.iter().filter(|line| line.rule != Rule::StopAsked);
        let Some(line) = ends.max_by_key(|line| line.sequence) else { return };
        let pod = self.pods.entry(pod_uid.clone()).or_insert_with(|| Summary {
            namespace: pod_namespace.clone(),
            name: pod_name.clone(),
            there: None,
            pending: Vec::new(),
            heard: HashMap::new(),
            tried: None,
            hurried: None,
        });
        let heard = pod.heard.entry(id.to_owned()).or_default();
        if line.sequence <= *heard {
            return;
        }
        *heard = line.sequence;
        pod.pending.retain(|newest| newest.id != id);
        pod.pending.push(newest(id, container_name, line, now));
    }

    /// The pods that may be written to now.
    pub fn due(&self, now: Instant) -> Vec<String> {
        let due = self.pods.iter().filter(|(_, summary)| summary.is_due(now));
        due.map(|(uid, _)| uid.clone()).collect()
    }

    /// The pod with this UID.
    pub fn pod(&mut self, uid: &str) -> Option<&mut Summary> {
        self.pods.get_mut(uid)
    }

    /// Whether all that was heard of the container `id` is said, or never will be.
    pub fn is_settled(&self, id: &str, identity: &Identity) -> bool {
        let pod = self.pods.get(&identity.pod_uid);
        pod.is_none_or(|pod| pod.pending.iter().all(|newest| newest.id != id))
    }

    /// Those containers that have a place are `ids`: forgets pods that have none of them.
    pub fn retain(&mut self, ids: &HashSet<String>) {
        self.pods.retain(|_, pod| {
            pod.heard.retain(|id, _| ids.contains(id));
            !pod.heard.is_empty()
        });
    }
}

fn has_rested(since: Option<Instant>, now: Instant) -> bool {
    since.is_none_or(|since| now.saturating_duration_since(since) >= EACH)
}

fn newest(id: &str, name: &str, line: &Line, now: Timestamp) -> Newest {
    let restarts = match line.outcome {
        // Each end before this one was followed by a run too.
        record::Outcome::Restart { .. } => line.sequence,
        record::Outcome::Migrate { .. } | record::Outcome::RestoreCheckpoint | record::Outcome::Exit => {
            line.sequence.saturating_sub(1)
        }
    };
    let held_until = match line.outcome {
        record::Outcome::Migrate { hold_millis } => now.checked_add(Duration::from_millis(hold_millis)).ok(),
        record::Outcome::Restart { .. } | record::Outcome::RestoreCheckpoint | record::Outcome::Exit => None,
    };
    // Kubernetes' times are in seconds.
    let second = |time: Timestamp| Time(Timestamp::from_second(time.as_second()).unwrap_or(time));
    let last = LastEnd {
        // The node's clock: what the container says of the time is its own affair.
        at: second(now),
        cause: words::cause(line),
        status: words::status(line),
        outcome: words::outcome(line),
        rule: words::rule(line),
        held_until: held_until.map(second),
    };
    Newest {
        id: id.to_owned(),
        name: name.to_owned(),
        sequence: line.sequence,
        restarts: restarts.min(COUNT_MAX),
        last,
    }
}

fn merge(report: &mut RestartReport, newest: &Newest) {
    let Newest { id, name, sequence, restarts, last } = newest.clone();
    let fresh = ContainerReport { name, id, sequence, restarts, earlier: 0, last };
    if let Some(known) = report.containers.iter_mut().find(|one| one.name == fresh.name) {
        let same = known.id == fresh.id;
        if !same || known.sequence < fresh.sequence {
            let earlier = if same { known.earlier } else { known.total() };
            *known = ContainerReport { earlier, ..fresh };
        }
    } else if report.containers.len() < CONTAINERS_MAX {
        report.containers.push(fresh);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::restarts::fixture::{crash, exit, held, identity, stop};
    use proptest::prelude::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// What the pod says when each of these records was heard, in order.
    fn said(records: &[(&str, &[Line])]) -> RestartReport {
        let mut report = RestartReport::default();
        for (id, lines) in records {
            let mut summaries = Summaries::default();
            summaries.hear(id, &identity(), lines, at(1));
            let pod = summaries.pod("u");
            report = pod.and_then(|pod| pod.report(&report)).unwrap_or(report);
        }
        report
    }

    #[track_caller]
    fn check(records: &[(&str, &[Line])], sequence: u64, total: u64) {
        let report = said(records);
        assert_eq!((report.containers[0].sequence, report.containers[0].total()), (sequence, total));
    }

    #[test]
    fn an_end_that_is_followed_by_a_run_is_a_restart() {
        check(&[("c", &[crash(1), crash(2)])], 2, 2);
        check(&[("c", &[crash(1), exit(2)])], 2, 1);
        check(&[("c", &[crash(1), crash(2), stop(3)])], 2, 2);
        assert_eq!(said(&[("c", &[stop(1)])]), RestartReport::default());
    }

    #[test]
    fn what_was_counted_is_not_counted_again_by_the_next_agent() {
        check(&[("c", &[crash(1), crash(2)]), ("c", &[crash(1), crash(2)])], 2, 2);
        check(&[("c", &[crash(1)]), ("c", &[crash(1), crash(2), crash(3)])], 3, 3);
    }

    #[test]
    fn a_container_that_kubelet_makes_anew_goes_on_where_the_last_one_was() {
        check(&[("c", &[crash(4), exit(5)]), ("d", &[crash(1)]), ("d", &[crash(2)])], 2, 6);
    }

    #[test]
    fn a_container_that_was_moved_brings_its_count_along() {
        check(&[("moved", &[crash(7)])], 7, 7);
    }

    #[test]
    fn the_end_is_told_in_our_words_and_by_the_nodes_clock() {
        let mut line = crash(1);
        line.status = Some("secret".into());
        line.at_millis = u64::MAX;
        let text = serde_json::to_string(&said(&[("c", &[line])])).unwrap();
        assert_eq!(
            text,
            r#"{"version":1,"containers":[{"name":"app","id":"c","sequence":1,"restarts":1,"earlier":0,"last":{"at":"1970-01-01T00:00:01Z","cause":"UncleanSignal","status":"SIGSEGV","outcome":"Restart","rule":"Policy"}}]}"#
        );
    }

    #[test]
    fn a_pod_is_written_to_at_once_and_then_now_and_again() {
        let (mut summaries, begin) = (Summaries::default(), Instant::now());
        summaries.hear("c", &identity(), &[crash(1)], at(1));
        assert_eq!(summaries.due(begin), ["u"]);
        assert!(!summaries.is_settled("c", &identity()));
        let pod = summaries.pod("u").unwrap();
        pod.tried(begin);
        let report = pod.report(&RestartReport::default());
        pod.settle(report);
        assert!(summaries.due(begin + EACH).is_empty() && summaries.is_settled("c", &identity()));
        summaries.hear("c", &identity(), &[crash(1)], at(2));
        assert!(summaries.due(begin + EACH).is_empty(), "it is said");
        summaries.hear("c", &identity(), &[crash(1), crash(2)], at(3));
        summaries.hear("c", &identity(), &[crash(2), crash(3)], at(4));
        assert!(summaries.due(begin + EACH - Duration::from_millis(1)).is_empty());
        assert_eq!(summaries.due(begin + EACH), ["u"]);
        let pod = summaries.pod("u").unwrap();
        assert_eq!(pod.report(&pod.there.clone().unwrap()).unwrap().containers[0].sequence, 3);
    }

    #[test]
    fn what_somebody_has_to_do_something_about_goes_out_before_its_time_but_not_often() {
        let (mut summaries, begin) = (Summaries::default(), Instant::now());
        let mut written = 0;
        for second in 0..40 {
            let now = begin + Duration::from_secs(second);
            // A container that claims each second that it waits.
            summaries.hear("c", &identity(), &[held(second + 1)], at(1));
            for uid in summaries.due(now) {
                let pod = summaries.pod(&uid).unwrap();
                pod.tried(now);
                pod.settle(None);
                written += 1;
            }
        }
        assert!((7..=8).contains(&written), "{written}");
        let mut summaries = Summaries::default();
        summaries.hear("c", &identity(), &[crash(1)], at(1));
        let pod = summaries.pod("u").unwrap();
        pod.tried(begin);
        pod.settle(None);
        summaries.hear("c", &identity(), &[crash(1), crash(2)], at(1));
        assert!(summaries.due(begin).is_empty());
        summaries.hear("c", &identity(), &[crash(2), held(3)], at(1));
        assert_eq!(summaries.due(begin), ["u"]);
    }

    #[test]
    fn a_container_that_waits_to_be_moved_says_until_when() {
        let report = said(&[("c", &[crash(1), held(2)])]);
        let container = &report.containers[0];
        assert_eq!((container.total(), container.last.outcome), (1, Outcome::Migrate));
        assert_eq!(container.last.held_until, Some(Time(at(1 + 180))));
        let after = said(&[("c", &[held(2)]), ("c", &[held(2), exit(3)])]);
        assert_eq!(after.containers[0].last.held_until, None);
    }

    #[test]
    fn a_pod_whose_containers_are_gone_is_forgotten() {
        let mut summaries = Summaries::default();
        summaries.hear("c", &identity(), &[crash(1)], at(1));
        summaries.retain(&HashSet::from(["c".to_owned()]));
        assert!(summaries.pod("u").is_some());
        summaries.retain(&HashSet::new());
        assert!(summaries.pod("u").is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_containers_write_the_pod_says_what_can_be_read(
            records in proptest::collection::vec((0_u8..40, proptest::collection::vec(any::<u64>(), 1..5)), 0..60),
        ) {
            let mut summaries = Summaries::default();
            for (number, sequences) in records {
                let name = format!("{number:a>63}");
                let identity = Identity { container_name: name.clone(), ..identity() };
                let lines: Vec<Line> = sequences.into_iter().map(crash).collect();
                summaries.hear(&"c".repeat(64 - usize::from(number)), &identity, &lines, at(0));
            }
            let report = summaries.pod("u").and_then(|pod| pod.report(&RestartReport::default()));
            let text = serde_json::to_string(&report.clone().unwrap_or_default()).unwrap();
            prop_assert_eq!(RestartReport::parse(&text).unwrap(), report.unwrap_or_default());
        }
    }
}
