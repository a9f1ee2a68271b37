//! What a shim is told that asks for the replacement's container: a pure decision from what this side has done.

use crate::agent::duty::TargetLocal;
use crate::agent::journal::TargetEntry;
use tideover_crds::migration::Verdict;

/// What is known when the question is answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    /// How the attempt was decided.
    pub(super) verdict: Verdict,
    /// What this side has done.
    pub(super) local: TargetLocal,
    /// The replacement is created before the commit.
    pub(super) replace_first: bool,
    /// It is the container for which a restore was ordered last.
    pub(super) same: bool,
    /// What `runc restore` needs from the start is here.
    pub(super) early: bool,
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
    let Known { verdict, local, replace_first, same, early } = known;
    if local.resumed {
        Reply::Cold
    } else if verdict == Verdict::Aborted || local.destroyed || (verdict == Verdict::Open && local.failed) {
        Reply::Refuse
    } else if same {
        Reply::Again
    } else if early && (verdict == Verdict::Committed || replace_first) {
        Reply::Begin
    } else {
        Reply::Later
    }
}

/// What an agent before this one has done, from its journal and the shim's mark. The attempt can't go on, unless it was
/// committed: a commit implies that everything had landed and was verified.
pub(super) fn adopted(attempt: u32, entry: &TargetEntry, has_ran_mark: bool) -> TargetLocal {
    TargetLocal {
        attempt,
        listening: true,
        staged: true,
        failed: true,
        resumed: entry.resumed || has_ran_mark,
        ..TargetLocal::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(verdict: Verdict, local: TargetLocal) -> Known {
        Known { verdict, local, replace_first: true, same: false, early: true }
    }

    #[test]
    fn a_container_that_ran_and_ended_while_the_agent_was_down_is_not_restored_again() {
        let entry = TargetEntry::default();
        let unknown = asked(Verdict::Committed, adopted(1, &entry, false));
        assert_eq!(reply(unknown), Reply::Begin, "nothing says that it ran");
        for ran in [adopted(1, &entry, true), adopted(1, &TargetEntry { resumed: true, ..entry }, false)] {
            for verdict in [Verdict::Open, Verdict::Committed] {
                assert_eq!(reply(asked(verdict, ran)), Reply::Cold, "{verdict:?}");
            }
        }
    }

    #[test]
    fn a_restore_begins_once_for_each_container_and_only_when_it_can() {
        let fresh = TargetLocal { attempt: 1, listening: true, ..TargetLocal::default() };
        let first = asked(Verdict::Open, fresh);
        assert_eq!(reply(first), Reply::Begin);
        assert_eq!(reply(Known { same: true, ..first }), Reply::Again);
        assert_eq!(reply(Known { early: false, ..first }), Reply::Later);
        let last = Known { replace_first: false, ..first };
        assert_eq!(reply(last), Reply::Later);
        assert_eq!(reply(Known { verdict: Verdict::Committed, ..last }), Reply::Begin);
    }

    #[test]
    fn nothing_starts_in_an_attempt_that_is_over() {
        let fresh = TargetLocal { attempt: 1, listening: true, ..TargetLocal::default() };
        assert_eq!(reply(asked(Verdict::Aborted, fresh)), Reply::Refuse);
        assert_eq!(reply(asked(Verdict::Committed, TargetLocal { destroyed: true, ..fresh })), Reply::Refuse);
        assert_eq!(reply(asked(Verdict::Open, TargetLocal { failed: true, ..fresh })), Reply::Refuse);
        let kept = asked(Verdict::Committed, TargetLocal { failed: true, ..fresh });
        assert_eq!(reply(kept), Reply::Begin, "after the commit a failure is tried again");
    }
}
