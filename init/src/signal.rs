//! Names and numbers of signals.
//!
//! Signals are plain numbers everywhere else, because real-time signals have no place in the usual enumerations.

/// Lowest real-time signal that programs may use: the C library keeps 32 and 33 to itself. Source: signal(7).
const RT_MIN: i32 = 34;
/// Highest signal of Linux on the architectures that Tideover runs on.
pub const MAX: i32 = 64;

/// Linux' numbers on x86-64 and AArch64, which agree. Source: signal(7).
const NAMES: [(&str, i32); 31] = [
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
];

/// Number of the signal `name`: `SIGTERM`, `TERM`, `SIGRTMIN+3`.
pub fn number(name: &str) -> Option<i32> {
    let bare = name.strip_prefix("SIG").unwrap_or(name);
    if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == bare) {
        return Some(*number);
    }
    let above = match bare.strip_prefix("RTMIN")? {
        "" => 0,
        above => above.strip_prefix('+')?.parse::<u8>().ok()?,
    };
    Some(RT_MIN + i32::from(above)).filter(|number| *number <= MAX)
}

/// Name of the signal `number`, with `SIG` before it; the number itself for one without a name.
pub fn name(number: i32) -> String {
    match NAMES.iter().find(|(_, known)| *known == number) {
        Some((name, _)) => format!("SIG{name}"),
        None if number == RT_MIN => "SIGRTMIN".to_owned(),
        None if (RT_MIN..=MAX).contains(&number) => format!("SIGRTMIN+{}", number - RT_MIN),
        None => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_is_known_by_its_name_with_and_without_its_prefix() {
        for signal in (1..=31).chain(RT_MIN..=MAX) {
            let name = name(signal);
            assert!(name.starts_with("SIG"), "{name}");
            assert_eq!(number(&name), Some(signal));
            assert_eq!(number(name.trim_start_matches("SIG")), Some(signal));
        }
        assert_eq!(number("SIGRTMIN+3"), Some(37));
        for nonsense in ["", "SIG", "SIGFOO", "RTMIN+", "RTMIN+31", "RTMIN-1", "term", "9"] {
            assert_eq!(number(nonsense), None, "{nonsense}");
        }
    }
}
