//! The freezer's files: `freezer.state` (v1), `cgroup.freeze` and `cgroup.events` (v2).

use super::FreezerError;
use std::fmt;
use std::io::ErrorKind;
use std::path::Path;

/// What the kernel says of a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreezerState {
    /// Everything in it may run.
    Thawed,
    /// Told to freeze; some tasks still run.
    Freezing,
    /// Nothing in it runs.
    Frozen,
}

impl fmt::Display for FreezerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Thawed => "thawed",
            Self::Freezing => "freezing",
            Self::Frozen => "frozen",
        })
    }
}

pub(super) fn read_v1(directory: &Path) -> Result<FreezerState, FreezerError> {
    let path = directory.join("freezer.state");
    let content = read(&path)?;
    parse_v1(&content).ok_or(FreezerError::Unexpected { path, content })
}

fn parse_v1(content: &str) -> Option<FreezerState> {
    match content.trim_end() {
        "THAWED" => Some(FreezerState::Thawed),
        "FREEZING" => Some(FreezerState::Freezing),
        "FROZEN" => Some(FreezerState::Frozen),
        _ => None,
    }
}

/// Source: Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst of the kernel.
pub(super) fn write_v1(directory: &Path, wish: FreezerState) -> Result<(), FreezerError> {
    write(&directory.join("freezer.state"), if wish == FreezerState::Thawed { "THAWED" } else { "FROZEN" })
}

pub(super) fn read_v2(directory: &Path) -> Result<FreezerState, FreezerError> {
    let wish = read(&directory.join("cgroup.freeze"))?;
    let path = directory.join("cgroup.events");
    let events = read(&path)?;
    parse_v2(&wish, &events).ok_or(FreezerError::Unexpected { path, content: events })
}

/// `cgroup.freeze` holds the wish, `cgroup.events` what is. Source: Documentation/admin-guide/cgroup-v2.rst.
fn parse_v2(wish: &str, events: &str) -> Option<FreezerState> {
    let frozen = events.lines().find_map(|line| line.strip_prefix("frozen "))?;
    match (wish.trim_end(), frozen) {
        (_, "1") => Some(FreezerState::Frozen),
        ("1", "0") => Some(FreezerState::Freezing),
        ("0", "0") => Some(FreezerState::Thawed),
        _ => None,
    }
}

pub(super) fn write_v2(directory: &Path, wish: FreezerState) -> Result<(), FreezerError> {
    write(&directory.join("cgroup.freeze"), if wish == FreezerState::Thawed { "0" } else { "1" })
}

fn read(path: &Path) -> Result<String, FreezerError> {
    std::fs::read_to_string(path)
        .map_err(|source| gone_or(source, path, |path, source| FreezerError::Read { path, source }))
}

fn write(path: &Path, content: &str) -> Result<(), FreezerError> {
    std::fs::write(path, content)
        .map_err(|source| gone_or(source, path, |path, source| FreezerError::Write { path, source }))
}

fn gone_or(
    source: std::io::Error,
    path: &Path,
    other: impl FnOnce(std::path::PathBuf, std::io::Error) -> FreezerError,
) -> FreezerError {
    // ENODEV: the cgroup was removed while the file was open.
    if source.kind() == ErrorKind::NotFound || source.raw_os_error() == Some(libc::ENODEV) {
        FreezerError::Gone { path: path.parent().unwrap_or(path).to_owned() }
    } else {
        other(path.to_owned(), source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v1_has_three_states() {
        assert_eq!(parse_v1("THAWED\n"), Some(FreezerState::Thawed));
        assert_eq!(parse_v1("FREEZING\n"), Some(FreezerState::Freezing));
        assert_eq!(parse_v1("FROZEN\n"), Some(FreezerState::Frozen));
        assert_eq!(parse_v1(""), None);
    }

    #[test]
    fn v2_is_frozen_only_when_the_events_say_so() {
        assert_eq!(parse_v2("1\n", "populated 1\nfrozen 0\n"), Some(FreezerState::Freezing));
        assert_eq!(parse_v2("1\n", "populated 1\nfrozen 1\n"), Some(FreezerState::Frozen));
        assert_eq!(parse_v2("0\n", "populated 1\nfrozen 0\n"), Some(FreezerState::Thawed));
        // Told to thaw, not there yet (or an ancestor is frozen).
        assert_eq!(parse_v2("0\n", "populated 1\nfrozen 1\n"), Some(FreezerState::Frozen));
        assert_eq!(parse_v2("0\n", "populated 1\n"), None);
    }
}
