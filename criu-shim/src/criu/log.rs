//! The errors in a log of CRIU's.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// How much of the end of a log is looked at, bytes.
const TAIL: u64 = 64 * 1024;

/// Longest line that is kept, bytes.
const LINE: usize = 300;

/// What CRIU says of success as well, so that it explains no failure.
const NOISE: [&str; 1] = ["Can't setup RLIMIT_NOFILE"];

/// The last `count` error lines of a log, oldest first, without time stamps. None if the log can't be read: it explains
/// an error, and a missing explanation is no further error.
pub fn last_errors(log: &Path, count: usize) -> Vec<String> {
    read_tail(log).map(|tail| errors_in(&String::from_utf8_lossy(&tail), count)).unwrap_or_default()
}

/// CRIU's own first error, unless it is one that it reports of success too.
pub fn first_error(message: Option<&str>) -> Option<String> {
    message.map(str::trim).filter(|message| !message.is_empty() && !is_noise(message)).map(str::to_owned)
}

fn is_noise(line: &str) -> bool {
    NOISE.iter().any(|noise| line.contains(noise))
}

fn read_tail(log: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut tail = Vec::new();
    file.take(TAIL).read_to_end(&mut tail)?;
    Ok(tail)
}

fn errors_in(log: &str, count: usize) -> Vec<String> {
    let errors = log.lines().filter(|line| line.contains("Error (") && !is_noise(line));
    let mut last: Vec<String> = errors
        .rev()
        .take(count)
        .map(|line| line[line.find("Error (").unwrap_or(0)..].chars().take(LINE).collect())
        .collect();
    last.reverse();
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_errors_come_in_order_and_without_noise() {
        let log = "\
(00.000100) Warn  (criu/kerndat.c:1): something
(00.000200) Error (criu/a.c:10): first
(00.000300) Error (criu/b.c:20): second
(00.000400) Error (criu/util.c:30): Can't setup RLIMIT_NOFILE for self
(00.000500) Error (criu/c.c:40): third
";
        assert_eq!(errors_in(log, 2), ["Error (criu/b.c:20): second", "Error (criu/c.c:40): third"]);
    }

    #[test]
    fn a_first_error_that_says_nothing_is_none() {
        assert_eq!(first_error(Some("Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self\n")), None);
        assert_eq!(first_error(Some("Error (criu/x.c:1): why\n")).as_deref(), Some("Error (criu/x.c:1): why"));
        assert_eq!(first_error(Some(" ")), None);
        assert_eq!(first_error(None), None);
    }

    #[test]
    fn a_missing_log_explains_nothing() {
        assert!(last_errors(Path::new("/nowhere/dump.log"), 3).is_empty());
    }
}
