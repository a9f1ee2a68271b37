//! What the crasher has noted: one line for each moment, see `e2e/probe/src/crasher.rs`. Pure but for the reading of a file.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// The moments of one container, nanoseconds of CLOCK_MONOTONIC.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stamps {
    /// When somebody set out to start it.
    pub begins: Vec<i64>,
    /// First instructions of its runs.
    pub starts: Vec<i64>,
    /// Ends of its runs.
    pub crashes: Vec<i64>,
}

impl Stamps {
    /// Reads what is noted in `path`; nothing where there is no such file yet.
    ///
    /// # Errors
    /// When it can't be read, or is not the crasher's.
    pub fn read(path: &Path) -> Result<Self> {
        match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            text => Self::parse(&text.with_context(|| format!("read {}", path.display()))?),
        }
    }

    fn parse(text: &str) -> Result<Self> {
        let mut stamps = Self::default();
        for line in text.lines() {
            let (word, at) = line.split_once(' ').with_context(|| format!("{line:?} is no stamp"))?;
            let at = at.parse().with_context(|| format!("{line:?} has no time"))?;
            match word {
                "begin" => stamps.begins.push(at),
                "start" => stamps.starts.push(at),
                "crash" => stamps.crashes.push(at),
                _ => bail!("{line:?} is no stamp"),
            }
        }
        Ok(stamps)
    }

    /// From each crash to the first instruction of the next run, milliseconds.
    ///
    /// # Errors
    /// When runs and crashes don't follow each other.
    pub fn restarts(&self) -> Result<Vec<f64>> {
        let next = self.starts.iter().skip(1);
        ensure!(self.crashes.len() == next.len(), "a crash was not followed by a run, or a run by no crash: {self:?}");
        self.crashes.iter().zip(next).map(|(crash, start)| millis(*crash, *start)).collect()
    }

    /// From the beginning to the first instruction of the first run, milliseconds.
    ///
    /// # Errors
    /// When one of them was not noted.
    pub fn start_up(&self) -> Result<f64> {
        let (begin, start) = (self.begins.first().context("no beginning")?, self.starts.first().context("no run")?);
        millis(*begin, *start)
    }
}

fn millis(from: i64, to: i64) -> Result<f64> {
    ensure!(to > from, "what comes after is from before: the clocks differ");
    Ok((to - from) as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamps(text: &str) -> Stamps {
        Stamps::parse(text).unwrap()
    }

    #[test]
    fn a_restart_is_from_a_crash_to_the_start_after_it() {
        let text = "start 1000000\ncrash 5000000\nstart 5500000\ncrash 9000000\nstart 12000000\n";
        assert_eq!(stamps(text).restarts().unwrap(), [0.5, 3.0]);
        assert_eq!(stamps("start 7\n").restarts().unwrap(), [0.0; 0]);
    }

    #[test]
    fn the_start_of_a_container_is_from_its_begin_to_its_first_run() {
        let text = "begin 1000000\nstart 81000000\ncrash 90000000\nstart 95000000\n";
        assert_eq!(stamps(text).start_up().unwrap(), 80.0);
        assert!(stamps("start 7\n").start_up().is_err() && stamps("begin 7\n").start_up().is_err());
    }

    #[test]
    fn what_is_missing_or_of_another_clock_is_no_figure() {
        for text in ["start 1\ncrash 2\n", "start 1\nstart 2\n", "start 1\ncrash 9\nstart 8\n"] {
            assert!(stamps(text).restarts().is_err(), "{text}");
        }
        for text in ["start", "start x", "other 1"] {
            assert!(Stamps::parse(text).is_err(), "{text}");
        }
    }
}
