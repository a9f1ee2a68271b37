//! Figures of restarts, made of what was seen. Pure.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::scenario::figures::Figure;

/// The case that the others of this machine are compared with.
pub const FLOOR: &str = "floor";
/// The case of restarts by Tideover.
pub const TIDEOVER: &str = "tideover";
/// The case of restarts by Tideover in pods.
pub const IN_A_POD: &str = "tideover, in a pod";
/// The case of restarts by kubelet.
pub const KUBELET: &str = "kubelet";
/// The case of starts with init.
pub const WITH_INIT: &str = "with init";
/// The case of starts without.
pub const WITHOUT_INIT: &str = "without init";

/// Every single measurement, milliseconds, by case, in the order in which they were made.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Samples {
    /// From a crash to the next run's first instruction.
    pub restart: BTreeMap<String, Vec<f64>>,
    /// From the call of the runtime to the container's first instruction.
    pub start_up: BTreeMap<String, Vec<f64>>,
}

/// Figures of all that was measured, ratios last.
///
/// # Errors
/// When nothing was measured of a case, or not as often as of what it is compared with.
pub fn figures(samples: &Samples) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (metric, cases) in [("restart", &samples.restart), ("start_up", &samples.start_up)] {
        for (case, values) in cases {
            figures.push(Figure::of(case, metric, "ms", values)?);
        }
    }
    if let Some(floor) = samples.restart.get(FLOOR) {
        let locals = samples.restart.iter().filter(|(case, _)| ![FLOOR, IN_A_POD, KUBELET].contains(&case.as_str()));
        for (case, values) in locals {
            figures.push(Figure::of(case, "restart_ratio", "1", &each_over_each(values, floor)?)?);
        }
    }
    if let (Some(kubelet), Some(tideover)) = (samples.restart.get(KUBELET), samples.restart.get(IN_A_POD)) {
        // One pod's restart by kubelet has no counterpart among several of another pod.
        let median = Figure::of(IN_A_POD, "restart", "ms", tideover)?.median;
        let ratios: Vec<f64> = kubelet.iter().map(|value| value / median).collect();
        figures.push(Figure::of(KUBELET, "over_tideover", "1", &ratios)?);
    }
    if let (Some(with), Some(without)) = (samples.start_up.get(WITH_INIT), samples.start_up.get(WITHOUT_INIT)) {
        figures.push(Figure::of(WITH_INIT, "start_up_ratio", "1", &each_over_each(with, without)?)?);
    }
    Ok(figures)
}

/// Each value over the one that was measured next to it.
fn each_over_each(values: &[f64], base: &[f64]) -> Result<Vec<f64>> {
    let same =
        (values.len() == base.len()).then(|| values.iter().zip(base).map(|(value, base)| value / base).collect());
    same.context("what is compared was not measured as often")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::bench::gate::{Limit, Outcome};
    use crate::scenario::figures;

    fn samples() -> Samples {
        let case = |name: &str, values: &[f64]| (name.to_owned(), values.to_vec());
        Samples {
            restart: BTreeMap::from([
                case(TIDEOVER, &[1.0, 3.0, 1.0]),
                case("s6", &[4.0, 4.0, 2.0]),
                case(FLOOR, &[1.0, 2.0, 0.5]),
                case(IN_A_POD, &[1.0, 2.0, 3.0, 2.0]),
                case(KUBELET, &[1000.0, 3000.0]),
            ]),
            start_up: BTreeMap::from([case(WITH_INIT, &[103.0, 51.0]), case(WITHOUT_INIT, &[100.0, 50.0])]),
        }
    }

    fn median(figures: &[Figure], case: &str, metric: &str) -> Option<f64> {
        figures.iter().find(|figure| figure.case == case && figure.metric == metric).map(|figure| figure.median)
    }

    #[test]
    fn each_restart_is_compared_with_the_floor_of_its_turn() {
        let figures = super::figures(&samples()).unwrap();
        assert_eq!(median(&figures, TIDEOVER, "restart"), Some(1.0));
        assert_eq!(
            median(&figures, TIDEOVER, "restart_ratio"),
            Some(1.5),
            "the median of the ratios, not of the times"
        );
        assert_eq!(median(&figures, "s6", "restart_ratio"), Some(4.0));
        for (case, metric) in [(FLOOR, "restart_ratio"), (IN_A_POD, "restart_ratio"), (KUBELET, "restart_ratio")] {
            assert_eq!(median(&figures, case, metric), None);
        }
    }

    #[test]
    fn kubelet_is_compared_with_tideover_in_a_pod() {
        assert_eq!(median(&super::figures(&samples()).unwrap(), KUBELET, "over_tideover"), Some(1000.0));
    }

    #[test]
    fn starts_are_compared_in_pairs() {
        assert_eq!(
            median(&super::figures(&samples()).unwrap(), WITH_INIT, "start_up_ratio"),
            Some((1.03 + 1.02) / 2.0)
        );
    }

    #[test]
    fn each_limit_is_of_a_ratio_that_is_measured() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench-restart-limits.json");
        let limits: Vec<Limit> = figures::load(&path).unwrap();
        let measured = super::figures(&samples()).unwrap();
        assert_eq!(limits.len(), 3);
        for limit in limits {
            assert!(matches!(limit.judge(&measured), Outcome::Pass(_)), "{limit:?}");
        }
    }

    #[test]
    fn what_has_no_counterpart_is_no_ratio() {
        let mut odd = samples();
        odd.restart.insert(FLOOR.to_owned(), vec![1.0]);
        assert!(super::figures(&odd).is_err());
        let local = Samples { restart: BTreeMap::from([(TIDEOVER.to_owned(), vec![1.0])]), ..Samples::default() };
        assert_eq!(super::figures(&local).unwrap().len(), 1);
    }
}
