//! The `checkpoint` section of a policy: how often a container's state is stored on its node, and how much of that is kept.

use kube::KubeSchema;
use kube::core::Duration;
use serde::{Deserialize, Serialize};

/// How often the state of a container is stored, and how many of these checkpoints are kept.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointPolicy {
    /// Pause from one checkpoint to the next. Each holds the application up for a moment, and writes all its memory to the disk.
    #[x_kube(validation = Rule::new("duration(self) >= duration('10s') && duration(self) <= duration('24h')").message("checkpoint.interval must be between 10s and 24h"))]
    pub interval: Duration,
    /// How many good ones are kept, the newest. Default 2: one to go back to when the newest has the fault already.
    #[x_kube(validation = Rule::new("self >= 1 && self <= 16").message("checkpoint.keep must be between 1 and 16"))]
    #[serde(default = "default_keep")]
    pub keep: u32,
}

fn default_keep() -> u32 {
    2
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration as StdDuration;

    #[test]
    fn two_are_kept_where_nothing_is_said_and_how_often_must_be_said() {
        let policy: CheckpointPolicy = serde_json::from_str(r#"{"interval": "5m"}"#).expect("a policy");
        assert_eq!((StdDuration::from(policy.interval), policy.keep), (StdDuration::from_secs(300), 2));
        assert!(serde_json::from_str::<CheckpointPolicy>("{}").is_err());
    }
}
