//! What each event means to the relay: a pure state machine.

use crate::local::{FromRelay, RelayStage, ReleaseOptions, ToRelay};

/// What the relay knows of the restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Where it stands.
    pub stage: RelayStage,
    /// runc has gone: nobody will ever own the processes.
    pub orphaned: bool,
    /// CRIU waits for runc's answer to a notification.
    pub asked: bool,
    /// How far runc is with its part of the restore.
    pub runtime: Runtime,
    /// The container has hooks that runc runs once its namespaces are there.
    pub has_hooks: bool,
    /// The restore was given up: whatever CRIU asks from now on is refused.
    pub abandoned: bool,
    /// The agent has said that the processes may run. Whatever follows, they may do so already.
    pub resumed: bool,
}

/// How far runc is with what it does at `post-restore`: it writes down which process the container is. It can do that as soon as there
/// is one, and has done it then when the processes are rebuilt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// It has not heard of the process.
    Waits,
    /// It was told, and has not answered.
    AtWork,
    /// It has answered.
    Done,
}

/// Something happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The agent spoke.
    Agent(ToRelay),
    /// CRIU sent a notification of this name.
    Notified(String),
    /// CRIU sent its last answer.
    Answered {
        /// Whether the processes run.
        success: bool,
    },
    /// CRIU hung up without one.
    CriuGone,
    /// runc answered a notification.
    Runc {
        /// False where the restore must not go on.
        success: bool,
    },
    /// runc hung up.
    RuncGone,
    /// The agent has not been heard of for [`crate::local::SILENCE`].
    Silence,
}

/// What to do about it, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Edit runc's request and give it to CRIU, or what it waits for where it has it already.
    Release(ReleaseOptions),
    /// Pass what CRIU just sent on to runc.
    ToRunc,
    /// Pass what runc just sent on to CRIU.
    ToCriu,
    /// Tell CRIU to go on, in place of runc, which has nothing to do at this point.
    GoOn,
    /// Tell runc about the process that CRIU has just made, as it will at `post-restore`.
    Announce,
    /// Tell CRIU to let the processes run.
    Resume,
    /// Answer CRIU's notification with "failed": it destroys what it has rebuilt.
    Refuse,
    /// Do to the pod's System V objects what can be done once processes have mapped them.
    MarkRemoved,
    /// Tell the agent.
    Tell(FromRelay),
    /// Tell the agent how it ended, with what the log says if it ended badly, and end.
    End {
        /// Whether the processes run.
        success: bool,
        /// Our own reason, where CRIU has none.
        reason: &'static str,
    },
}

/// The name of the notification that is held: processes rebuilt, not one instruction of theirs run.
pub const POST_RESTORE: &str = "post-restore";
/// The root task is there, and its namespaces are about to be made.
const SETUP_NAMESPACES: &str = "setup-namespaces";
/// At these runc does nothing. Source: `criuNotifications` of libcontainer, and for `network-unlock` its `loopback`, the one kind of
/// network that a bundle can make it manage.
const UNHEEDED: [&str; 5] = ["pre-restore", "post-setup-namespaces", "network-unlock", "pre-resume", "post-resume"];

impl State {
    /// A relay that has just read the request, for a container that has hooks or has none.
    pub fn new(has_hooks: bool) -> Self {
        Self {
            stage: RelayStage::Requested,
            orphaned: false,
            asked: false,
            runtime: Runtime::Waits,
            has_hooks,
            abandoned: false,
            resumed: false,
        }
    }

    /// The next state, and what to do. What does not fit the state is ignored: the agent may repeat itself after a
    /// reconnection.
    #[must_use]
    pub fn step(self, event: Event) -> (Self, Vec<Act>) {
        use RelayStage::{Finishing, Held, Requested, Restoring};
        let to = |stage: RelayStage| Self { stage, ..self };
        let ended = |success: bool, reason: &'static str| vec![Act::End { success, reason }];
        match (self.stage, event) {
            (Requested, Event::Agent(ToRelay::Release { options })) => (to(Restoring), vec![Act::Release(options)]),
            (Requested, Event::Agent(ToRelay::Abandon)) => (self, ended(false, "abandoned before the restore")),
            (Requested, Event::Silence) => (self, ended(false, "the agent was silent for too long")),
            (Requested, Event::RuncGone) => (self, ended(false, "runc is gone")),

            // Without runc there is no container that the processes could belong to, whoever has won.
            (_, Event::Notified(_)) if self.orphaned => (to(Finishing), vec![Act::Refuse]),
            (_, Event::Notified(_)) if self.abandoned => (to(Finishing), vec![Act::Refuse]),
            // Each word that goes through runc is two changes of process, and all of them are in the freeze.
            (Restoring | Finishing, Event::Notified(name)) if UNHEEDED.contains(&name.as_str()) => {
                (self, vec![Act::GoOn])
            }
            (Restoring, Event::Notified(name)) if name == SETUP_NAMESPACES && !self.has_hooks => {
                (Self { runtime: Runtime::AtWork, ..self }, vec![Act::GoOn, Act::Announce])
            }
            (_, Event::Runc { success }) if self.runtime == Runtime::AtWork => self.runtime_answered(success),
            (Restoring, Event::Notified(name)) if name == POST_RESTORE => {
                let acts = vec![Act::MarkRemoved, Act::Tell(FromRelay::Held)];
                match self.runtime {
                    // runc does its part while the agent decides.
                    Runtime::Waits => {
                        let state = Self { stage: Held, runtime: Runtime::AtWork, ..self };
                        (state, [acts, vec![Act::ToRunc]].concat())
                    }
                    Runtime::AtWork | Runtime::Done => (to(Held), acts),
                }
            }
            // A CRIU that asks before it has been answered is not the one that is known: no later answer may be taken for the word.
            (Held, Event::Notified(_) | Event::Agent(ToRelay::Abandon)) => {
                (Self { stage: Finishing, asked: false, abandoned: true, ..self }, vec![Act::Refuse])
            }
            (_, Event::Notified(_)) => (Self { asked: true, ..self }, vec![Act::ToRunc]),
            // One that comes after a refusal is to a question that CRIU asks no more.
            (_, Event::Runc { .. }) if !self.asked => (self, vec![]),
            (_, Event::Runc { .. }) => (Self { asked: false, ..self }, vec![Act::ToCriu]),

            // CRIU can't be told before it asks.
            (Restoring, Event::Agent(ToRelay::Abandon)) => (Self { abandoned: true, ..self }, vec![]),

            // The point of no return is not here: the agent says this after it has taken or committed the attempt.
            (Held, Event::Agent(ToRelay::Resume)) => {
                let state = Self { stage: Finishing, resumed: true, ..self };
                (state, if self.runtime == Runtime::Done { vec![Act::Resume] } else { vec![] })
            }

            // CRIU waits for an answer that will not come; where it does not, its next notification is refused.
            (stage, Event::RuncGone) => {
                let waits = self.asked || stage == Held || (self.resumed && self.runtime == Runtime::AtWork);
                let stage = if waits { Finishing } else { stage };
                let state = Self { stage, orphaned: true, asked: false, ..self };
                (state, if waits { vec![Act::Refuse] } else { vec![] })
            }

            (_, Event::Answered { success }) if self.orphaned => (self, ended(success, "runc is gone")),
            (_, Event::Answered { success }) => (self, vec![Act::ToRunc, Act::End { success, reason: "" }]),
            (_, Event::CriuGone) => (self, ended(false, "CRIU ended without an answer")),

            // A rebuilt copy waits for ever: after a commit it must go on, after an abort it must not, and only the
            // agent can know which.
            (_, Event::Silence | Event::Agent(_)) => (self, vec![]),
        }
    }

    /// runc has done its part of the restore, or can't: then it must not come to its end, whoever has won.
    fn runtime_answered(self, success: bool) -> (Self, Vec<Act>) {
        use RelayStage::{Finishing, Held};
        let next = Self {
            runtime: Runtime::Done,
            abandoned: self.abandoned || !success,
            asked: self.asked && success,
            ..self
        };
        // It was waited for where the word has come before it.
        let due = self.resumed && !self.abandoned && !self.orphaned;
        match (success, self.stage) {
            (true, Finishing) if due => (next, vec![Act::Resume]),
            (false, Held) => (Self { stage: Finishing, ..next }, vec![Act::Refuse]),
            (false, Finishing) if due => (next, vec![Act::Refuse]),
            // CRIU goes on, or hears of it when it asks next.
            _ => (next, vec![]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RUNC: Event = Event::Runc { success: true };
    const NO_RUNC: Event = Event::Runc { success: false };

    fn run_with(has_hooks: bool, events: &[Event]) -> (State, Vec<Act>) {
        events.iter().fold((State::new(has_hooks), Vec::new()), |(state, mut acts), event| {
            let (state, more) = state.step(event.clone());
            acts.extend(more);
            (state, acts)
        })
    }

    fn run(events: &[Event]) -> (State, Vec<Act>) {
        run_with(false, events)
    }

    fn release() -> Event {
        Event::Agent(ToRelay::Release { options: ReleaseOptions::default() })
    }

    fn notified(name: &str) -> Event {
        Event::Notified(name.to_owned())
    }

    fn word() -> Event {
        Event::Agent(ToRelay::Resume)
    }

    #[test]
    fn a_commit_lets_the_processes_run() {
        let (_, acts) = run(&[
            release(),
            notified("pre-restore"),
            notified(SETUP_NAMESPACES),
            notified("post-setup-namespaces"),
            RUNC,
            notified(POST_RESTORE),
            word(),
            notified("network-unlock"),
            notified("of another CRIU"),
            RUNC,
            notified("pre-resume"),
            Event::Answered { success: true },
        ]);
        assert_eq!(
            acts,
            [
                Act::Release(ReleaseOptions::default()),
                Act::GoOn,
                Act::GoOn,
                Act::Announce,
                Act::GoOn,
                Act::MarkRemoved,
                Act::Tell(FromRelay::Held),
                Act::Resume,
                Act::GoOn,
                Act::ToRunc,
                Act::ToCriu,
                Act::GoOn,
                Act::ToRunc,
                Act::End { success: true, reason: "" },
            ]
        );
    }

    #[test]
    fn runc_is_asked_where_it_has_hooks_to_run_and_told_of_the_process_at_the_end() {
        let begun = [release(), notified(SETUP_NAMESPACES), RUNC, notified(POST_RESTORE)];
        let (state, acts) = run_with(true, &begun);
        assert_eq!(acts[1..], [Act::ToRunc, Act::ToCriu, Act::MarkRemoved, Act::Tell(FromRelay::Held), Act::ToRunc]);
        assert_eq!((state.stage, state.runtime), (RelayStage::Held, Runtime::AtWork));
        let (_, acts) = run_with(true, &[&begun[..], &[RUNC, word()]].concat());
        assert_eq!(acts[6..], [Act::Resume]);
    }

    #[test]
    fn a_commit_that_is_faster_than_runc_waits_for_it() {
        for begun in [vec![release()], vec![release(), notified(SETUP_NAMESPACES)]] {
            let before = run(&begun).1.len();
            let (_, acts) = run(&[&begun[..], &[notified(POST_RESTORE), word()]].concat());
            assert!(!acts.contains(&Act::Resume), "{acts:?}");
            let (_, acts) = run(&[&begun[..], &[notified(POST_RESTORE), word(), RUNC, RUNC]].concat());
            assert_eq!(acts[before..].iter().filter(|act| **act == Act::Resume).count(), 1, "{acts:?}");
        }
    }

    #[test]
    fn a_criu_that_asks_before_it_is_answered_is_refused() {
        let begun = [release(), notified(POST_RESTORE), RUNC, notified(SETUP_NAMESPACES)];
        let (state, acts) = run(&begun);
        assert_eq!(acts.last(), Some(&Act::Refuse));
        let (_, later) = state.step(RUNC);
        assert_eq!(later, []);
        let (_, acts) = run(&[&begun[..], &[word()]].concat());
        assert_eq!(acts.last(), Some(&Act::Refuse), "the word comes too late");
    }

    #[test]
    fn an_abort_makes_criu_fail_whatever_runc_has_said() {
        let abandon = Event::Agent(ToRelay::Abandon);
        let answered = Event::Answered { success: false };
        let end = [Act::Refuse, Act::ToRunc, Act::End { success: false, reason: "" }];
        let early = [release(), notified(SETUP_NAMESPACES), RUNC, notified(POST_RESTORE)];
        for held in [&early[..], &[release(), notified(POST_RESTORE), RUNC]] {
            let before = run(held).1.len();
            let (_, acts) = run(&[held, &[abandon.clone(), answered.clone()]].concat());
            assert_eq!(acts[before..], end);
        }
        let (_, acts) = run(&[release(), notified(POST_RESTORE), abandon, RUNC, answered]);
        assert_eq!(acts[4..], end);
    }

    #[test]
    fn a_runtime_that_refuses_is_heard_before_the_word() {
        let (state, acts) = run(&[release(), notified(POST_RESTORE), NO_RUNC, word()]);
        assert_eq!((state.stage, &acts[4..]), (RelayStage::Finishing, &[Act::Refuse][..]));
        let early = [release(), notified(SETUP_NAMESPACES), NO_RUNC, notified(POST_RESTORE), word()];
        let (state, acts) = run(&early);
        assert_eq!((state.stage, &acts[3..]), (RelayStage::Finishing, &[Act::Refuse][..]));
        let (_, acts) = run(&[release(), notified(POST_RESTORE), word(), NO_RUNC, notified("pre-resume")]);
        assert_eq!(acts[4..], [Act::Refuse, Act::Refuse]);
    }

    #[test]
    fn what_criu_asks_after_a_refusal_is_refused_too() {
        for refusal in [NO_RUNC, Event::Agent(ToRelay::Abandon)] {
            let more = [notified("orphan-pts-master"), RUNC, notified("pre-resume")];
            let (_, acts) = run(&[&[release(), notified(POST_RESTORE), refusal][..], &more].concat());
            assert_eq!(acts[5..], [Act::Refuse, Act::Refuse]);
        }
    }

    #[test]
    fn an_abort_before_the_release_never_wakes_criu() {
        let (_, acts) = run(&[Event::Agent(ToRelay::Abandon)]);
        assert_eq!(acts, [Act::End { success: false, reason: "abandoned before the restore" }]);
    }

    #[test]
    fn an_abort_while_criu_works_is_remembered_until_it_asks() {
        let abandon = Event::Agent(ToRelay::Abandon);
        let (state, acts) = run(&[release(), abandon.clone(), notified(POST_RESTORE), word()]);
        assert_eq!(acts[1..], [Act::Refuse]);
        assert_eq!(state.stage, RelayStage::Finishing);
        let (_, acts) = run(&[release(), notified(SETUP_NAMESPACES), abandon, RUNC, notified(POST_RESTORE)]);
        assert_eq!(acts[1..], [Act::GoOn, Act::Announce, Act::Refuse]);
    }

    #[test]
    fn silence_ends_a_relay_that_holds_a_request_but_never_one_that_holds_processes() {
        assert!(matches!(run(&[Event::Silence]).1[..], [Act::End { success: false, .. }]));
        let (state, acts) = run(&[release(), notified(POST_RESTORE), Event::Silence]);
        assert_eq!(state.stage, RelayStage::Held);
        assert_eq!(acts.len(), 4);
    }

    #[test]
    fn processes_that_no_runtime_owns_are_not_resumed() {
        let (_, acts) = run(&[release(), notified(POST_RESTORE), Event::RuncGone, word()]);
        assert!(acts.contains(&Act::Refuse) && !acts.contains(&Act::Resume));
        let (_, acts) = run(&[release(), Event::RuncGone, notified(SETUP_NAMESPACES)]);
        assert_eq!(acts[1..], [Act::Refuse]);
        let (_, acts) = run_with(true, &[release(), notified(SETUP_NAMESPACES), Event::RuncGone]);
        assert_eq!(acts[1..], [Act::ToRunc, Act::Refuse]);
        let (_, acts) = run(&[release(), notified(SETUP_NAMESPACES), Event::RuncGone, notified("pre-restore")]);
        assert_eq!(acts[3..], [Act::Refuse]);
        let (_, acts) = run(&[release(), notified(POST_RESTORE), word(), Event::RuncGone]);
        assert_eq!(acts[4..], [Act::Refuse]);
    }

    #[test]
    fn it_is_remembered_that_processes_may_run() {
        let held = [release(), notified(POST_RESTORE), RUNC];
        assert!(!run(&held).0.resumed);
        assert!(run(&[&held[..], &[word(), Event::CriuGone]].concat()).0.resumed);
        assert!(!run(&[&held[..], &[Event::Agent(ToRelay::Abandon), word()]].concat()).0.resumed);
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(release()),
            Just(Event::Agent(ToRelay::Wait)),
            Just(Event::Agent(ToRelay::Resume)),
            Just(Event::Agent(ToRelay::Abandon)),
            Just(notified(SETUP_NAMESPACES)),
            Just(notified("post-setup-namespaces")),
            Just(notified("network-unlock")),
            Just(notified("of another CRIU")),
            Just(notified(POST_RESTORE)),
            Just(notified("pre-resume")),
            any::<bool>().prop_map(|success| Event::Answered { success }),
            Just(Event::CriuGone),
            any::<bool>().prop_map(|success| Event::Runc { success }),
            Just(Event::RuncGone),
            Just(Event::Silence),
        ]
    }

    proptest! {
        #[test]
        fn criu_hears_that_it_may_go_on_only_after_the_word_and_never_after_a_refusal(
            has_hooks: bool, events in proptest::collection::vec(event(), 0..30),
        ) {
            let (mut state, mut refused, mut word) = (State::new(has_hooks), false, false);
            // What CRIU waits to hear about is the end of the restore.
            let mut held = false;
            for event in events {
                word |= state.stage == RelayStage::Held && event == Event::Agent(ToRelay::Resume);
                let refusal = event == (Event::Runc { success: false });
                let (next, acts) = state.step(event);
                held |= acts.contains(&Act::Tell(FromRelay::Held));
                let goes_on = acts.iter().any(|act| matches!(act, Act::ToCriu | Act::GoOn | Act::Resume)) && !refusal;
                if held && goes_on {
                    prop_assert!(word && !refused);
                }
                refused |= acts.contains(&Act::Refuse);
                if acts.iter().any(|act| matches!(act, Act::End { .. })) {
                    break;
                }
                state = next;
            }
        }
    }
}
