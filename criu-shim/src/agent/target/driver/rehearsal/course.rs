//! How the rehearsal of one container goes: what follows from what its restore does. Pure.

use crate::local::RelayStage;

/// How far the rehearsal of one container is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stage {
    /// The cut, or its container, is waited for.
    #[default]
    Awaited,
    /// `runc restore` was begun, and CRIU has not rebuilt everything yet.
    Restoring,
    /// CRIU has rebuilt everything, and was told to destroy it.
    Shown,
    /// Nothing of it is left.
    Over,
}

/// What the restore of that container does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Happening {
    /// The relay is there, in this stage.
    Relay(RelayStage),
    /// The processes are rebuilt.
    Held,
    /// It has ended: `None` where the processes run, else why they don't.
    Ended(Option<String>),
}

/// What follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Consequence {
    Nothing,
    /// Let CRIU use the images, once those of all containers wait and their files are in place.
    Release,
    /// Tell the relay to make CRIU destroy what it has.
    Abandon,
    /// It was shown that the state can be restored here.
    Rehearsed,
    /// It can't, and why.
    Failed(String),
}

impl Stage {
    pub(super) fn step(self, happening: Happening) -> (Self, Consequence) {
        match (self, happening) {
            (Self::Restoring, Happening::Relay(RelayStage::Requested)) => (self, Consequence::Release),
            (Self::Restoring | Self::Shown, Happening::Held | Happening::Relay(RelayStage::Held)) => {
                (Self::Shown, Consequence::Abandon)
            }
            (Self::Restoring, Happening::Relay(_)) => (self, Consequence::Nothing),
            (_, Happening::Held | Happening::Relay(_)) => (self, Consequence::Abandon),
            (Self::Shown, Happening::Ended(Some(_))) => (Self::Over, Consequence::Rehearsed),
            (Self::Restoring, Happening::Ended(Some(why))) => (Self::Over, Consequence::Failed(why)),
            // Nobody has said the word for that.
            (Self::Restoring | Self::Shown, Happening::Ended(None)) => {
                (Self::Over, Consequence::Failed("the processes were not held".to_owned()))
            }
            (Self::Awaited | Self::Over, Happening::Ended(_)) => (self, Consequence::Nothing),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(happenings: &[Happening]) -> (Stage, Vec<Consequence>) {
        happenings.iter().fold((Stage::Restoring, Vec::new()), |(stage, mut all), happening| {
            let (stage, consequence) = stage.step(happening.clone());
            all.push(consequence);
            (stage, all)
        })
    }

    fn failed() -> Happening {
        Happening::Ended(Some("why".into()))
    }

    #[test]
    fn what_was_held_and_destroyed_was_rehearsed() {
        let (stage, all) = run(&[Happening::Relay(RelayStage::Requested), Happening::Held, failed()]);
        assert_eq!(all, [Consequence::Release, Consequence::Abandon, Consequence::Rehearsed]);
        assert_eq!(stage, Stage::Over);
    }

    #[test]
    fn what_ended_before_it_was_held_has_failed() {
        let (_, all) = run(&[Happening::Relay(RelayStage::Requested), failed()]);
        assert_eq!(all[1], Consequence::Failed("why".into()));
    }

    #[test]
    fn a_relay_that_comes_back_is_told_what_its_stage_asks_for() {
        let (_, all) = run(&[Happening::Relay(RelayStage::Restoring), Happening::Relay(RelayStage::Held), failed()]);
        assert_eq!(all, [Consequence::Nothing, Consequence::Abandon, Consequence::Rehearsed]);
        let (_, all) =
            run(&[Happening::Held, Happening::Relay(RelayStage::Held), Happening::Relay(RelayStage::Finishing)]);
        assert_eq!(all, [Consequence::Abandon, Consequence::Abandon, Consequence::Abandon]);
    }

    fn happening() -> impl Strategy<Value = Happening> {
        prop_oneof![
            prop::sample::select(vec![
                RelayStage::Requested,
                RelayStage::Restoring,
                RelayStage::Held,
                RelayStage::Finishing,
            ])
            .prop_map(Happening::Relay),
            Just(Happening::Held),
            Just(failed()),
            Just(Happening::Ended(None)),
        ]
    }

    proptest! {
        /// Whatever comes in whatever order: once, at most, it is said to have been rehearsed, and only after it was held and
        /// destroyed; what was held is never released.
        #[test]
        fn rehearsed_means_held_and_destroyed(happenings in prop::collection::vec(happening(), 0..12)) {
            let (mut stage, mut held, mut results) = (Stage::Restoring, false, 0);
            for happening in happenings {
                let ran = happening == Happening::Ended(None);
                let holds = matches!(happening, Happening::Held | Happening::Relay(RelayStage::Held));
                let (next, consequence) = stage.step(happening);
                held |= holds && stage != Stage::Over;
                match consequence {
                    Consequence::Rehearsed => {
                        prop_assert!(held && !ran);
                        results += 1;
                    }
                    Consequence::Failed(_) => results += 1,
                    Consequence::Release => prop_assert!(!held && stage == Stage::Restoring),
                    Consequence::Abandon | Consequence::Nothing => prop_assert!(!holds || consequence == Consequence::Abandon),
                }
                stage = next;
            }
            prop_assert!(results <= 1);
        }
    }
}
