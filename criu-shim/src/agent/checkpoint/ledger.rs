//! What is remembered of one container's checkpoints, and what follows from it: whether it is to come back from one, and which of
//! them must not be used again. Pure: times are arguments, milliseconds since 1970.
//!
//! A container that gives up says so in its record, and that is a wish, until kubelet has made another container in its place:
//! either that one is restored, or it starts cold, and in both cases the wish is answered. A container that started while no agent
//! was there has started cold, and so the wish is over as well.
//!
//! What was restored has to show that it lasts. Until then an end of its application is laid to the checkpoint, which is poisoned:
//! never the same one twice after a fast crash. So is one whose restore has not come to its end.

use super::Subject;
use serde::{Deserialize, Serialize};
use tideover_init::decide::Rule;
use tideover_init::record::{Line, Outcome};

/// Version of the document.
const VERSION: u32 = 1;

/// What is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ledger {
    /// [`VERSION`].
    version: u32,
    /// Of whom.
    pub subject: Subject,
    /// Number of the next checkpoint, from 1.
    pub next: u64,
    /// The newest container that was heard of, and when its place was made.
    #[serde(default)]
    newest: Option<(String, u64)>,
    /// The container that has given up and is to come back from a checkpoint, until that is answered.
    #[serde(default)]
    wish: Option<String>,
    /// The last container whose wish was answered.
    #[serde(default)]
    answered: Option<String>,
    /// The newest restore.
    #[serde(default)]
    restore: Option<Restore>,
}

/// A restore that was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Restore {
    /// From this checkpoint.
    pub number: u64,
    /// Into this container.
    pub container_id: String,
    /// When its processes began to run; none before.
    #[serde(default)]
    pub ran_millis: Option<u64>,
    /// Its application has ended at least once since, so that nothing more is to be learned.
    #[serde(default)]
    pub settled: bool,
}

/// What a record says.
#[derive(Clone, Copy, Debug)]
pub struct Heard<'a> {
    /// The container.
    pub id: &'a str,
    /// When its place was made.
    pub made: u64,
    /// Its lines.
    pub lines: &'a [Line],
    /// How long a run takes to show that it lasts, milliseconds.
    pub proven: u64,
}

/// A checkpoint that must not be used again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Poison {
    /// Its number.
    pub number: u64,
    /// Why, a sentence.
    pub why: String,
}

impl Ledger {
    /// Of a container that nothing is known of.
    pub fn new(subject: Subject) -> Self {
        Self { version: VERSION, subject, next: 1, newest: None, wish: None, answered: None, restore: None }
    }

    /// Whether this version has written it.
    pub fn is_known(&self) -> bool {
        self.version == VERSION
    }

    /// Whether a container is to come back from a checkpoint.
    pub fn wishes(&self) -> bool {
        self.wish.is_some()
    }

    /// A restore that was begun and of which it is not known that its processes run.
    pub fn unfinished(&self) -> Option<&Restore> {
        self.restore.as_ref().filter(|restore| restore.ran_millis.is_none())
    }

    /// The container into which a checkpoint was restored last, or is.
    pub fn restoring(&self) -> Option<&str> {
        self.restore.as_ref().map(|restore| restore.container_id.as_str())
    }

    /// The same, if its processes run or have run.
    pub fn restored(&self) -> Option<&str> {
        self.restore
            .as_ref()
            .filter(|restore| restore.ran_millis.is_some())
            .map(|restore| restore.container_id.as_str())
    }

    /// Takes what a container's record says. Saying it again changes nothing.
    pub fn hear(&mut self, heard: Heard<'_>) -> Option<Poison> {
        let Heard { id, made, lines, proven } = heard;
        if self.newest.as_ref().is_some_and(|(newest, at)| newest != id && *at > made) {
            return None;
        }
        self.newest = Some((id.to_owned(), made));
        let restoring = self.unfinished().is_some_and(|restore| restore.container_id == id);
        if !restoring && self.wish.as_ref().is_some_and(|wish| wish != id) {
            // It has started without us.
            self.answered = self.wish.take();
        }
        let poison = self.settle(id, lines, proven);
        let gave_up = lines.iter().max_by_key(|line| line.sequence);
        if gave_up.is_some_and(|line| line.outcome == Outcome::RestoreCheckpoint)
            && self.answered.as_deref() != Some(id)
        {
            self.wish = Some(id.to_owned());
        }
        poison
    }

    /// Looks whether what was restored has ended, and whether too soon.
    fn settle(&mut self, id: &str, lines: &[Line], proven: u64) -> Option<Poison> {
        let restore = self.restore.as_mut().filter(|restore| restore.container_id == id && !restore.settled)?;
        let ran = restore.ran_millis?;
        // Whoever asks for a stop finds no fault.
        let first = lines.iter().filter(|line| line.rule != Rule::StopAsked).min_by_key(|line| line.sequence)?;
        restore.settled = true;
        let lasted = first.at_millis.saturating_sub(ran);
        let why = || format!("what was restored from it ended after {:.1} s", lasted as f64 / 1e3);
        (lasted < proven).then(|| Poison { number: restore.number, why: why() })
    }

    /// A restore of the checkpoint `number` into the container `id` is about to begin.
    pub fn begin(&mut self, number: u64, id: &str) {
        self.restore = Some(Restore { number, container_id: id.to_owned(), ran_millis: None, settled: false });
    }

    /// Its processes run.
    pub fn ran(&mut self, id: &str, now: u64) {
        if let Some(restore) = self.restore.as_mut().filter(|restore| restore.container_id == id) {
            restore.ran_millis = Some(now);
            self.answered = self.wish.take().or(self.answered.take());
        }
    }

    /// When the processes of container `id` began to run, where they were restored.
    pub fn ran_at(&self, id: &str) -> Option<u64> {
        self.restore.as_ref().filter(|restore| restore.container_id == id)?.ran_millis
    }

    /// The restore into the container `id` was given up before anything was tried: the checkpoint has nothing to do with it.
    pub fn given_up(&mut self, id: &str) {
        if self.unfinished().is_some_and(|restore| restore.container_id == id) {
            self.restore = None;
        }
    }

    /// The restore into the container `id` has not come to its end: the checkpoint is not tried again.
    pub fn failed(&mut self, id: &str, why: &str) -> Option<Poison> {
        let number = self.unfinished().filter(|restore| restore.container_id == id)?.number;
        self.restore = None;
        Some(Poison { number, why: format!("it could not be restored: {why}") })
    }

    /// The container starts cold.
    pub fn cold(&mut self) {
        self.answered = self.wish.take().or(self.answered.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::restarts::fixture::{crash, exit, stop};
    use proptest::prelude::*;

    const PROVEN: u64 = 10_000;

    fn ledger() -> Ledger {
        Ledger::new(Subject {
            pod_namespace: "shop".into(),
            pod_name: "web-0".into(),
            pod_uid: "u".into(),
            container_name: "app".into(),
        })
    }

    fn gives_up(sequence: u64) -> Line {
        Line { outcome: Outcome::RestoreCheckpoint, ..exit(sequence) }
    }

    fn at(line: Line, at_millis: u64) -> Line {
        Line { at_millis, ..line }
    }

    fn hear(ledger: &mut Ledger, id: &str, made: u64, lines: &[Line]) -> Option<u64> {
        ledger.hear(Heard { id, made, lines, proven: PROVEN }).map(|poison| poison.number)
    }

    #[test]
    fn a_container_that_gave_up_is_to_come_back_and_only_once() {
        let mut ledger = ledger();
        hear(&mut ledger, "a", 1, &[crash(1)]);
        assert!(!ledger.wishes());
        hear(&mut ledger, "a", 1, &[crash(1), gives_up(2)]);
        assert!(ledger.wishes());
        ledger.begin(4, "b");
        ledger.ran("b", 100);
        assert!(!ledger.wishes());
        hear(&mut ledger, "a", 1, &[crash(1), gives_up(2)]);
        assert!(!ledger.wishes(), "its place is still there");
        hear(&mut ledger, "b", 200, &[]);
        hear(&mut ledger, "a", 1, &[gives_up(2)]);
        assert!(!ledger.wishes());
    }

    #[test]
    fn the_place_of_a_container_that_others_came_after_wishes_nothing() {
        let mut ledger = ledger();
        for (id, made, next) in [("a", 1, "b"), ("b", 2, "c")] {
            hear(&mut ledger, id, made, &[gives_up(1)]);
            ledger.begin(4, next);
            ledger.ran(next, made + 1);
        }
        hear(&mut ledger, "a", 1, &[gives_up(1)]);
        assert!(!ledger.wishes());
    }

    #[test]
    fn an_end_for_another_reason_is_no_wish() {
        let mut ledger = ledger();
        for last in [exit(2), stop(2), crash(2)] {
            hear(&mut ledger, "a", 1, &[crash(1), last]);
            assert!(!ledger.wishes());
        }
    }

    #[test]
    fn a_container_that_started_without_an_agent_has_started_cold() {
        let mut ledger = ledger();
        hear(&mut ledger, "a", 1, &[gives_up(1)]);
        hear(&mut ledger, "b", 2, &[]);
        assert!(!ledger.wishes());
        hear(&mut ledger, "a", 1, &[gives_up(1)]);
        assert!(!ledger.wishes());
    }

    #[test]
    fn the_place_of_a_container_that_is_being_restored_does_not_answer_the_wish() {
        let mut ledger = ledger();
        hear(&mut ledger, "a", 1, &[gives_up(1)]);
        ledger.begin(4, "b");
        hear(&mut ledger, "b", 2, &[]);
        assert!(ledger.wishes());
        assert_eq!(ledger.failed("a", "why"), None, "that of another container");
        let poison = ledger.failed("b", "why").expect("poison");
        assert_eq!((poison.number, poison.why.as_str()), (4, "it could not be restored: why"));
        assert!(ledger.wishes() && ledger.failed("b", "why").is_none());
        ledger.begin(3, "c");
        assert_eq!(ledger.ran_at("c"), None);
        ledger.given_up("c");
        assert!(ledger.wishes() && ledger.unfinished().is_none(), "nothing was tried");
        ledger.begin(3, "d");
        ledger.ran("d", 70);
        assert_eq!((ledger.ran_at("d"), ledger.ran_at("c")), (Some(70), None));
    }

    #[test]
    fn what_crashes_before_it_has_shown_that_it_lasts_poisons_its_checkpoint_once() {
        // The first end after the restore, and whether that poisons.
        let table = [
            (at(crash(9), 1_000 + PROVEN - 1), true),
            (at(gives_up(9), 1_000), true),
            (at(crash(9), 1_000 + PROVEN), false),
            (at(stop(9), 1_001), false),
        ];
        for (line, poisons) in table {
            let mut ledger = ledger();
            hear(&mut ledger, "a", 1, &[gives_up(1)]);
            ledger.begin(4, "b");
            ledger.ran("b", 1_000);
            assert_eq!(hear(&mut ledger, "b", 999, &[]), None);
            assert_eq!(hear(&mut ledger, "b", 999, std::slice::from_ref(&line)), poisons.then_some(4), "{line:?}");
            if line.rule != Rule::StopAsked {
                assert_eq!(hear(&mut ledger, "b", 999, &[line, at(crash(10), 1_002)]), None, "told once");
            }
        }
    }

    #[test]
    fn what_the_container_before_it_did_is_not_laid_to_the_checkpoint() {
        let mut ledger = ledger();
        hear(&mut ledger, "a", 1, &[at(gives_up(1), 999)]);
        ledger.begin(4, "b");
        ledger.ran("b", 1_000);
        assert_eq!(hear(&mut ledger, "a", 1, &[at(gives_up(1), 999)]), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// A node's life: containers that give up soon or late, restores that fail or not. After a fast crash, or a restore that
        /// failed, no checkpoint is used again, and each wish is answered by one container.
        #[test]
        fn never_the_same_checkpoint_twice_after_a_fast_crash(
            course in proptest::collection::vec((0..3_u8, any::<bool>(), 0..30_000_u64), 1..30), count in 0..5_u64,
        ) {
            let mut ledger = ledger();
            let mut good: Vec<u64> = (1..=count).collect();
            let mut now = 1_u64;
            for (number, (what, twice, lives)) in course.into_iter().enumerate() {
                let id = format!("c{number}");
                let wished = ledger.wishes();
                let mut ran = false;
                match (wished, good.last().copied()) {
                    (true, Some(checkpoint)) => {
                        ledger.begin(checkpoint, &id);
                        if what == 0 {
                            hear(&mut ledger, &id, now, &[]);
                            let poison = ledger.failed(&id, "why").expect("poison");
                            prop_assert_eq!(poison.number, checkpoint);
                            good.retain(|one| *one != poison.number);
                            prop_assert!(ledger.wishes());
                            continue;
                        }
                        ledger.ran(&id, now);
                        ran = true;
                    }
                    (true, None) => ledger.cold(),
                    (false, _) => {}
                }
                prop_assert!(!ledger.wishes());
                let made = now;
                now += lives + 1;
                let line = if what == 1 { at(exit(1), now) } else { at(gives_up(1), now) };
                for _ in 0..=usize::from(twice) {
                    if let Some(poison) = hear(&mut ledger, &id, made, std::slice::from_ref(&line)) {
                        prop_assert!(ran && lives + 1 < PROVEN);
                        prop_assert!(good.contains(&poison), "told twice");
                        good.retain(|one| *one != poison);
                    }
                }
                prop_assert_eq!(ledger.wishes(), what != 1);
            }
        }
    }
}
