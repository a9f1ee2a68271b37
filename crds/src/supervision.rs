//! What admission tells the shim about the restarts of a pod's containers.

use crate::checkpoint::CheckpointPolicy;
use crate::restart::RestartPolicy;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Version of [`Supervision`] and of the rules in it. A rule that is new, or means something else, is another version, for it
/// would be passed over. A value that is new is not: a node that does not know it can't read the document at all.
pub const VERSION: u32 = 1;

/// Value of the annotation [`SUPERVISION`](crate::names::SUPERVISION).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Supervision {
    /// [`VERSION`].
    pub version: u32,
    /// Names of the containers. Never init containers, whose end is what kubelet waits for.
    pub containers: Vec<String>,
    /// The rules, with every default.
    pub restart: RestartPolicy,
    /// How often a checkpoint is taken; not at all where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<CheckpointPolicy>,
}

/// Why an annotation says nothing.
#[derive(Debug, Error)]
pub enum SupervisionError {
    /// It is of another version.
    #[error("the rules for restarts have version {theirs}, this node knows version {VERSION}")]
    Version {
        /// The annotation's.
        theirs: u32,
    },
    /// It is no such document.
    #[error("parse the rules for restarts")]
    Parse(#[source] serde_json::Error),
}

/// What every version has.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

impl Supervision {
    /// The annotation for these containers.
    pub fn new(containers: Vec<String>, restart: RestartPolicy, checkpoint: Option<CheckpointPolicy>) -> Self {
        Self { version: VERSION, containers, restart, checkpoint }
    }

    /// Reads an annotation's value.
    ///
    /// # Errors
    /// [`SupervisionError`]. Rules of another version are not guessed at.
    pub fn parse(text: &str) -> Result<Self, SupervisionError> {
        let Versioned { version } = serde_json::from_str(text).map_err(SupervisionError::Parse)?;
        if version != VERSION {
            return Err(SupervisionError::Version { theirs: version });
        }
        serde_json::from_str(text).map_err(SupervisionError::Parse)
    }

    /// Whether the container `name` is supervised.
    pub fn is_of(&self, name: &str) -> bool {
        self.containers.iter().any(|container| container == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let rules = serde_json::from_str(r#"{"policy": "Always", "delay": "20ms"}"#).expect("rules");
        let checkpoint = serde_json::from_str(r#"{"interval": "5m"}"#).expect("a policy");
        let supervision = Supervision::new(vec!["app".into()], rules, Some(checkpoint));
        let text = serde_json::to_string(&supervision).expect("JSON");
        let read = Supervision::parse(&text).expect("supervision");
        assert_eq!(read, supervision);
        assert!(read.is_of("app") && !read.is_of("setup"));
    }

    #[test]
    fn a_value_that_nobody_knows_is_not_passed_over() {
        let text = r#"{"version": 1, "containers": ["app"], "restart": {"startLimit": {"action": "Reboot"}}}"#;
        assert!(matches!(Supervision::parse(text), Err(SupervisionError::Parse(_))));
        Supervision::parse(&text.replace("Reboot", "Migrate")).expect("supervision");
    }

    #[test]
    fn another_version_is_named_whatever_else_it_says() {
        let refused = Supervision::parse(r#"{"version": 7, "rules": {}}"#).expect_err("refused");
        assert_eq!(refused.to_string(), "the rules for restarts have version 7, this node knows version 1");
        assert!(matches!(Supervision::parse("{}"), Err(SupervisionError::Parse(_))));
    }
}
