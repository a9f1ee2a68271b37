//! The part of a policy that speaks of memory before the freeze.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::num::NonZeroU64;

/// How memory is copied before the freeze, while the application runs.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PreCopyPolicy {
    /// How many rounds may be sent to come below `maxDowntime`, the first with all memory, each other with what was written
    /// during the one before. Default 30.
    #[x_kube(validation = Rule::new("self >= 2 && self <= 1000").message("preCopy.maxRounds must be between 2 and 1000: the first round says nothing about what is written"))]
    #[serde(default = "default_max_rounds")]
    pub max_rounds: u32,
    /// The most that rounds send in a second, bytes, such as 64Mi. The freeze itself is not held back. Left out, as much as can
    /// be.
    #[x_kube(validation = Rule::new("self.matches('^[1-9][0-9]{0,5}(M|Mi|G|Gi)$')").message("preCopy.bandwidthLimit must be bytes per second as a whole number with M, Mi, G or Gi, such as 64Mi"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_limit: Option<String>,
    /// What is done where rounds don't come below `maxDowntime`: because memory is written as fast as it is copied, or after
    /// `maxRounds`, or when the attempt's `timeout` leaves no time for more. Default Proceed.
    #[serde(default)]
    pub on_non_convergence: NonConvergence,
    /// Take cpu time from the container, step by step, where memory is written about as fast as it is copied, before
    /// `onNonConvergence` is asked. It has all of its cpu time again as soon as it is frozen, or the move is over. Default
    /// false.
    #[serde(default)]
    pub auto_converge: bool,
}

impl Default for PreCopyPolicy {
    fn default() -> Self {
        Self {
            max_rounds: default_max_rounds(),
            bandwidth_limit: None,
            on_non_convergence: NonConvergence::default(),
            auto_converge: false,
        }
    }
}

/// Source: Xen's live migration sends at most 30 rounds before it stops the guest (`DEF_MAX_ITERS` of xc_domain_save.c).
fn default_max_rounds() -> u32 {
    30
}

/// What is done where the freeze would be longer than `maxDowntime`, whatever is copied before. It says nothing of a move
/// whose memory is copied inside the freeze (engine `StopAndCopy`).
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NonConvergence {
    /// Move all the same, with a longer freeze. A note in the Migration's status says how long it may be.
    #[default]
    Proceed,
    /// Go on with rounds, with pauses, until the application writes little enough; when the attempt's `timeout` leaves no more
    /// time, as `GiveUp`.
    WaitForQuiet,
    /// End the attempt, with reason `NotConverging`. The application runs on where it is.
    GiveUp,
}

/// The resolved [`PreCopyPolicy`] of one Migration.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedPreCopy {
    /// Rounds before the handover.
    pub max_rounds: u32,
    /// The most that they send in a second, bytes; none where they are not held back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_limit_bytes: Option<NonZeroU64>,
    /// What is done where they don't suffice.
    pub on_non_convergence: NonConvergence,
    /// Whether the container may be slowed down for them.
    pub auto_converge: bool,
}

impl From<&PreCopyPolicy> for ResolvedPreCopy {
    fn from(policy: &PreCopyPolicy) -> Self {
        let PreCopyPolicy { max_rounds, on_non_convergence, auto_converge, .. } = *policy;
        let bandwidth_limit_bytes = policy.bandwidth_limit.as_deref().and_then(bytes);
        Self { max_rounds, bandwidth_limit_bytes, on_non_convergence, auto_converge }
    }
}

/// The bytes of a quantity as the schema allows it. Source: the suffixes of Kubernetes' `resource.Quantity`.
fn bytes(quantity: &str) -> Option<NonZeroU64> {
    let suffix = quantity.find(|letter: char| !letter.is_ascii_digit())?;
    let (number, suffix) = quantity.split_at(suffix);
    let unit = match suffix {
        "M" => 1_000_000,
        "Mi" => 1 << 20,
        "G" => 1_000_000_000,
        "Gi" => 1 << 30,
        _ => return None,
    };
    NonZeroU64::new(number.parse::<u64>().ok()?.checked_mul(unit)?)
}

impl Default for ResolvedPreCopy {
    /// That of a Migration from before there was such a policy.
    fn default() -> Self {
        Self::from(&PreCopyPolicy::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_has_the_default_that_the_schema_names() {
        let policy: PreCopyPolicy = serde_json::from_str("{}").expect("policy");
        assert_eq!(policy, PreCopyPolicy::default());
        assert_eq!((policy.max_rounds, policy.on_non_convergence), (30, NonConvergence::Proceed));
        assert!(!policy.auto_converge, "nobody is slowed down unasked");
        assert_eq!(ResolvedPreCopy::from(&policy).bandwidth_limit_bytes, None);
    }

    #[test]
    fn a_bandwidth_is_a_quantity_of_bytes() {
        let limit = |text: &str| bytes(text).map(NonZeroU64::get);
        assert_eq!([limit("64Mi"), limit("64M")], [Some(64 << 20), Some(64_000_000)]);
        assert_eq!([limit("2Gi"), limit("2G")], [Some(2 << 30), Some(2_000_000_000)]);
        // The API server refuses them.
        for wrong in ["", "64", "0Mi", "1.5Gi", "64Ki", "Mi", "-1Mi", "99999999999999999999Gi"] {
            assert_eq!(limit(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn what_is_asked_for_reaches_the_migration() {
        let text =
            r#"{"maxRounds": 7, "bandwidthLimit": "64Mi", "onNonConvergence": "WaitForQuiet", "autoConverge": true}"#;
        let policy: PreCopyPolicy = serde_json::from_str(text).expect("policy");
        let resolved = ResolvedPreCopy::from(&policy);
        assert_eq!((resolved.max_rounds, resolved.on_non_convergence), (7, NonConvergence::WaitForQuiet));
        assert!(resolved.auto_converge);
        assert_eq!(resolved.bandwidth_limit_bytes.map(NonZeroU64::get), Some(64 << 20));
    }
}
