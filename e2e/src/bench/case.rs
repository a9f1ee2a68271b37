//! One thing to measure: a program, and how many times it is moved.

use std::net::SocketAddr;
use std::time::Duration;

/// Pages of a mebibyte.
const PAGES_PER_MIB: usize = 256;

/// Memory of a PostgreSQL that has nothing to do, and of each of its backends, MiB: a guess, for [`Case::estimate`] only.
const SERVER_MIB: usize = 40;
const BACKEND_MIB: usize = 2;

/// One line of the benchmark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// What is moved.
    pub program: Program,
    /// Moves through Tideover.
    pub runs: usize,
    /// Moves by bare runc.
    pub bare_runs: usize,
}

/// What is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// The probe's ticker, with what is beside it.
    Probe(Probe),
    /// redis-server under the load of a client on another pod. It is the client that sees the gap.
    Store {
        /// What its values add up to, MiB.
        mib: usize,
    },
    /// PostgreSQL, with a client in the same container whose answers are the ticks.
    Database {
        /// Sessions, and so backends, that do nothing.
        idle: usize,
    },
}

/// The probe's ticker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Resident memory, MiB.
    pub mib: usize,
    /// Of the memory, what is written in a second, percent.
    pub percent: usize,
    /// What it does besides.
    pub beside: Beside,
}

/// What a ticker does or has besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    /// Nothing.
    Nothing,
    /// Operations on its memory, so many a second; 0 means as many as it can.
    Work(u64),
    /// Processes that are forks of it and share all of its memory, copy-on-write, as a server's backends do.
    Forks(usize),
    /// So many of a kind.
    Crowd(Kind, usize),
    /// Files in the container's writable layer.
    Layer {
        /// What they have together, MiB.
        mib: usize,
        /// Further ones, of 4 KiB, all of which are written between the last round and the freeze.
        changed: usize,
    },
}

/// What a process may have many of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Processes.
    Processes,
    /// Threads of one process.
    Threads,
    /// Mappings.
    Vmas,
    /// Open regular files.
    Files,
    /// Eventfds.
    Eventfds,
    /// Unix sockets, connected to each other.
    Sockets,
    /// Ends of pipes.
    Pipes,
    /// Established TCP connections over loopback, with both of their ends.
    Connections,
}

impl Kind {
    /// As people say it, in the plural.
    pub fn name(self) -> &'static str {
        match self {
            Self::Processes => "processes",
            Self::Threads => "threads",
            Self::Vmas => "VMAs",
            Self::Files => "files",
            Self::Eventfds => "eventfds",
            Self::Sockets => "Unix sockets",
            Self::Pipes => "pipe ends",
            Self::Connections => "TCP connections",
        }
    }

    /// As the probe's flag says it.
    fn flag(self) -> &'static str {
        match self {
            Self::Processes => "processes",
            Self::Threads => "threads",
            Self::Vmas => "vmas",
            Self::Files => "files",
            Self::Eventfds => "eventfds",
            Self::Sockets => "sockets",
            Self::Pipes => "pipes",
            Self::Connections => "connections",
        }
    }

    /// How many of it the program without any more has.
    pub fn without(self) -> usize {
        match self {
            Self::Processes | Self::Threads => 1,
            Self::Vmas | Self::Files | Self::Eventfds | Self::Sockets | Self::Pipes | Self::Connections => 0,
        }
    }
}

impl Probe {
    /// A ticker that holds `mib` MiB and writes `percent` of it in a second.
    pub fn plain(mib: usize, percent: usize) -> Self {
        Self { mib, percent, beside: Beside::Nothing }
    }

    /// The probe's arguments.
    pub fn args(&self, collector: SocketAddr) -> Vec<String> {
        // At least one page, where it is to write at all.
        let dirty = (self.mib * PAGES_PER_MIB * self.percent).div_ceil(100);
        let mut args = match self.beside {
            Beside::Crowd(kind, count) => vec!["crowd".to_owned(), format!("--{}={count}", kind.flag())],
            Beside::Forks(count) => vec!["crowd".to_owned(), format!("--forks={count}")],
            Beside::Nothing => vec!["tick".to_owned()],
            Beside::Work(per_second) => vec!["tick".to_owned(), format!("--work={per_second}")],
            Beside::Layer { mib, changed } => vec![
                "tick".to_owned(),
                "--layer=/tmp/layer".to_owned(),
                format!("--layer-mib={mib}"),
                format!("--changed-files={changed}"),
            ],
        };
        args.push(format!("--mib={}", self.mib));
        args.push(format!("--dirty-rate={dirty}"));
        args.push(format!("--report={collector}"));
        args.push("--log=/tmp/ticks".to_owned());
        args
    }
}

impl Program {
    /// By which it is known in figures and selected.
    pub fn name(&self) -> String {
        match *self {
            Self::Store { mib } => format!("redis, {mib} MiB"),
            Self::Database { idle } => format!("postgres, {idle} idle backends"),
            Self::Probe(Probe { mib, percent, beside }) => match beside {
                Beside::Nothing => format!("{mib} MiB, {percent} %/s"),
                Beside::Work(0) => format!("{mib} MiB, 1 % hot, full speed"),
                Beside::Work(per_second) => format!("{mib} MiB, 1 % hot, {per_second} operations/s"),
                Beside::Forks(count) => format!("{mib} MiB, {count} forks"),
                Beside::Crowd(kind, count) => format!("{count} {}", kind.name()),
                Beside::Layer { mib, changed } => format!("layer of {mib} MiB, {changed} files changed"),
            },
        }
    }

    /// Resident memory, about, MiB.
    pub fn mib(&self) -> usize {
        match *self {
            Self::Probe(Probe { mib, beside: Beside::Layer { mib: layer, .. }, .. }) => mib + layer,
            Self::Store { mib } | Self::Probe(Probe { mib, .. }) => mib,
            Self::Database { idle } => SERVER_MIB + idle * BACKEND_MIB,
        }
    }

    /// Whether it counts what it does.
    pub fn works(&self) -> bool {
        matches!(self, Self::Store { .. } | Self::Probe(Probe { beside: Beside::Work(_), .. }))
    }
}

impl Case {
    /// Whether it is bare runc's turn after move `number`, counted from 1: its moves are spread over those of Tideover.
    pub fn bare_follows(&self, number: usize) -> bool {
        let due = |number: usize| number * self.bare_runs / self.runs;
        due(number) > due(number - 1)
    }

    /// How long it takes on two cores, about: a guess, for what a person is told of the time that is left. It is put right
    /// as cases are done.
    pub fn estimate(&self) -> Duration {
        let mib = self.program.mib() as f64;
        let start = 8.0 + mib / 200.0 + if matches!(self.program, Program::Store { .. }) { mib / 20.0 } else { 0.0 };
        // Its files are written on two nodes and in an archive, and brought to the disk.
        let files = match self.program {
            Program::Probe(Probe { beside: Beside::Layer { mib, .. }, .. }) => mib as f64 / 120.0,
            _ => 0.0,
        };
        let work = if self.program.works() { 6.5 } else { 0.0 };
        let moves = self.runs as f64 * (4.3 + mib / 500.0 + files + work);
        let bare =
            if self.bare_runs > 0 { 2.0 + mib / 400.0 } else { 0.0 } + self.bare_runs as f64 * (1.0 + mib / 700.0);
        Duration::from_secs_f64(start + moves + bare)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dirty_rate_is_told_to_the_probe_in_pages_and_is_never_nothing() {
        let collector = SocketAddr::from(([10, 0, 0, 1], 9));
        let rate = |mib, percent| Probe::plain(mib, percent).args(collector)[2].clone();
        assert_eq!(rate(1024, 1), "--dirty-rate=2622");
        assert_eq!(rate(4096, 10), "--dirty-rate=104858");
        assert_eq!(rate(1, 1), "--dirty-rate=3");
        assert_eq!(rate(64, 0), "--dirty-rate=0");
    }

    #[test]
    fn the_moves_by_bare_runc_are_spread_over_the_others() {
        let turns = |runs, bare_runs| {
            let case = Case { program: Program::Probe(Probe::plain(1, 0)), runs, bare_runs };
            (1..=runs).filter(|number| case.bare_follows(*number)).collect::<Vec<_>>()
        };
        assert_eq!(turns(9, 3), [3, 6, 9]);
        assert_eq!(turns(3, 3), [1, 2, 3]);
        assert_eq!(turns(2, 1), [2]);
        assert!(turns(4, 0).is_empty());
    }

    #[test]
    fn a_crowd_is_told_to_the_probe_first() {
        let probe = Probe { beside: Beside::Crowd(Kind::Sockets, 1000), ..Probe::plain(1, 0) };
        assert_eq!(probe.args(SocketAddr::from(([10, 0, 0, 1], 9)))[..2], ["crowd", "--sockets=1000"]);
    }
}
