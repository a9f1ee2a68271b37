//! What containerd's configuration must say, as text: pure functions from what it says now.
//!
//! Only the top of a TOML file and blocks of our own are ever looked at or changed; the rest stays as its owner wrote it.

use std::collections::BTreeSet;
use thiserror::Error;

/// Glob by which the main configuration imports drop-ins.
pub const IMPORT: &str = "/etc/containerd/conf.d/*.toml";
/// Lines around what is added to a file that is not ours.
const BEGIN: &str = "# begin tideover";
const END: &str = "# end tideover";
/// Mark on an `imports` line that was added or changed.
const OURS: &str = "# by tideover";

/// Why a configuration can't be changed.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// A version that containerd 2 does not read and we don't write.
    #[error("containerd's configuration has version {0}, 2 or later is needed")]
    Version(i64),
    /// An `imports` that spans lines is its owner's to change.
    #[error("containerd's configuration has an `imports` of several lines: add {IMPORT:?} to it by hand")]
    Imports,
}

/// What the top of a configuration says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Top {
    /// `version`; 1 where there is none, as containerd reads it.
    pub version: i64,
    /// Whether drop-ins are imported.
    pub imports: bool,
}

/// Reads `version` and `imports` before the first table.
///
/// # Errors
/// [`ConfigError::Version`].
pub fn top(text: &str) -> Result<Top, ConfigError> {
    let version = value_of(text, "version").and_then(|value| value.parse().ok()).unwrap_or(1);
    if version < 2 {
        return Err(ConfigError::Version(version));
    }
    let imports = top_lines(text).any(|line| !line.starts_with('#') && line.contains("/etc/containerd/conf.d/*"));
    Ok(Top { version, imports })
}

fn top_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).take_while(|line| !line.starts_with('['))
}

fn value_of<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    top_lines(text).find_map(|line| {
        let (name, value) = line.split_once('=')?;
        (name.trim() == key).then(|| value.split('#').next().unwrap_or_default().trim())
    })
}

/// The tables that register the runtime handler, for a configuration of this version.
pub fn handler(version: i64) -> String {
    let plugin = if version >= 3 { "io.containerd.cri.v1.runtime" } else { "io.containerd.grpc.v1.cri" };
    format!(
        "[plugins.'{plugin}'.containerd.runtimes.tideover]\n\
         \x20 runtime_type = 'io.containerd.runc.v2'\n\
         \x20 pod_annotations = ['tideover.dev/*']\n\
         \x20 container_annotations = ['tideover.dev/*']\n\
         \n\
         [plugins.'{plugin}'.containerd.runtimes.tideover.options]\n\
         \x20 BinaryName = '/opt/tideover/bin/criu-shim'\n"
    )
}

/// The drop-in. `systemd_cgroup`: as the runtime that pods have by default.
pub fn drop_in(version: i64, systemd_cgroup: bool) -> String {
    format!(
        "# Registers Tideover's runtime handler. Written by tideover-agent, which also removes it.\nversion = {version}\n\n{}",
        with_cgroup_driver(handler(version), systemd_cgroup)
    )
}

fn with_cgroup_driver(handler: String, systemd_cgroup: bool) -> String {
    if systemd_cgroup { format!("{handler}  SystemdCgroup = true\n") } else { handler }
}

/// `text` with an import of the drop-ins. The rest is untouched.
///
/// # Errors
/// [`ConfigError::Imports`] where that can't be done without understanding more of the file.
pub fn with_import(text: &str) -> Result<String, ConfigError> {
    let added = format!("imports = ['{IMPORT}'] {OURS}\n");
    let Some(value) = value_of(text, "imports") else {
        // After the version, where there is one, and before any table.
        let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
        let at = lines.iter().position(|line| line.trim_start().starts_with("version")).map_or(0, |at| at + 1);
        lines.insert(at, &added);
        return Ok(lines.concat());
    };
    let inner = value.strip_prefix('[').and_then(|value| value.strip_suffix(']')).ok_or(ConfigError::Imports)?.trim();
    let separator = if inner.is_empty() || inner.ends_with(',') { "" } else { ", " };
    let changed = format!("imports = [{inner}{separator}'{IMPORT}'] {OURS}\n");
    Ok(replace_line(text, "imports", &changed))
}

/// `text` without what [`with_import`] added.
pub fn without_import(text: &str) -> String {
    let ours = top_lines(text).any(|line| line.starts_with("imports") && line.ends_with(OURS));
    let Some(value) = value_of(text, "imports").filter(|_| ours) else { return text.to_owned() };
    let inner = value.trim_start_matches('[').trim_end_matches(']');
    let rest: Vec<&str> =
        inner.split(',').map(str::trim).filter(|item| !item.is_empty() && !item.contains(IMPORT)).collect();
    let line = if rest.is_empty() { String::new() } else { format!("imports = [{}]\n", rest.join(", ")) };
    replace_line(text, "imports", &line)
}

fn replace_line(text: &str, key: &str, with: &str) -> String {
    let mut done = false;
    text.split_inclusive('\n')
        .map(|line| {
            let is_it = !done && line.split_once('=').is_some_and(|(name, _)| name.trim() == key);
            done |= is_it;
            if is_it { with } else { line }
        })
        .collect()
}

/// `text` with the handler in a block of its own at the end: for a containerd whose drop-ins replace a plugin's whole
/// section instead of adding to it.
pub fn with_block(text: &str, version: i64, systemd_cgroup: bool) -> String {
    let text = without_block(text);
    let newline = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    let handler = with_cgroup_driver(handler(version), systemd_cgroup);
    format!("{text}{newline}{BEGIN}\n{handler}{END}\n")
}

/// `text` without that block.
pub fn without_block(text: &str) -> String {
    let mut inside = false;
    text.split_inclusive('\n')
        .filter(|line| {
            inside |= line.trim_end() == BEGIN;
            let keep = !inside;
            inside &= line.trim_end() != END;
            keep
        })
        .collect()
}

/// Whether the configuration that containerd prints has the handler.
pub fn has_handler(dump: &str) -> bool {
    dump.contains("/opt/tideover/bin/criu-shim")
}

/// Whether the default runtime puts containers under systemd's cgroups; the handler must do the same.
pub fn systemd_cgroup(dump: &str) -> bool {
    let statements = statements(dump);
    statements.iter().any(|(table, line)| {
        let plain = table.replace(['"', '\'', ']'], "");
        plain.ends_with("containerd.runtimes.runc.options") && line.replace(' ', "") == "SystemdCgroup=true"
    })
}

/// Statements that the configuration `before` had and `after` has not: what a drop-in has displaced.
pub fn displaced(before: &str, after: &str) -> Vec<String> {
    let after = statements(after);
    let ours = |(table, line): &(String, String)| table.is_empty() && line.starts_with("imports") || line.is_empty();
    let lost = statements(before).into_iter().filter(|statement| !ours(statement) && !after.contains(statement));
    lost.map(|(table, line)| format!("{table} {line}")).collect()
}

/// Every `key = value` line with the table that it is in.
fn statements(dump: &str) -> BTreeSet<(String, String)> {
    let mut table = String::new();
    let mut statements = BTreeSet::new();
    for line in dump.lines().map(str::trim) {
        if line.starts_with('[') {
            line.clone_into(&mut table);
        } else if !line.starts_with('#') {
            statements.insert((table.clone(), line.to_owned()));
        }
    }
    statements
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_top_is_read_up_to_the_first_table() {
        let text = "# comment\nversion = 3 # three\n[plugins]\nimports = ['/etc/containerd/conf.d/*.toml']\n";
        assert_eq!(top(text), Ok(Top { version: 3, imports: false }));
        let text = "version = 2\nimports = [\n  \"/etc/containerd/conf.d/*.toml\",\n]\n[plugins]\n";
        assert_eq!(top(text), Ok(Top { version: 2, imports: true }));
        assert_eq!(top("root = '/x'\n"), Err(ConfigError::Version(1)));
    }

    #[test]
    fn each_version_names_the_plugin_its_own_way() {
        assert!(drop_in(3, false).contains("[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.tideover]"));
        assert!(
            drop_in(2, true).contains("[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.tideover.options]")
        );
        assert!(drop_in(2, true).ends_with("SystemdCgroup = true\n"));
        assert!(drop_in(3, false).contains("version = 3\n"));
    }

    #[test]
    fn an_import_is_added_and_taken_away_without_touching_the_rest() {
        for (before, expected) in [
            ("version = 3\nroot = '/x'\n[plugins]\n", "imports = ['/etc/containerd/conf.d/*.toml'] # by tideover\n"),
            ("version = 3\nimports = []\n[plugins]\n", "imports = ['/etc/containerd/conf.d/*.toml'] # by tideover\n"),
            (
                "version = 2\nimports = [\"/a.toml\"]\n[plugins]\n",
                "imports = [\"/a.toml\", '/etc/containerd/conf.d/*.toml'] # by tideover\n",
            ),
        ] {
            let with = with_import(before).expect("added");
            assert!(with.contains(expected), "{with}");
            assert!(top(&with).expect("top").imports);
            let without = without_import(&with);
            assert_eq!(without, before.replace("imports = []\n", ""), "from {before}");
        }
        assert_eq!(with_import("version = 3\nimports = [\n'/a'\n]\n"), Err(ConfigError::Imports));
        let theirs = "version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n";
        assert_eq!(without_import(theirs), theirs, "an import that was there before stays");
    }

    #[test]
    fn a_block_is_added_once_and_removed_whole() {
        let before = "version = 2\n[plugins]\n";
        let with = with_block(before, 2, false);
        assert_eq!(with_block(&with, 2, false), with);
        assert_eq!(without_block(&with), before);
        assert!(has_handler(&with));
    }

    #[test]
    fn what_a_drop_in_displaces_is_seen() {
        let before = "version = 2\nimports = []\n[plugins.a]\n  x = 1\n  y = 2\n";
        let merged = "version = 2\nimports = ['z']\n[plugins.a]\n  x = 1\n  y = 2\n[plugins.a.t]\n  n = 1\n";
        assert_eq!(displaced(before, merged), Vec::<String>::new());
        let replaced = "version = 2\nimports = ['z']\n[plugins.a]\n  x = 0\n[plugins.a.t]\n  n = 1\n";
        assert_eq!(displaced(before, replaced), ["[plugins.a] x = 1", "[plugins.a] y = 2"]);
    }

    #[test]
    fn the_handler_follows_the_default_runtimes_cgroup_driver() {
        let dump = "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\n  SystemdCgroup = true\n";
        assert!(systemd_cgroup(dump));
        assert!(!systemd_cgroup(&dump.replace("true", "false")));
        assert!(!systemd_cgroup(&dump.replace("runc.options", "other.options")));
    }
}
