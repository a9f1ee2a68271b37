//! Telling containerd why: it reads the last line of runc's JSON log, and kubelet puts it into the pod's events.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

/// Appends an error to runc's log, in runc's format, and prints it. `at` is RFC 3339.
///
/// A log that can't be written changes nothing: the exit code says that it failed, and standard error says why.
pub(super) fn error(log: Option<&Path>, reason: &str, at: &str) {
    eprintln!("tideover: {reason}");
    let Some(log) = log else { return };
    let line = line(reason, at);
    let open = OpenOptions::new().append(true).create(true).open(log);
    if let Err(error) = open.and_then(|mut file| file.write_all(line.as_bytes())) {
        eprintln!("tideover: write {}: {error}", log.display());
    }
}

/// Source: runc writes `logrus.JSONFormatter` entries.
fn line(reason: &str, at: &str) -> String {
    format!("{}\n", serde_json::json!({ "level": "error", "msg": format!("tideover: {reason}"), "time": at }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_an_entry_of_runcs_log() {
        assert_eq!(
            line("no \"agent\"", "2026-01-02T03:04:05Z"),
            "{\"level\":\"error\",\"msg\":\"tideover: no \\\"agent\\\"\",\"time\":\"2026-01-02T03:04:05Z\"}\n"
        );
    }

    #[test]
    fn errors_are_appended() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log.json");
        std::fs::write(&log, "{}\n").unwrap();
        error(Some(&log), "why", "now");
        assert_eq!(std::fs::read_to_string(&log).unwrap().lines().count(), 2);
    }
}
