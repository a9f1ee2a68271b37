//! How much cpu time a cgroup may take, as the kernel writes it.

use serde::{Deserialize, Serialize};

/// The least quota that the kernel takes, µs. Source: `min_cfs_quota_period` in kernel/sched/core.c, 1 ms.
const LEAST_QUOTA: u64 = 1_000;

/// How much cpu time a cgroup may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bandwidth {
    /// Cpu time of a period, µs, over all cpus; none where it is not limited.
    pub quota: Option<u64>,
    /// The period, µs.
    pub period: u64,
}

impl Bandwidth {
    /// Without a limit.
    pub fn lifted(self) -> Self {
        Self { quota: None, ..self }
    }

    /// `percent` of the cpu time that `used` cpus have, and never more than it is.
    pub fn share(self, used: f64, percent: u32) -> Self {
        let wish = used.max(0.0) * self.period as f64 * f64::from(percent) / 100.0;
        // A conversion of floats saturates.
        let quota = (wish as u64).min(self.quota.unwrap_or(u64::MAX)).max(LEAST_QUOTA);
        Self { quota: Some(quota), ..self }
    }

    /// From `cpu.cfs_quota_us` and `cpu.cfs_period_us`. Source: Documentation/scheduler/sched-bwc.rst.
    pub(super) fn parse_v1(quota: &str, period: &str) -> Option<Self> {
        let quota: i64 = quota.trim_end().parse().ok()?;
        Some(Self { quota: u64::try_from(quota).ok(), period: period.trim_end().parse().ok()? })
    }

    /// For `cpu.cfs_quota_us`.
    pub(super) fn quota_v1(self) -> String {
        self.quota.map_or_else(|| "-1".to_owned(), |quota| quota.to_string())
    }

    /// From `cpu.max`. Source: Documentation/admin-guide/cgroup-v2.rst.
    pub(super) fn parse_v2(text: &str) -> Option<Self> {
        let (quota, period) = text.trim_end().split_once(' ')?;
        let quota = if quota == "max" { None } else { Some(quota.parse().ok()?) };
        Some(Self { quota, period: period.parse().ok()? })
    }

    /// For `cpu.max`.
    pub(super) fn render_v2(self) -> String {
        let quota = self.quota.map_or_else(|| "max".to_owned(), |quota| quota.to_string());
        format!("{quota} {}", self.period)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TENTH: Bandwidth = Bandwidth { quota: Some(10_000), period: 100_000 };

    #[test]
    fn v1_says_minus_one_where_nothing_is_limited() {
        assert_eq!(Bandwidth::parse_v1("-1\n", "100000\n"), Some(TENTH.lifted()));
        assert_eq!(Bandwidth::parse_v1("10000\n", "100000\n"), Some(TENTH));
        assert_eq!((TENTH.quota_v1().as_str(), TENTH.lifted().quota_v1().as_str()), ("10000", "-1"));
        assert_eq!(Bandwidth::parse_v1("", "100000\n"), None);
    }

    #[test]
    fn v2_says_max_where_nothing_is_limited() {
        assert_eq!(Bandwidth::parse_v2("max 100000\n"), Some(TENTH.lifted()));
        assert_eq!(Bandwidth::parse_v2("10000 100000\n"), Some(TENTH));
        for wrong in ["", "max", "-1 100000", "10000 x"] {
            assert_eq!(Bandwidth::parse_v2(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_share_is_of_what_was_used_and_within_the_limit() {
        assert_eq!(TENTH.lifted().share(1.5, 50).quota, Some(75_000));
        assert_eq!(TENTH.share(1.5, 50).quota, Some(10_000), "never more than it is");
        assert_eq!(TENTH.share(0.0, 50).quota, Some(LEAST_QUOTA), "never less than the kernel takes");
    }

    proptest! {
        #[test]
        fn what_is_written_to_v2_is_read_back(quota in prop::option::of(0..u64::MAX), period in 0..u64::MAX) {
            let bandwidth = Bandwidth { quota, period };
            prop_assert_eq!(Bandwidth::parse_v2(&bandwidth.render_v2()), Some(bandwidth));
        }

        #[test]
        fn a_smaller_share_is_never_more(used in 0.0..64.0_f64, percent in 1..100_u32) {
            prop_assert!(TENTH.lifted().share(used, percent).quota <= TENTH.lifted().share(used, percent + 1).quota);
        }
    }
}
