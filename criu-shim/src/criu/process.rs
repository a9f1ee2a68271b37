//! A process that can be recognised after the agent was restarted.

use serde::{Deserialize, Serialize};

/// A process by id and start time, so that a reused id is not taken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessId {
    /// Process id, in the node's PID namespace.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`: clock ticks since boot.
    pub start_time: u64,
}

impl ProcessId {
    /// The process that has this id now; none if there is none.
    pub fn now(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        start_time(&stat).map(|start_time| Self { pid, start_time })
    }

    /// True while the process exists, as a zombie too.
    pub fn is_alive(&self) -> bool {
        Self::now(self.pid) == Some(*self)
    }
}

fn start_time(stat: &str) -> Option<u64> {
    // The second field is the command in brackets, which may itself hold brackets and blanks.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_with_brackets_does_not_confuse() {
        let rest = (3..53).map(|field| field.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(start_time(&format!("7 (a) b (c)) {rest}")), Some(22));
    }

    #[test]
    fn this_process_is_alive_and_another_start_time_is_not() {
        let own = ProcessId::now(std::process::id() as i32).unwrap();
        assert!(own.is_alive());
        assert!(!ProcessId { start_time: own.start_time + 1, ..own }.is_alive());
    }
}
