//! Figures of a benchmark: least, median, most; printed and kept as JSON.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// What was measured `n` times.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What was measured: the size, the variant.
    pub case: String,
    /// Which property of it.
    pub metric: String,
    /// Of the three numbers.
    pub unit: String,
    /// Number of measurements.
    pub n: usize,
    /// The least.
    pub min: f64,
    /// The middle one; the mean of the middle two where `n` is even.
    pub median: f64,
    /// The most.
    pub max: f64,
}

impl Figure {
    /// Sums up `values`.
    ///
    /// # Errors
    /// When there are none.
    pub fn of(case: &str, metric: &str, unit: &str, values: &[f64]) -> Result<Self> {
        ensure!(!values.is_empty(), "nothing was measured for {case} {metric}");
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        let median = f64::midpoint(sorted[(n - 1) / 2], sorted[n / 2]);
        let (case, metric, unit) = (case.to_owned(), metric.to_owned(), unit.to_owned());
        Ok(Self { case, metric, unit, n, min: sorted[0], median, max: sorted[n - 1] })
    }
}

/// `target/bench` of the work tree, where benchmarks leave what they measured.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bench")
}

/// Writes `kept` to `<name>.json` in [`directory`] and returns the path.
///
/// # Errors
/// When it can't be written.
pub fn keep(name: &str, kept: &impl Serialize) -> Result<PathBuf> {
    let directory = directory();
    std::fs::create_dir_all(&directory).context("make target/bench")?;
    let path = directory.join(format!("{name}.json"));
    std::fs::write(&path, serde_json::to_vec_pretty(kept)?).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// Reads what was kept in `path`.
///
/// # Errors
/// When it is not there, or of another form.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("understand {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        let figure = Figure::of("c", "m", "ms", &[4.0, 1.0, 3.0, 2.0]).expect("values");
        assert_eq!((figure.min, figure.median, figure.max, figure.n), (1.0, 2.5, 4.0, 4));
    }

    #[test]
    fn nothing_measured_is_an_error() {
        assert!(Figure::of("c", "m", "ms", &[]).is_err());
    }
}
