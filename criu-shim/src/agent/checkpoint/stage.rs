//! How far the restore of a checkpoint is, and what follows from what happens to it. Pure.

use crate::local::RelayStage;

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// The shim was told to begin.
    #[default]
    Begun,
    /// CRIU has its request.
    Released,
    /// CRIU has rebuilt everything and was told to let it run.
    Resumed,
    /// It is off: what CRIU has is to be destroyed.
    Off,
    /// `runc restore` has ended.
    Over,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happening {
    /// The relay is there, in this stage.
    Relay(RelayStage),
    /// The processes are rebuilt.
    Held,
    /// What was to be seen to before the next word could not be.
    Refused,
    /// `runc restore` has ended with this code.
    Restored(i32),
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consequence {
    /// Nothing.
    Nothing,
    /// Put files in place, and let CRIU have its request.
    Release,
    /// See that memory will come, and let the processes run.
    Resume,
    /// Make CRIU destroy what it has.
    Abandon,
    /// The processes run.
    Ran,
    /// They never will.
    Failed,
}

impl Stage {
    /// What follows from `happening`.
    pub fn step(self, happening: Happening) -> (Self, Consequence) {
        match (self, happening) {
            (Self::Over, Happening::Restored(_) | Happening::Refused) => (Self::Over, Consequence::Nothing),
            (Self::Resumed | Self::Released, Happening::Restored(0)) => (Self::Over, Consequence::Ran),
            (_, Happening::Restored(_)) => (Self::Over, Consequence::Failed),
            (_, Happening::Refused) => (Self::Off, Consequence::Abandon),
            (Self::Off | Self::Over, Happening::Held | Happening::Relay(_)) => (self, Consequence::Abandon),
            (Self::Resumed, Happening::Relay(RelayStage::Requested)) => (Self::Off, Consequence::Abandon),
            (_, Happening::Relay(RelayStage::Requested)) => (Self::Released, Consequence::Release),
            (_, Happening::Held | Happening::Relay(RelayStage::Held)) => (Self::Resumed, Consequence::Resume),
            (_, Happening::Relay(RelayStage::Restoring | RelayStage::Finishing)) => (self, Consequence::Nothing),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(happenings: &[Happening], expected: &[Consequence]) {
        let mut stage = Stage::default();
        let mut all = Vec::new();
        for happening in happenings {
            let (next, consequence) = stage.step(*happening);
            stage = next;
            all.push(consequence);
        }
        assert_eq!(all, expected);
    }

    #[test]
    fn a_restore_is_released_resumed_and_over() {
        use Happening::{Held, Refused, Relay, Restored};
        let requested = Relay(RelayStage::Requested);
        check(&[requested, Held, Restored(0)], &[Consequence::Release, Consequence::Resume, Consequence::Ran]);
        check(&[requested, Restored(1)], &[Consequence::Release, Consequence::Failed]);
        check(&[requested, Refused, Restored(1)], &[Consequence::Release, Consequence::Abandon, Consequence::Failed]);
        let back = [requested, requested, Relay(RelayStage::Held)];
        check(&back, &[Consequence::Release, Consequence::Release, Consequence::Resume]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_was_refused_never_runs_and_there_is_one_end(
            happenings in proptest::collection::vec(prop_oneof![
                prop::sample::select(vec![
                    RelayStage::Requested, RelayStage::Restoring, RelayStage::Held, RelayStage::Finishing,
                ]).prop_map(Happening::Relay),
                Just(Happening::Held), Just(Happening::Refused), (0..2).prop_map(Happening::Restored),
            ], 0..12),
        ) {
            let (mut stage, mut refused, mut ends) = (Stage::default(), false, 0);
            for happening in happenings {
                let (next, consequence) = stage.step(happening);
                refused |= happening == Happening::Refused;
                if refused {
                    let words = [Consequence::Release, Consequence::Resume, Consequence::Ran];
                    prop_assert!(!words.contains(&consequence));
                }
                ends += usize::from(matches!(consequence, Consequence::Ran | Consequence::Failed));
                stage = next;
            }
            prop_assert!(ends <= 1);
        }
    }
}
