//! The last word of the source: that all of the state is there. Before it no target can have rebuilt anything, so that the source may
//! end even an attempt that the target has taken; after it only the target knows.

use crate::agent::failure::retryable;
use crate::agent::unpassed::Unpassed;
use crate::causes::chain;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use tideover_crds::{Failure, FailureReason};

/// Name of the file that is there as long as it is not said, in the attempt's directory. No container has a name that begins so.
const FILE: &str = ".unsaid";

/// Proof that the last word of an attempt has not been said.
#[derive(Debug)]
pub struct Unsaid(Unpassed);

impl Unsaid {
    /// Of an attempt with this directory, that is about to be frozen. Blocking.
    ///
    /// # Errors
    /// With the failure to report: nothing may be frozen then.
    pub fn begin(directory: &Path) -> Result<Self, Failure> {
        let begun = Unpassed::write(&directory.join(FILE));
        begun.map(Self).map_err(|error| retryable(FailureReason::FreezeFailed, chain(&error)))
    }

    /// Of an attempt that an agent before this one may have frozen; none where it may have been said. Blocking.
    pub fn left(directory: &Path) -> Option<Self> {
        Unpassed::left(&directory.join(FILE)).map(Self)
    }

    /// Of an attempt for which nothing was frozen, by the journal: it is said in a freeze alone.
    pub fn of_what_was_never_frozen() -> Self {
        Self(Unpassed::for_certain())
    }
}

/// The last word, which the container that is sent last says for all: without any of them the pod is not whole.
#[derive(Debug)]
pub struct LastWord(Mutex<Left>);

#[derive(Debug)]
struct Left {
    /// Containers that have not said that they are whole.
    containers: usize,
    unsaid: Option<Unsaid>,
}

impl LastWord {
    /// Not said yet, for so many containers.
    pub fn new(unsaid: Unsaid, containers: usize) -> Self {
        Self(Mutex::new(Left { containers, unsaid: Some(unsaid) }))
    }

    /// Says it for one container, once. What is sent after this may make that one whole.
    ///
    /// # Errors
    /// With the failure to report: it is not said then.
    pub fn say(&self) -> Result<(), Failure> {
        let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        left.containers = left.containers.saturating_sub(1);
        if left.containers > 0 {
            return Ok(());
        }
        let Some(Err((file, error))) = left.unsaid.take().map(|Unsaid(file)| file.pass()) else { return Ok(()) };
        left.unsaid = Some(Unsaid(file));
        Err(retryable(FailureReason::TransferFailed, chain(&error)))
    }

    /// What may still be done, where it was not said.
    pub fn unsaid(self) -> Option<Unsaid> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner).unsaid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_by_the_last_of_all_containers_and_never_taken_back() {
        let directory = tempfile::tempdir().expect("a directory");
        let word = LastWord::new(Unsaid::begin(directory.path()).expect("begun"), 2);
        word.say().expect("said for one container");
        assert!(Unsaid::left(directory.path()).is_some());
        word.say().expect("said");
        assert!(Unsaid::left(directory.path()).is_none());
        assert!(word.unsaid().is_none());
    }

    #[test]
    fn what_was_not_said_may_be_taken_back() {
        let directory = tempfile::tempdir().expect("a directory");
        let word = LastWord::new(Unsaid::begin(directory.path()).expect("begun"), 2);
        word.say().expect("said for one container");
        assert!(word.unsaid().is_some());
        assert!(Unsaid::left(directory.path()).is_some(), "also by an agent that comes after this one");
    }

    #[test]
    fn what_can_not_be_written_down_as_said_is_not_said() {
        let directory = tempfile::tempdir().expect("a directory");
        let word = LastWord::new(Unsaid::begin(directory.path()).expect("begun"), 1);
        std::fs::remove_file(directory.path().join(FILE)).expect("removed");
        std::fs::create_dir(directory.path().join(FILE)).expect("something that is no file");
        word.say().expect_err("can't be removed");
        assert!(word.unsaid().is_some());
    }
}
