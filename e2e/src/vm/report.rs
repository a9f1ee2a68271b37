//! What the machine has said of its checks.
//!
//! Owns the reading of the report's lines. `e2e/guest/src/report.rs` writes them.

use std::collections::BTreeMap;

use serde::Deserialize;

/// What has become of each check.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// By name: nothing, or what was wrong.
    pub checks: BTreeMap<String, Option<String>>,
    /// Whether the machine has made all checks that it has.
    pub is_complete: bool,
    /// What the kernel and the checks have said on the console.
    pub console: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum Line {
    Checked { name: String, error: Option<String> },
    End,
}

impl Report {
    /// Reads the lines. One that makes no sense is the last that counts: the machine has stopped while it wrote it.
    pub fn parse(lines: &str, console: String) -> Self {
        let mut report = Self { console, ..Self::default() };
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            match serde_json::from_str(line) {
                Ok(Line::Checked { name, error }) => drop(report.checks.insert(name, error)),
                Ok(Line::End) => report.is_complete = true,
                Err(_) => break,
            }
        }
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_check_has_an_error_or_none() {
        // A serial line ends lines as terminals do.
        let lines = "{\"checked\":{\"name\":\"a\",\"error\":null}}\r\n\
                     {\"checked\":{\"name\":\"b\",\"error\":\"one\\ntwo\"}}\r\n\"end\"\r\n";
        let report = Report::parse(lines, String::new());
        assert!(report.is_complete);
        assert_eq!(report.checks, BTreeMap::from([("a".into(), None), ("b".into(), Some("one\ntwo".into()))]));
    }

    #[test]
    fn a_report_that_breaks_off_is_not_complete() {
        let report = Report::parse("{\"checked\":{\"name\":\"a\",\"error\":null}}\n{\"checked\":{\"na", String::new());
        assert_eq!((report.checks.len(), report.is_complete), (1, false));
    }
}
