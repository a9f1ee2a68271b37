//! Messages of sd_notify(3), parsed.
//!
//! Owns what a datagram may look like and which variables are understood. Who sent it, and whether that process may, is
//! not known here.

use thiserror::Error;

/// Most bytes of a datagram. Source: systemd's `NOTIFY_BUFFER_MAX`.
pub const MAX_BYTES: usize = 4096;
/// Most characters of STATUS= that are kept for the record.
const MAX_STATUS: usize = 200;

/// One datagram.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notice {
    /// What it says about the phase.
    pub phase: Option<Phase>,
    /// STATUS=, without control characters, at most 200 characters.
    pub status: Option<String>,
    /// MAINPID=.
    pub main_pid: Option<i32>,
    /// ERRNO=.
    pub errno: Option<i32>,
    /// WATCHDOG=.
    pub watchdog: Option<Watchdog>,
    /// WATCHDOG_USEC=, microseconds.
    pub watchdog_usec: Option<u64>,
    /// EXTEND_TIMEOUT_USEC=, microseconds.
    pub extend_usec: Option<u64>,
    /// RESTART_RESET=1.
    pub restart_reset: bool,
    /// BARRIER=1, which stands alone: its descriptor is closed, and that is the answer.
    pub barrier: bool,
}

/// READY=, RELOADING=, STOPPING=. Of several, STOPPING= beats READY=, and that beats RELOADING=, as in systemd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// READY=1: start-up or reload is complete.
    Ready,
    /// RELOADING=1.
    Reloading {
        /// MONOTONIC_USEC=, microseconds: when the reload began. One that is not younger than the last is a message that
        /// comes late.
        since_usec: Option<u64>,
    },
    /// STOPPING=1.
    Stopping,
}

/// WATCHDOG=.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watchdog {
    /// `1`: still alive.
    Ping,
    /// `trigger`: as if the time were up.
    Trigger,
}

/// Why a datagram is not heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NoticeError {
    /// It is longer than [`MAX_BYTES`].
    #[error("the message has more than {MAX_BYTES} bytes")]
    TooLong,
    /// It has a zero byte inside.
    #[error("the message has a zero byte inside")]
    ZeroByte,
    /// BARRIER=1 must stand alone.
    #[error("BARRIER=1 came with other variables")]
    BarrierNotAlone,
}

/// Parses a datagram. Variables that are not known, and values that are none, are passed over, as sd_notify(3) demands.
///
/// # Errors
/// Where nothing of it may be heard.
pub fn parse(datagram: &[u8]) -> Result<Notice, NoticeError> {
    if datagram.len() > MAX_BYTES {
        return Err(NoticeError::TooLong);
    }
    // Some senders count the terminating zero in.
    let text = datagram.strip_suffix(b"\0").unwrap_or(datagram);
    if text.contains(&0) {
        return Err(NoticeError::ZeroByte);
    }
    let lines: Vec<(&[u8], &[u8])> = text.split(|byte| *byte == b'\n').filter_map(split).collect();
    let barrier = lines.iter().any(|(name, value)| *name == b"BARRIER" && *value == b"1");
    if barrier {
        return if lines.len() == 1 {
            Ok(Notice { barrier, ..Notice::default() })
        } else {
            Err(NoticeError::BarrierNotAlone)
        };
    }
    let (mut ready, mut reloading, mut stopping, mut since_usec) = (false, false, false, None);
    let mut notice = Notice::default();
    for (name, value) in lines {
        match (name, value) {
            (b"READY", b"1") => ready = true,
            (b"RELOADING", b"1") => reloading = true,
            (b"STOPPING", b"1") => stopping = true,
            (b"MONOTONIC_USEC", value) => since_usec = number(value),
            (b"STATUS", value) => notice.status = Some(printable(value)),
            (b"MAINPID", value) => notice.main_pid = number(value).filter(|pid: &i32| *pid > 1),
            (b"ERRNO", value) => notice.errno = number(value).filter(|errno: &i32| *errno >= 0),
            (b"WATCHDOG", b"1") => notice.watchdog = Some(Watchdog::Ping),
            (b"WATCHDOG", b"trigger") => notice.watchdog = Some(Watchdog::Trigger),
            (b"WATCHDOG_USEC", value) => notice.watchdog_usec = number(value),
            (b"EXTEND_TIMEOUT_USEC", value) => notice.extend_usec = number(value),
            (b"RESTART_RESET", b"1") => notice.restart_reset = true,
            _ => {}
        }
    }
    notice.phase = if stopping {
        Some(Phase::Stopping)
    } else if ready {
        Some(Phase::Ready)
    } else {
        reloading.then_some(Phase::Reloading { since_usec })
    };
    Ok(notice)
}

fn split(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let equals = line.iter().position(|byte| *byte == b'=')?;
    Some((&line[..equals], &line[equals + 1..]))
}

fn number<T: std::str::FromStr>(value: &[u8]) -> Option<T> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn printable(value: &[u8]) -> String {
    String::from_utf8_lossy(value).chars().filter(|character| !character.is_control()).take(MAX_STATUS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_variable_is_understood() {
        let notice = parse(
            b"MAINPID=42\nSTATUS=Up since\ttoday\nERRNO=2\nWATCHDOG=trigger\nWATCHDOG_USEC=5000000\n\
              EXTEND_TIMEOUT_USEC=7\nRESTART_RESET=1\nRELOADING=1\nMONOTONIC_USEC=99\nX_OTHER=1\n",
        )
        .unwrap();
        let expected = Notice {
            phase: Some(Phase::Reloading { since_usec: Some(99) }),
            status: Some("Up sincetoday".to_owned()),
            main_pid: Some(42),
            errno: Some(2),
            watchdog: Some(Watchdog::Trigger),
            watchdog_usec: Some(5_000_000),
            extend_usec: Some(7),
            restart_reset: true,
            barrier: false,
        };
        assert_eq!(notice, expected);
        assert_eq!(parse(b"READY=1\0").unwrap().phase, Some(Phase::Ready));
    }

    #[test]
    fn stopping_beats_ready_which_beats_reloading() {
        assert_eq!(parse(b"RELOADING=1\nREADY=1").unwrap().phase, Some(Phase::Ready));
        assert_eq!(parse(b"READY=1\nSTOPPING=1\nRELOADING=1").unwrap().phase, Some(Phase::Stopping));
    }

    #[test]
    fn values_that_are_none_are_passed_over() {
        let notice = parse(b"READY=0\nMAINPID=1\nERRNO=-3\nWATCHDOG=2\nWATCHDOG_USEC=x\nWATCHDOG\n=1\n").unwrap();
        assert_eq!(notice, Notice::default());
    }

    #[test]
    fn a_barrier_stands_alone() {
        assert!(parse(b"BARRIER=1").unwrap().barrier);
        assert!(parse(b"BARRIER=1\n").unwrap().barrier);
        assert_eq!(parse(b"BARRIER=1\nREADY=1"), Err(NoticeError::BarrierNotAlone));
    }

    #[test]
    fn long_ones_and_zero_bytes_are_refused() {
        assert_eq!(parse(&[b'x'; MAX_BYTES + 1]), Err(NoticeError::TooLong));
        assert_eq!(parse(b"READY=1\0\nSTOPPING=1"), Err(NoticeError::ZeroByte));
    }

    proptest! {
        #[test]
        fn no_datagram_makes_it_panic_or_keep_much(datagram in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(notice) = parse(&datagram) {
                prop_assert!(notice.status.is_none_or(|status| status.chars().count() <= MAX_STATUS));
            }
        }
    }
}
