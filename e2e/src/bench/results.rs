//! Figures, made of what was seen. Pure.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use super::case::{Case, Probe, Program};
use super::matrix::{CHANGED, PERCENTS, layer};
use super::measure::Seen;
use super::moved::Moved;
use super::throughput::{Around, Pace};
use crate::scenario::figures::Figure;

const MIB: f64 = (1 << 20) as f64;

/// Sizes whose freezes are compared, the larger over the smaller, MiB.
const GROWTH: (usize, usize) = (4096, 1024);

/// Figures of one case, as they come.
struct Sheet<'a> {
    case: &'a str,
    moves: &'a [Moved],
    figures: Vec<Figure>,
}

impl Sheet<'_> {
    fn add(&mut self, metric: &str, unit: &str, values: &[f64]) -> Result<()> {
        self.figures.push(Figure::of(self.case, metric, unit, values)?);
        Ok(())
    }

    /// One value of each move.
    fn each(&mut self, metric: &str, unit: &str, value: impl Fn(&Moved) -> f64) -> Result<()> {
        let values: Vec<f64> = self.moves.iter().map(value).collect();
        self.add(metric, unit, &values)
    }
}

/// The figures of all cases, and those that come of two of them.
///
/// # Errors
/// When nothing was measured of one.
pub fn figures(seen: &[(Case, Seen)]) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (case, seen) in seen {
        figures.extend(of_case(case, seen)?);
    }
    let gaps = |probe| {
        let program = Program::Probe(probe);
        seen.iter().find(|(case, _)| case.program == program).map(|(case, seen)| (case, gaps(&seen.moves)))
    };
    for percent in PERCENTS {
        let plain = |mib| gaps(Probe::plain(mib, percent));
        if let (Some((large, larger)), Some((_, smaller))) = (plain(GROWTH.0), plain(GROWTH.1)) {
            figures.push(Figure::of(&large.program.name(), "freeze_growth", "1", &over(&larger, &smaller)?)?);
        }
    }
    if let (Some((changed, more)), Some((_, less))) = (gaps(layer(CHANGED)), gaps(layer(0))) {
        figures.push(Figure::of(&changed.program.name(), "freeze_added", "ms", &above(&more, &less)?)?);
    }
    Ok(figures)
}

/// Which engines copied the memory of each case.
pub fn engines(seen: &[(Case, Seen)]) -> BTreeMap<String, BTreeSet<String>> {
    let engines = |seen: &Seen| seen.moves.iter().map(|moved| moved.told.engine.clone()).collect();
    seen.iter().map(|(case, seen)| (case.program.name(), engines(seen))).collect()
}

fn of_case(case: &Case, seen: &Seen) -> Result<Vec<Figure>> {
    let name = case.program.name();
    let mut sheet = Sheet { case: &name, moves: &seen.moves, figures: Vec::new() };
    // A client sees more than the freeze: it finds its way to another pod.
    let gap = if matches!(case.program, Program::Store { .. }) { "latency" } else { "freeze" };
    sheet.each(gap, "ms", |moved| moved.gap)?;
    sheet.each("gap_before", "ms", |moved| moved.before)?;
    if !seen.bare.is_empty() {
        sheet.add("freeze_bare", "ms", &seen.bare)?;
        sheet.add("freeze_ratio", "1", &over(&gaps(&seen.moves), &seen.bare)?)?;
    }
    let moved_bytes = |moved: &Moved| (moved.told.copied + moved.told.in_freeze) as f64;
    sheet.each("bytes_ratio", "1", |moved| moved_bytes(moved) / moved.resident as f64)?;
    sheet.each("freeze_bytes", "MiB", |moved| moved.told.in_freeze as f64 / MIB)?;
    sheet.each("resident", "MiB", |moved| moved.resident as f64 / MIB)?;
    sheet.each("rounds", "1", |moved| moved.told.rounds as f64)?;
    sheet.each("pre_copy", "s", |moved| moved.told.copying_seconds())?;
    sheet.each("attempts", "1", |moved| moved.told.attempt as f64)?;
    sheet.each("source_agent_cpu", "s", |moved| moved.source.cpu_seconds)?;
    sheet.each("source_agent_memory", "MiB", |moved| moved.source.own as f64 / MIB)?;
    sheet.each("source_agent_peak", "MiB", |moved| moved.source.peak as f64 / MIB)?;
    sheet.each("target_agent_cpu", "s", |moved| moved.target.cpu_seconds)?;
    sheet.each("target_agent_memory", "MiB", |moved| moved.target.own as f64 / MIB)?;
    sheet.each("target_agent_peak", "MiB", |moved| moved.target.peak as f64 / MIB)?;
    let around: Vec<Around> = seen.moves.iter().filter_map(|moved| moved.around).collect();
    if !around.is_empty() {
        let of = |value: fn(&Around) -> f64| around.iter().map(value).collect::<Vec<_>>();
        sheet.add("throughput_ratio", "1", &of(|around| around.during.rate / around.before.rate))?;
        sheet.add("throughput_after_ratio", "1", &of(|around| around.after.rate / around.before.rate))?;
        let paces = |time: fn(&Around) -> Pace| around.iter().map(time).collect::<Vec<_>>();
        let times = [
            ("before", paces(|around| around.before)),
            ("during", paces(|around| around.during)),
            ("after", paces(|around| around.after)),
        ];
        for (time, paces) in times {
            let of = |value: fn(&Pace) -> f64| paces.iter().map(value).collect::<Vec<_>>();
            sheet.add(&format!("rate_{time}"), "1/s", &of(|pace| pace.rate))?;
            // Other programs don't tell how long anybody waited.
            if matches!(case.program, Program::Store { .. }) {
                sheet.add(&format!("latency_{time}"), "ms", &of(|pace| pace.latency))?;
                sheet.add(&format!("slowest_{time}"), "ms", &of(|pace| pace.slowest))?;
            }
        }
    }
    for phase in phases(&seen.moves) {
        let millis =
            |moved: &Moved| moved.told.phases.iter().find(|(name, _)| *name == phase).map_or(0.0, |(_, ms)| *ms);
        sheet.each(&phase, "ms", millis)?;
    }
    Ok(sheet.figures)
}

/// Names of the phases that any of the moves went through, in the order in which they come first.
fn phases(moves: &[Moved]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for (name, _) in moves.iter().flat_map(|moved| &moved.told.phases) {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}

fn gaps(moves: &[Moved]) -> Vec<f64> {
    moves.iter().map(|moved| moved.gap).collect()
}

/// Each of `values` less the median of `base`.
fn above(values: &[f64], base: &[f64]) -> Result<Vec<f64>> {
    let median = Figure::of("", "", "", base)?.median;
    Ok(values.iter().map(|value| value - median).collect())
}

/// Each of `values` over the median of `base`: the two need not be of one number.
fn over(values: &[f64], base: &[f64]) -> Result<Vec<f64>> {
    let median = Figure::of("", "", "", base)?.median;
    Ok(values.iter().map(|value| value / median).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::matrix;
    use crate::bench::resources::Used;
    use crate::bench::status::{Span, Told};

    fn moved(gap: f64, phase: &str) -> Moved {
        let used = Used { cpu_seconds: 0.5, own: 20 << 20, peak: 90 << 20 };
        let told = Told {
            phases: vec![("phase Preparing".to_owned(), 100.0), (phase.to_owned(), 10.0)],
            span: Span { created: 0, go: 3_000_000_000, copying: 1_000_000_000, freezing: 3_000_000_000 },
            engine: "WriteProtect".to_owned(),
            attempt: 1,
            target: "worker-2".to_owned(),
            rounds: 4,
            copied: 100 << 20,
            in_freeze: 10 << 20,
        };
        let pace = |rate: f64| Pace { rate, latency: 1.5, slowest: 9.0 };
        let around = Some(Around { before: pace(100.0), during: pace(95.0), after: pace(50.0) });
        Moved { gap, before: 3.0, resident: 100 << 20, told, source: used, target: used, around }
    }

    fn seen(gaps: &[f64], bare: &[f64]) -> Seen {
        Seen { moves: gaps.iter().map(|gap| moved(*gap, "freeze: dump")).collect(), bare: bare.to_vec() }
    }

    fn case(mib: usize, percent: usize) -> Case {
        Case { program: Program::Probe(Probe::plain(mib, percent)), runs: 1, bare_runs: 1 }
    }

    fn median(figures: &[Figure], case: &str, metric: &str) -> Option<f64> {
        figures.iter().find(|figure| figure.case == case && figure.metric == metric).map(|figure| figure.median)
    }

    #[test]
    fn ratios_are_over_the_median_of_the_other_side() {
        let figures = figures(&[(case(64, 1), seen(&[10.0, 20.0, 30.0], &[100.0, 400.0]))]).expect("figures");
        let of = |metric| median(&figures, "64 MiB, 1 %/s", metric);
        assert_eq!(of("freeze"), Some(20.0));
        assert_eq!(of("freeze_ratio"), Some(20.0 / 250.0));
        assert_eq!(of("bytes_ratio"), Some(1.1));
        assert_eq!(of("throughput_ratio"), Some(0.95));
        assert_eq!(of("pre_copy"), Some(2.0));
        assert_eq!(of("source_agent_memory"), Some(20.0));
        assert_eq!(of("freeze_growth"), None);
    }

    #[test]
    fn growth_compares_two_sizes_at_one_rate() {
        let all = [(case(1024, 1), seen(&[40.0], &[])), (case(4096, 1), seen(&[100.0, 80.0], &[]))];
        let figures = figures(&all).expect("figures");
        assert_eq!(median(&figures, "4096 MiB, 1 %/s", "freeze_growth"), Some(2.25));
        assert_eq!(median(&figures, "4096 MiB, 0 %/s", "freeze_growth"), None);
        assert_eq!(median(&figures, "1024 MiB, 1 %/s", "freeze_ratio"), None, "nothing was moved by bare runc");
    }

    #[test]
    fn what_files_add_is_above_the_same_layer_without_any_that_change() {
        let case = |changed| Case { program: Program::Probe(layer(changed)), runs: 1, bare_runs: 0 };
        let all = [(case(0), seen(&[30.0, 20.0, 25.0], &[])), (case(CHANGED), seen(&[35.0, 45.0], &[]))];
        let figures = figures(&all).expect("figures");
        assert_eq!(median(&figures, "layer of 2048 MiB, 1000 files changed", "freeze_added"), Some(15.0));
        assert_eq!(median(&figures, "layer of 2048 MiB, 0 files changed", "freeze_added"), None);
    }

    #[test]
    fn a_phase_that_one_move_alone_went_through_took_the_others_no_time() {
        let moves = vec![moved(1.0, "freeze: dump"), moved(1.0, "phase BackingOff"), moved(1.0, "freeze: dump")];
        let figures = figures(&[(case(1, 0), Seen { moves, bare: Vec::new() })]).expect("figures");
        assert_eq!(median(&figures, "1 MiB, 0 %/s", "phase BackingOff"), Some(0.0));
        assert_eq!(median(&figures, "1 MiB, 0 %/s", "freeze: dump"), Some(10.0));
    }

    #[test]
    fn only_of_a_store_it_is_told_how_long_requests_took() {
        let store = Case { program: Program::Store { mib: 1024 }, runs: 1, bare_runs: 0 };
        let all = [(store, seen(&[70.0], &[])), (case(64, 1), seen(&[20.0], &[]))];
        let figures = figures(&all).expect("figures");
        assert_eq!(median(&figures, "redis, 1024 MiB", "latency_during"), Some(1.5));
        assert_eq!(median(&figures, "redis, 1024 MiB", "slowest_after"), Some(9.0));
        assert_eq!(median(&figures, "64 MiB, 1 %/s", "latency_during"), None);
    }

    #[test]
    fn no_figure_of_a_case_comes_twice() {
        let all: Vec<_> = matrix::all(2).into_iter().map(|case| (case, seen(&[1.0, 2.0], &[9.0]))).collect();
        let figures = figures(&all).expect("figures");
        let names: BTreeSet<_> = figures.iter().map(|figure| (&figure.case, &figure.metric)).collect();
        assert_eq!(names.len(), figures.len());
    }
}
