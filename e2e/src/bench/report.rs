//! `docs/benchmarks.md`, made of figures that were kept. Pure.

use super::case::{Beside, Kind, Probe, Program};
use super::goals::GOALS;
use super::machine::Run;
use super::markdown::{NOTHING, median, number, range, table};
use super::matrix::{ALONE, CHANGED, FORKED, PERCENTS, SIZES, crowds, layer};
use super::transfer::RATIO;
use crate::scenario::figures::Figure;

/// Percent of the memory in a second of the cases that are looked at closely.
const CLOSELY: usize = 1;
/// Metrics that are parts of a move begin with one of these.
const PARTS: [&str; 4] = ["phase ", "freeze: ", "freeze, ", "target: "];

/// What a goal's row ends with.
const REACHED: &str = "yes";
const MISSED: &str = "**no**";
const UNMEASURED: &str = "not measured";

/// Figures to look things up in.
struct Figures<'a>(&'a [Figure]);

impl<'a> Figures<'a> {
    fn get(&self, case: &str, metric: &str) -> Option<&'a Figure> {
        self.0.iter().find(|figure| figure.case == case && figure.metric == metric)
    }

    /// Those of `all` that were measured.
    fn measured(&self, all: impl IntoIterator<Item = Program>) -> Vec<String> {
        let names = all.into_iter().map(|program| program.name());
        names.filter(|name| self.0.iter().any(|figure| figure.case == *name)).collect()
    }
}

/// The document; the picture is in the file `picture` beside it.
pub fn document(figures: &[Figure], run: &Run, picture: &str) -> String {
    let figures = Figures(figures);
    let sections = [
        ("", introduction(run)),
        ("What must be reached", goals(&figures)),
        ("The freeze", freeze(&figures, picture)),
        ("Where the time goes", parts(&figures)),
        ("What crosses", crossing(&figures, run)),
        ("The transfer alone", transfer(&figures)),
        ("What the agents use", agents(&figures)),
        ("What the application gets done", throughput(&figures)),
        ("How long requests to the store take", latency(&figures)),
        ("What each process, thread, VMA and descriptor adds", additions(&figures)),
        ("What files add", layers(&figures)),
        ("What failed", failures(run)),
    ];
    let text = sections.into_iter().filter(|(_, body)| !body.is_empty()).map(|(title, body)| match title {
        "" => body,
        _ => format!("\n## {title}\n\n{body}"),
    });
    text.collect()
}

fn introduction(run: &Run) -> String {
    let machine: Vec<_> = run.machine.iter().map(|(name, value)| vec![name.clone(), value.clone()]).collect();
    format!(
        "\
# Benchmarks

Measured at commit {} by

```
{}
```

and written by `bench docs` from `benchmarks.json` beside it, which has what was measured; do not edit. All nodes, their control plane and
the application share the one machine below: what is said of throughput and processor time is a worst case.

{}",
        run.commit,
        run.command,
        table(&["machine", ""], &machine)
    )
}

fn goals(figures: &Figures<'_>) -> String {
    let row = |goal: &super::goals::Goal| {
        let found = figures.get(goal.case, goal.metric).map(|figure| goal.of.figure(figure));
        let verdict = found.map_or(UNMEASURED, |found| if goal.bound.holds(found) { REACHED } else { MISSED });
        let measured = found.map_or(NOTHING.to_owned(), number);
        vec![goal.text.to_owned(), goal.bound.text(), measured, verdict.to_owned()]
    };
    let rows: Vec<_> = GOALS.iter().map(row).collect();
    let with = |verdict: &str| rows.iter().filter(|cells| cells[3] == verdict).count();
    format!(
        "Goals: {}. Reached: {}. Not reached: {}. Not measured: {}.\n\n{}",
        rows.len(),
        with(REACHED),
        with(MISSED),
        with(UNMEASURED),
        table(&["figure", "must be", "measured", "reached"], &rows)
    )
}

fn freeze(figures: &Figures<'_>, picture: &str) -> String {
    let rows: Vec<_> = figures
        .measured(plain())
        .iter()
        .map(|case| {
            let (ours, bare) = (figures.get(case, "freeze"), figures.get(case, "freeze_bare"));
            let n = |figure: Option<&Figure>| figure.map_or(NOTHING.to_owned(), |figure| figure.n.to_string());
            let before = figures.get(case, "gap_before");
            let ratio = median(figures.get(case, "freeze_ratio"));
            vec![case.clone(), n(ours), range(ours), n(bare), range(bare), ratio, range(before)]
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    format!(
        "\
The longest gap that the program's own 1 ms ticker saw from the go for the freeze on, in milliseconds: least / median / most of n moves.
Before the go is the longest while memory was copied, when the program shares this machine with all there is. The program
holds so much memory and writes so much of it in a second; forks are idle processes that share all of it. Its pod asks for one
processor, so that its cgroup has the 1024 shares that bare runc's has. Bare runc is
`runc checkpoint` and `runc restore` of the same program on one node. The two take turns, each stands still while the other is moved,
and before each turn disks have taken what was written before (`sync`); bare runc is moved fewer times where that takes ten seconds each.

![Freeze against resident memory]({picture})

{}",
        table(&["case", "n", "Tideover, ms", "n", "bare runc, ms", "Tideover / bare", "before the go, ms"], &rows)
    )
}

fn parts(figures: &Figures<'_>) -> String {
    let cases = figures.measured(SIZES.map(|mib| Program::Probe(Probe::plain(mib, CLOSELY))));
    let is_part = |metric: &str| PARTS.iter().any(|part| metric.starts_with(part));
    let mut names: Vec<&str> = Vec::new();
    for figure in figures.0.iter().filter(|figure| cases.contains(&figure.case) && is_part(&figure.metric)) {
        if !names.contains(&figure.metric.as_str()) {
            names.push(&figure.metric);
        }
    }
    let cells = |name: &str| cases.iter().map(|case| median(figures.get(case, name))).collect::<Vec<_>>();
    let rows: Vec<_> = names.into_iter().map(|name| [vec![name.to_owned()], cells(name)].concat()).collect();
    if rows.is_empty() {
        return String::new();
    }
    let header: Vec<&str> = std::iter::once("median, ms").chain(cases.iter().map(String::as_str)).collect();
    format!(
        "\
Phases are by the operator's clock, parts of the freeze by the source's, parts of the restore by the target's. Only what
is inside the freeze stops the application.

{}",
        table(&header, &rows)
    )
}

fn crossing(figures: &Figures<'_>, run: &Run) -> String {
    let rows: Vec<_> = figures
        .measured(plain())
        .iter()
        .map(|case| {
            let of = |metric| median(figures.get(case, metric));
            let engines = run.engines.get(case).map(|names| names.iter().cloned().collect::<Vec<_>>().join(", "));
            vec![
                case.clone(),
                engines.unwrap_or_else(|| NOTHING.to_owned()),
                of("resident"),
                of("bytes_ratio"),
                of("freeze_bytes"),
                of("rounds"),
                of("pre_copy"),
            ]
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    let header =
        ["case", "engine", "resident, MiB", "bytes moved / resident", "in the freeze, MiB", "rounds", "pre-copy, s"];
    format!(
        "\
Medians. Resident is what the processes have in memory and in no file, each page once. Bytes moved are those of all
rounds and of the freeze. Pre-copy is the time in which rounds go: it ends with the freeze, so the handover is in it.

{}",
        table(&header, &rows)
    )
}

fn transfer(figures: &Figures<'_>) -> String {
    let row = |figure: &Figure| {
        let of = |metric| range(figures.get(&figure.case, metric));
        let n = figure.n.to_string();
        vec![figure.case.clone(), n, of("transfer_rate"), of("transfer_processor"), of(RATIO)]
    };
    let rows: Vec<_> = figures.0.iter().filter(|figure| figure.metric == "transfer_rate").map(row).collect();
    if rows.is_empty() {
        return String::new();
    }
    format!(
        "\
256 MiB that can't be compressed, between the network namespaces of two nodes: `plain` from memory through the TLS connection of two
agents into a file and nothing more, `memory` as the pages of a process, `image` as a file; `dropped` is `plain` without the file.
Least / median / most of n turns; the ratio is that of one turn.

{}",
        table(&["case", "n", "MiB/s", "processor, ms", "over plain"], &rows)
    )
}

fn agents(figures: &Figures<'_>) -> String {
    let cases = figures.measured(SIZES.map(|mib| Program::Probe(Probe::plain(mib, CLOSELY))));
    let rows = cases.iter().flat_map(|case| {
        ["source", "target"].map(|side| {
            let of = |what: &str| range(figures.get(case, &format!("{side}_agent_{what}")));
            vec![case.clone(), side.to_owned(), of("cpu"), of("memory"), of("peak")]
        })
    });
    let rows: Vec<_> = rows.collect();
    if rows.is_empty() {
        return String::new();
    }
    format!(
        "\
For one move, until the last page is in its process: least / median / most. Memory of its own is the most that the
agent's cgroup had at once without pages of files; the other column has those too, so it shows what was staged.

{}",
        table(&["case", "agent", "processor, s", "memory of its own, MiB", "with pages of files, MiB"], &rows)
    )
}

fn throughput(figures: &Figures<'_>) -> String {
    let cases = figures.0.iter().filter(|figure| figure.metric == "rate_before").map(|figure| figure.case.as_str());
    let row = |case: &str| {
        let of = |metric| median(figures.get(case, metric));
        let gap = figures.get(case, "latency").or_else(|| figures.get(case, "freeze"));
        vec![
            case.to_owned(),
            of("rate_before"),
            of("rate_during"),
            of("rate_after"),
            of("throughput_ratio"),
            of("throughput_after_ratio"),
            range(gap),
        ]
    };
    let rows: Vec<_> = cases.map(row).collect();
    if rows.is_empty() {
        return String::new();
    }
    let header = ["case", "before, 1/s", "during", "after", "during / before", "after / before", "longest gap, ms"];
    format!(
        "\
Operations or requests a second: in the 3 s before the Migration was created, while memory was copied, and in the first
3 s after the freeze; medians. The longest gap is the application's own from the go on, and of redis the longest latency that its
client saw, which has to find the Service's way to the other pod too: least / median / most.

{}",
        table(&header, &rows)
    )
}

fn latency(figures: &Figures<'_>) -> String {
    let cases: Vec<_> = figures.0.iter().filter(|figure| figure.metric == "latency_before").collect();
    let times = [("before the move", "before"), ("while memory is copied", "during"), ("in the 3 s after", "after")];
    let rows = cases.iter().flat_map(|figure| {
        times.map(|(when, time)| {
            let of = |metric: &str| range(figures.get(&figure.case, &format!("{metric}_{time}")));
            vec![figure.case.clone(), when.to_owned(), of("latency"), of("slowest")]
        })
    });
    let rows: Vec<_> = rows.collect();
    if rows.is_empty() {
        return String::new();
    }
    format!(
        "\
By the client's clock, on another node: the slowest request of each 10 ms, of those the middle one and the slowest in each time; least /
median / most of the moves. The request that waits for the freeze is in none of these times: it is the longest gap above.

{}",
        table(&["case", "time", "usual, ms", "slowest, ms"], &rows)
    )
}

fn additions(figures: &Figures<'_>) -> String {
    let alone = Program::Probe(ALONE).name();
    let metrics = ["freeze", "freeze: dump", "freeze: restore", "freeze_bare"];
    let rows: Vec<_> = crowds()
        .into_iter()
        .filter_map(|(kind, count)| {
            let case = Program::Probe(Probe { beside: Beside::Crowd(kind, count), ..ALONE }).name();
            figures.get(&case, "freeze")?;
            let each = metrics.map(|metric| {
                let (with, without) = (figures.get(&case, metric), figures.get(&alone, metric));
                let added = with.zip(without).map(|(with, without)| addition(with, without, kind, count));
                added.map_or(NOTHING.to_owned(), number)
            });
            let whole = median(figures.get(&case, "freeze"));
            Some([vec![case, whole], each.to_vec()].concat())
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    let header = ["case", "freeze, ms", "each adds", "in the dump", "in the restore", "under bare runc"];
    format!(
        "\
Medians of a program of 1 MiB that has so many of a kind; what each of them adds to the same program without them is in
microseconds. A thread brings four mappings with it, its stacks and their guards; a process all that a process has.

{}",
        table(&header, &rows)
    )
}

fn layers(figures: &Figures<'_>) -> String {
    let rows: Vec<_> = figures
        .measured([0, CHANGED].map(layer).map(Program::Probe))
        .iter()
        .map(|case| {
            let medians = ["freeze_bytes", "target: stage", "pre_copy"].map(|metric| median(figures.get(case, metric)));
            let (freeze, added) = (range(figures.get(case, "freeze")), range(figures.get(case, "freeze_added")));
            [vec![case.clone(), freeze, added], medians.to_vec()].concat()
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    let header = ["case", "freeze, ms", "added, ms", "in the freeze, MiB", "left to put in place, ms", "pre-copy, s"];
    format!(
        "\
A program of 1 MiB with files of 8 MiB in its writable layer, which stay as they are, and others of 4 KiB, each of which it writes anew
twenty times a second: nearly all of them have changed since the last round. It ends itself where one does not have what it
wrote last. Added is what is above the median of the same without any that change. Ranges are least / median / most, all else medians.

{}",
        table(&header, &rows)
    )
}

fn failures(run: &Run) -> String {
    if run.failed.is_empty() {
        return String::new();
    }
    let rows: Vec<_> = run.failed.iter().map(|(case, why)| vec![case.clone(), why.replace('|', "/")]).collect();
    table(&["case", "why there are no figures"], &rows)
}

/// What each of the kind adds, microseconds.
fn addition(with: &Figure, without: &Figure, kind: Kind, count: usize) -> f64 {
    (with.median - without.median) * 1e3 / (count - kind.without()) as f64
}

/// The cases of the matrix of sizes and rates, and that with memory in common.
fn plain() -> impl Iterator<Item = Program> {
    let sizes = SIZES.into_iter().flat_map(|mib| PERCENTS.map(|percent| Probe::plain(mib, percent)));
    sizes.chain([FORKED]).map(Program::Probe)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn run() -> Run {
        let engines = BTreeSet::from(["WriteProtect".to_owned()]);
        Run {
            command: "bench measure".to_owned(),
            commit: "abc123+".to_owned(),
            machine: vec![("cores".to_owned(), "2".to_owned())],
            engines: BTreeMap::from([("64 MiB, 1 %/s".to_owned(), engines)]),
            failed: BTreeMap::from([("1000 pipe ends".to_owned(), "too many | pipes".to_owned())]),
        }
    }

    fn figure(case: &str, metric: &str, values: &[f64]) -> Figure {
        Figure::of(case, metric, "ms", values).expect("values")
    }

    fn figures() -> Vec<Figure> {
        vec![
            figure("64 MiB, 1 %/s", "freeze", &[24.0, 25.0, 29.0]),
            figure("64 MiB, 1 %/s", "freeze_bare", &[330.0]),
            figure("64 MiB, 1 %/s", "freeze_ratio", &[0.076]),
            figure("64 MiB, 1 %/s", "freeze: dump", &[7.0]),
            figure("64 MiB, 1 %/s", "target: restore", &[8.5]),
            figure("64 MiB, 1 %/s", "gap_before", &[4.0, 9.0, 3.0]),
            figure("64 MiB, 1 %/s", "bytes_ratio", &[1.04]),
            figure("64 MiB, 1 %/s", "source_agent_memory", &[21.0]),
            figure("1 MiB, 0 %/s", "freeze", &[20.0]),
            figure("1 MiB, 0 %/s", "freeze: dump", &[5.0]),
            figure("50 processes", "freeze", &[118.0]),
            figure("50 processes", "freeze: dump", &[54.0]),
            figure("1000 eventfds", "freeze", &[25.0]),
            figure("redis, 1024 MiB", "latency", &[60.0, 70.0, 80.0]),
            figure("redis, 1024 MiB", "rate_before", &[5000.0]),
            figure("redis, 1024 MiB", "throughput_ratio", &[0.97]),
        ]
    }

    fn lines_with<'a>(text: &'a str, begin: &str) -> Vec<&'a str> {
        text.lines().filter(|line| line.starts_with(begin)).collect()
    }

    #[test]
    fn a_case_is_told_with_both_sides_and_their_numbers() {
        let text = document(&figures(), &run(), "benchmarks.svg");
        let rows = lines_with(&text, "| 64 MiB, 1 %/s |");
        assert_eq!(
            rows[0],
            "| 64 MiB, 1 %/s | 3 | 24.0 / 25.0 / 29.0 | 1 | 330 / 330 / 330 | 0.076 | 3.00 / 4.00 / 9.00 |"
        );
        assert_eq!(rows[1], "| 64 MiB, 1 %/s | WriteProtect | - | 1.04 | - | - | - |");
        assert!(text.contains("abc123+") && text.contains("(benchmarks.svg)"));
        assert_eq!(lines_with(&text, "| freeze: dump |"), ["| freeze: dump | 7.00 |"]);
    }

    #[test]
    fn a_goal_is_reached_or_not_or_was_not_measured() {
        let text = goals(&Figures(&figures()));
        assert!(text.contains("| freeze, 64 MiB, 1 %/s: median, ms | <= 30 | 25.0 | yes |"), "{text}");
        assert!(text.contains("| freeze, 1 GiB, 1 %/s: median, ms | <= 60 | - | not measured |"), "{text}");
        let slow = [figure("64 MiB, 1 %/s", "freeze", &[31.0])];
        assert!(goals(&Figures(&slow)).contains("| <= 30 | 31.0 | **no** |"));
    }

    #[test]
    fn it_is_said_how_many_goals_are_not_reached() {
        let of = |metric, value| figure("64 MiB, 1 %/s", metric, &[value]);
        let figures = [of("freeze", 31.0), of("freeze_ratio", 0.09), of("bytes_ratio", 1.05)];
        let text = goals(&Figures(&figures));
        assert!(text.starts_with("Goals: 14. Reached: 2. Not reached: 1. Not measured: 11.\n"), "{text}");
    }

    #[test]
    fn files_are_told_beside_the_same_layer_without_any_that_change() {
        let of = |changed, metric, value| figure(&Program::Probe(layer(changed)).name(), metric, &[value]);
        let figures = [of(0, "freeze", 30.0), of(CHANGED, "freeze", 44.0), of(CHANGED, "freeze_added", 14.0)];
        let text = layers(&Figures(&figures));
        assert!(text.contains("| layer of 2048 MiB, 0 files changed | 30.0 / 30.0 / 30.0 | - |"), "{text}");
        assert!(text.contains("1000 files changed | 44.0 / 44.0 / 44.0 | 14.0 / 14.0 / 14.0 |"), "{text}");
        assert_eq!(layers(&Figures(&[])), "");
    }

    #[test]
    fn the_transfer_is_told_by_what_it_carries() {
        let of = |case, metric, value| figure(case, metric, &[value]);
        let figures = [
            of("256-plain", "transfer_rate", 900.0),
            of("256-memory", "transfer_rate", 720.0),
            of("256-memory", "transfer_ratio", 0.8),
            of("transfer", "transfer_ratio", 0.8),
        ];
        let text = transfer(&Figures(&figures));
        assert_eq!(lines_with(&text, "| 256-").len(), 2, "{text}");
        assert!(text.contains("| 256-memory | 1 | 720 / 720 / 720 | - | 0.800 / 0.800 / 0.800 |"), "{text}");
    }

    #[test]
    fn how_long_requests_took_is_told_before_the_move_during_it_and_after() {
        let of = |metric, value| figure("redis, 1024 MiB", metric, &[value]);
        let text =
            latency(&Figures(&[of("latency_before", 0.5), of("latency_during", 0.75), of("slowest_after", 12.0)]));
        assert!(text.contains("| redis, 1024 MiB | before the move | 0.500 / 0.500 / 0.500 | - |"), "{text}");
        assert!(text.contains("| while memory is copied | 0.750 / 0.750 / 0.750 | - |"), "{text}");
        assert!(text.contains("| in the 3 s after | - | 12.0 / 12.0 / 12.0 |"), "{text}");
    }

    #[test]
    fn what_each_adds_is_told_beside_the_same_program_without() {
        let text = additions(&Figures(&figures()));
        assert!(text.contains("| 50 processes | 118 | 2000 | 1000 | - | - |"), "{text}");
        assert!(text.contains("| 1000 eventfds | 25.0 | 5.00 | - | - | - |"), "{text}");
    }

    #[test]
    fn what_failed_is_told() {
        let text = document(&figures(), &run(), "p.svg");
        assert!(text.contains("## What failed") && text.contains("| 1000 pipe ends | too many / pipes |"), "{text}");
        let fine = Run { failed: BTreeMap::new(), ..run() };
        assert!(!document(&figures(), &fine, "p.svg").contains("## What failed"));
    }

    #[test]
    fn a_section_without_figures_is_left_out() {
        let text = document(&figures()[..1], &run(), "p.svg");
        assert!(text.contains("## The freeze") && !text.contains("## What each") && !text.contains("## What the appl"));
    }

    #[test]
    fn what_a_client_of_the_store_saw_is_told() {
        let text = throughput(&Figures(&figures()));
        assert!(text.contains("| redis, 1024 MiB | 5000 | - | - | 0.970 | - | 60.0 / 70.0 / 80.0 |"), "{text}");
    }
}
