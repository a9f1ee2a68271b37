//! When the daemon does what: whether to fill in, and how long to wait. No I/O.

use super::error::DaemonError;
use std::time::Duration;

/// How long nothing is filled in after a fault: who waited for one may well come with the next, which takes it some 15 us.
const LISTEN: Duration = Duration::from_micros(50);
/// How long that may go on at most, so that there is an end of faults.
const LISTEN_AT_MOST: Duration = Duration::from_millis(1);
/// How long the kernel may say that there is no memory. It has killed somebody for it by then, or will not.
const NO_MEMORY_LIMIT: Duration = Duration::from_secs(10);
/// How long nothing is filled in after the restore, unless the relay says before that the processes run: until then CRIU
/// needs the processor, and locks of the memory, for its last steps.
const REST: Duration = Duration::from_secs(1);

/// Whether to fill in what nobody waits for, so long after CRIU has restored everything.
pub(super) fn is_time_to_fill(finished: Option<Duration>, running: bool) -> bool {
    finished.is_some_and(|finished| running || finished >= REST)
}

/// Whether a fault that was answered so long ago is one of many, when something was filled in so long ago.
pub(super) fn is_one_of_many(answered: Option<Duration>, filled: Option<Duration>) -> bool {
    answered.is_some_and(|answered| answered < LISTEN) && filled.is_some_and(|filled| filled < LISTEN_AT_MOST)
}

/// How long to wait for what is left of the rest, so long after it began.
pub(super) fn rest_after(elapsed: Duration) -> Duration {
    // Rounded up, so that it is over after the wait.
    REST.saturating_sub(elapsed) + Duration::from_millis(1)
}

/// An error once there has been no memory for so long that there will be none. `address` is a page of process `pid` that has no place.
///
/// # Errors
/// [`DaemonError::NoMemory`].
pub(super) fn be_patient(without: Duration, pid: i32, address: u64) -> Result<(), DaemonError> {
    if without < NO_MEMORY_LIMIT {
        return Ok(());
    }
    Err(DaemonError::NoMemory { pid, address, limit: NO_MEMORY_LIMIT })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_filled_in_before_the_processes_run_unless_nobody_says_so() {
        assert!(!is_time_to_fill(None, true) && !is_time_to_fill(None, false));
        assert!(!is_time_to_fill(Some(REST / 2), false) && is_time_to_fill(Some(REST / 2), true));
        assert!(is_time_to_fill(Some(REST), false), "a relay that hangs must not keep the pages away");
    }

    #[test]
    fn the_rest_is_over_after_the_wait_for_it() {
        assert!(Duration::from_millis(300) + rest_after(Duration::from_millis(300)) > REST);
        assert!(rest_after(REST * 2) > Duration::ZERO);
    }

    #[test]
    fn memory_is_waited_for_and_not_for_ever() {
        assert!(be_patient(NO_MEMORY_LIMIT / 2, 7, 0x1000).is_ok());
        let refused = be_patient(NO_MEMORY_LIMIT, 7, 0x1000);
        assert!(matches!(refused, Err(DaemonError::NoMemory { pid: 7, address: 0x1000, .. })), "{refused:?}");
    }

    #[test]
    fn faults_that_follow_each_other_hold_up_the_fill_and_not_for_ever() {
        assert!(!is_one_of_many(None, None) && !is_one_of_many(None, Some(Duration::ZERO)));
        assert!(is_one_of_many(Some(Duration::ZERO), Some(LISTEN_AT_MOST / 2)));
        assert!(!is_one_of_many(Some(LISTEN), Some(LISTEN_AT_MOST / 2)), "the next one did not come");
        assert!(!is_one_of_many(Some(Duration::ZERO), Some(LISTEN_AT_MOST)), "they must have an end");
        assert!(!is_one_of_many(Some(Duration::ZERO), None), "nothing was filled in yet");
    }
}
