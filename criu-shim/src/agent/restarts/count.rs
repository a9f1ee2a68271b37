//! Restarts in place, counted: the agent's metrics of them.
//!
//! [`uncounted`] decides, purely, what of a record is still to be counted; [`Counts`] holds the series. Every label is a name that
//! kubelet gave or a word of ours, so what a container writes makes no series but its own few.

use super::news::upwards;
use super::words::Words;
use crate::supervised::Identity;
use crate::supervised::place::Told;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};
use tideover_init::decide::Rule;
use tideover_init::record::{Line, Outcome};

/// How long the series of a container outlive it: its last end, most often the one that was given up, is still to be seen by
/// whoever asks each minute or two.
const LINGER: Duration = Duration::from_secs(600);
/// The most ends between two looks that a container is believed to have had without a line of them. It is what a program that ends
/// at once has in half an hour without an agent.
const UNSEEN_MAX: u64 = 1 << 20;

/// What is to be counted of a record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uncounted<'a> {
    /// Its lines, in order.
    pub lines: Vec<&'a Line>,
    /// How many ends there were besides, whose lines were lost or overwritten. Each was followed by a run.
    pub unseen: u64,
    /// Sequence up to which all is counted then.
    pub counted: u64,
}

/// What of `lines` is to be counted where as much as `told` was. What came before the first line that is ever seen of a container is
/// not: it was on another node.
pub fn uncounted(told: Told, lines: &[Line]) -> Uncounted<'_> {
    let mut found = Uncounted { counted: told.counted, ..Uncounted::default() };
    for line in upwards(told.counted, lines) {
        if found.counted > 0 {
            found.unseen = found.unseen.saturating_add(line.sequence - found.counted - 1);
        }
        found.counted = line.sequence;
        found.lines.push(line);
    }
    found.unseen = found.unseen.min(UNSEEN_MAX);
    found
}

/// Whose restarts are counted: a container of a pod, however often kubelet makes it anew.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Subject {
    namespace: String,
    pod: String,
    container: String,
}

/// One kind of end that a container has had.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Kind {
    namespace: String,
    pod: String,
    container: String,
    cause: String,
    outcome: String,
    rule: String,
}

/// What there is of a subject.
#[derive(Debug)]
struct Series {
    /// Its containers that have a place, by id.
    ids: HashSet<String>,
    kinds: HashSet<Kind>,
    /// When the last of `ids` went.
    gone: Option<Instant>,
}

type Seconds = Gauge<f64, AtomicU64>;

/// The series of all containers of this node.
#[derive(Debug, Default)]
pub struct Counts {
    restarts: Family<Kind, Counter>,
    ran: Family<Subject, Seconds>,
    delay: Family<Subject, Seconds>,
    subjects: HashMap<Subject, Series>,
}

impl Counts {
    /// None yet, to be shown in `registry`.
    pub fn in_registry(registry: &mut Registry) -> Self {
        let counts = Self::default();
        registry.register(
            "tideover_restarts",
            "Ends of an application in its supervised container, by what followed. Stops that were asked for are not counted",
            counts.restarts.clone(),
        );
        registry.register_with_unit(
            "tideover_restart_last_run",
            "How long the last run that has ended took",
            Unit::Seconds,
            counts.ran.clone(),
        );
        registry.register_with_unit(
            "tideover_restart_delay",
            "The pause before the newest run",
            Unit::Seconds,
            counts.delay.clone(),
        );
        counts
    }

    /// Counts `found`, in the record of the container `id`.
    pub fn add(&mut self, id: &str, identity: &Identity, found: &Uncounted<'_>) {
        let Identity { pod_namespace, pod_name, container_name, .. } = identity;
        let subject =
            Subject { namespace: pod_namespace.clone(), pod: pod_name.clone(), container: container_name.clone() };
        let none = || Series { ids: HashSet::new(), kinds: HashSet::new(), gone: None };
        let series = self.subjects.entry(subject.clone()).or_insert_with(none);
        series.ids.insert(id.to_owned());
        series.gone = None;
        let kind = |words: Words| Kind {
            namespace: pod_namespace.clone(),
            pod: pod_name.clone(),
            container: container_name.clone(),
            cause: words.cause,
            outcome: words.outcome,
            rule: words.rule,
        };
        if found.unseen > 0 {
            let unseen = kind(Words::unseen());
            self.restarts.get_or_create(&unseen).inc_by(found.unseen);
            series.kinds.insert(unseen);
        }
        // kubelet itself tells of the stops that it asks for.
        for line in found.lines.iter().filter(|line| line.rule != Rule::StopAsked) {
            let seen = kind(Words::of(line));
            self.restarts.get_or_create(&seen).inc();
            series.kinds.insert(seen);
            self.ran.get_or_create(&subject).set(seconds(line.ran_millis));
            if let Outcome::Restart { delay_millis, .. } = line.outcome {
                self.delay.get_or_create(&subject).set(seconds(delay_millis));
            }
        }
    }

    /// Those containers that have a place are `ids`: forgets the others' series a while after.
    pub fn retain(&mut self, ids: &HashSet<String>, now: Instant) {
        let Self { restarts, ran, delay, subjects } = self;
        subjects.retain(|subject, series| {
            series.ids.retain(|id| ids.contains(id));
            if !series.ids.is_empty() {
                return true;
            }
            let gone = *series.gone.get_or_insert(now);
            let stays = now.saturating_duration_since(gone) < LINGER;
            if !stays {
                for kind in &series.kinds {
                    restarts.remove(kind);
                }
                ran.remove(subject);
                delay.remove(subject);
            }
            stays
        });
    }
}

fn seconds(millis: u64) -> f64 {
    Duration::from_millis(millis).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::restarts::fixture::{crash, exit, identity, stop};
    use prometheus_client::encoding::text::encode;

    #[track_caller]
    fn check(counted: u64, lines: &[Line], expected: (&[u64], u64, u64)) {
        let found = uncounted(Told { sequence: 0, counted }, lines);
        let sequences: Vec<u64> = found.lines.iter().map(|line| line.sequence).collect();
        assert_eq!((&*sequences, found.unseen, found.counted), expected);
    }

    #[test]
    fn each_line_is_counted_once() {
        check(0, &[crash(1), crash(2)], (&[1, 2], 0, 2));
        check(2, &[crash(1), crash(2)], (&[], 0, 2));
        check(2, &[crash(1), crash(2), exit(3)], (&[3], 0, 3));
        check(0, &[crash(5), crash(3), crash(5), crash(6)], (&[5, 6], 0, 6));
    }

    #[test]
    fn lines_that_were_overwritten_are_counted_by_number() {
        check(3, &[crash(90), crash(91)], (&[90, 91], 86, 91));
        check(3, &[crash(u64::MAX)], (&[u64::MAX], UNSEEN_MAX, u64::MAX));
    }

    #[test]
    fn what_was_on_another_node_is_counted_there() {
        check(0, &[crash(7)], (&[7], 0, 7));
    }

    struct Shown {
        registry: Registry,
        counts: Counts,
    }

    impl Shown {
        fn new() -> Self {
            let mut registry = Registry::default();
            let counts = Counts::in_registry(&mut registry);
            Self { registry, counts }
        }

        fn add(&mut self, id: &str, counted: u64, lines: &[Line]) {
            self.counts.add(id, &identity(), &uncounted(Told { sequence: 0, counted }, lines));
        }

        /// The samples of the series `name`, without the labels that all have.
        fn samples(&self, name: &str) -> Vec<String> {
            let mut text = String::new();
            encode(&mut text, &self.registry).unwrap();
            let whose = r#"namespace="shop",pod="web-0",container="app""#;
            let lines = text.lines().filter(|line| line.starts_with(&format!("{name}{{")));
            let mut lines: Vec<String> = lines.map(|line| line.replace(whose, "").replace(name, "")).collect();
            lines.sort();
            lines
        }
    }

    #[test]
    fn ends_are_shown_by_cause_and_by_what_followed() {
        let mut shown = Shown::new();
        shown.add("c", 0, &[crash(1), crash(2), exit(3)]);
        assert_eq!(
            shown.samples("tideover_restarts_total"),
            [
                r#"{,cause="UncleanExitCode",outcome="Exit",rule="StartLimit"} 1"#,
                r#"{,cause="UncleanSignal",outcome="Restart",rule="Policy"} 2"#,
            ]
        );
        assert_eq!(shown.samples("tideover_restart_last_run_seconds"), ["{} 1.5"]);
        assert_eq!(shown.samples("tideover_restart_delay_seconds"), ["{} 0.1"]);
    }

    #[test]
    fn an_unseen_end_has_no_cause_and_a_stop_is_none() {
        let mut shown = Shown::new();
        shown.add("c", 1, &[crash(5), stop(6)]);
        assert_eq!(
            shown.samples("tideover_restarts_total"),
            [
                r#"{,cause="UncleanSignal",outcome="Restart",rule="Policy"} 1"#,
                r#"{,cause="Unknown",outcome="Restart",rule="Unknown"} 3"#,
            ]
        );
    }

    #[test]
    fn a_container_that_is_made_anew_goes_on_and_one_that_is_gone_is_forgotten() {
        let (mut shown, now) = (Shown::new(), Instant::now());
        let count = |shown: &Shown| shown.samples("tideover_restarts_total").len();
        shown.add("c", 0, &[exit(1)]);
        shown.counts.retain(&HashSet::new(), now);
        assert_eq!(count(&shown), 1, "the end that was given up is still to be seen");
        shown.add("d", 0, &[exit(1)]);
        assert_eq!(
            shown.samples("tideover_restarts_total"),
            [r#"{,cause="UncleanExitCode",outcome="Exit",rule="StartLimit"} 2"#]
        );
        shown.counts.retain(&HashSet::from(["d".to_owned()]), now + LINGER * 2);
        assert_eq!(count(&shown), 1);
        shown.counts.retain(&HashSet::new(), now + LINGER * 3);
        shown.counts.retain(&HashSet::new(), now + LINGER * 4);
        assert_eq!(count(&shown), 0);
        assert!(shown.samples("tideover_restart_last_run_seconds").is_empty());
    }
}
