//! What a shim is told that asks for the replacement's container: a pure decision from what this side has done.

use crate::agent::duty::LaneLocal;
use tideover_crds::migration::Verdict;

/// What is known when the question is answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    /// How the attempt was decided.
    pub(super) verdict: Verdict,
    /// The processes of the container have run here.
    pub(super) resumed: bool,
    /// The attempt has failed here.
    pub(super) failed: bool,
    /// Nothing of it is left.
    pub(super) destroyed: bool,
    /// The replacement is created before the commit.
    pub(super) replace_first: bool,
    /// It is the container for which a restore was ordered last.
    pub(super) same: bool,
    /// What `runc restore` needs from the start is here.
    pub(super) early: bool,
    /// A container that is started before it, and without which it will not run, is not there: kubelet, which waits for the answer, has
    /// to make that one first.
    pub(super) out_of_turn: bool,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// The state has run here: this is a restart of the container like any other.
    Cold,
    /// The attempt is over: it must not start.
    Refuse,
    /// As it was told before.
    Again,
    /// A restore is to begin.
    Begin,
    /// It can't be said yet.
    Later,
}

/// Decides. What has run once is never restored again.
pub(super) fn reply(known: Known) -> Reply {
    let Known { verdict, resumed, failed, destroyed, replace_first, same, early, out_of_turn } = known;
    if resumed {
        Reply::Cold
    } else if verdict == Verdict::Aborted || destroyed || (verdict == Verdict::Open && failed) {
        Reply::Refuse
    } else if verdict == Verdict::Taken && failed {
        // It is about to be given back, or made final by this agent, which found it so.
        Reply::Later
    } else if out_of_turn {
        Reply::Refuse
    } else if same {
        Reply::Again
    } else if early && (verdict == Verdict::Committed || replace_first) {
        Reply::Begin
    } else {
        Reply::Later
    }
}

/// What an agent before this one has done for a container, from its journal and the shim's mark. The attempt can't go on, unless it
/// was committed: a commit implies that everything had landed and was verified, but for one that the operator made.
pub(super) fn adopted(resumed: bool, has_ran_mark: bool) -> LaneLocal {
    LaneLocal { staged: true, resumed: resumed || has_ran_mark, ..LaneLocal::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(verdict: Verdict) -> Known {
        let (resumed, failed, destroyed) = (false, false, false);
        let (same, early, out_of_turn) = (false, true, false);
        Known { verdict, resumed, failed, destroyed, replace_first: true, same, early, out_of_turn }
    }

    #[test]
    fn a_container_that_ran_and_ended_while_the_agent_was_down_is_not_restored_again() {
        let found = |resumed, has_ran| Known {
            resumed: adopted(resumed, has_ran).resumed,
            failed: true,
            ..asked(Verdict::Committed)
        };
        assert_eq!(reply(found(false, false)), Reply::Begin, "nothing says that it ran");
        for ran in [found(false, true), found(true, false)] {
            for verdict in [Verdict::Open, Verdict::Committed] {
                assert_eq!(reply(Known { verdict, ..ran }), Reply::Cold, "{verdict:?}");
            }
        }
    }

    #[test]
    fn a_restore_begins_once_for_each_container_and_only_when_it_can() {
        let first = asked(Verdict::Open);
        assert_eq!(reply(first), Reply::Begin);
        assert_eq!(reply(Known { same: true, ..first }), Reply::Again);
        assert_eq!(reply(Known { early: false, ..first }), Reply::Later);
        let last = Known { replace_first: false, ..first };
        assert_eq!(reply(last), Reply::Later);
        assert_eq!(reply(Known { verdict: Verdict::Committed, ..last }), Reply::Begin);
        let alone = Known { verdict: Verdict::Committed, out_of_turn: true, ..last };
        assert_eq!(reply(alone), Reply::Refuse, "the create of the last one would keep kubelet from making the first");
        assert_eq!(reply(Known { same: true, ..alone }), Reply::Refuse);
    }

    #[test]
    fn nothing_starts_in_an_attempt_that_is_over() {
        assert_eq!(reply(asked(Verdict::Aborted)), Reply::Refuse);
        assert_eq!(reply(Known { destroyed: true, ..asked(Verdict::Committed) }), Reply::Refuse);
        assert_eq!(reply(Known { failed: true, ..asked(Verdict::Open) }), Reply::Refuse);
        let kept = Known { failed: true, ..asked(Verdict::Committed) };
        assert_eq!(reply(kept), Reply::Begin, "after the commit a failure is tried again");
        let taken = Known { failed: true, ..asked(Verdict::Taken) };
        assert_eq!(reply(taken), Reply::Later, "given back, or committed: neither is known yet");
        assert_eq!(reply(Known { same: true, ..taken }), Reply::Later);
        assert_eq!(reply(Known { same: true, failed: false, ..taken }), Reply::Again);
    }
}
