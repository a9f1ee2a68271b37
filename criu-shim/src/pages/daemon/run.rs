//! The page daemon as a process.

use super::alive;
use super::guard::Guard;
use super::serve::{Settings, serve};
use clap::Parser;
use nix::sys::signal::{SigSet, Signal};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(
    name = "criu-pages",
    version,
    about = "Serves CRIU's lazy restore from the page store of this node",
    long_about = "Serves CRIU's lazy restore from the page store of this node. Standard input brings one line with the pids of the \
                  processes that have memory, and stays open until CRIU has come."
)]
struct Arguments {
    /// Directory of the page store.
    #[arg(long)]
    store: PathBuf,
    /// CRIU's work directory: for its socket and the status.
    #[arg(long)]
    work: PathBuf,
}

/// The program `criu-pages`.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // The end of a terminal or of a reader of standard error is not the end of a process's memory. Rust ignores SIGPIPE.
    if let Err(errno) = SigSet::from(Signal::SIGHUP).thread_block() {
        eprintln!("criu-pages: ignore SIGHUP: {errno}");
        return ExitCode::FAILURE;
    }
    let Arguments { store, work } = arguments;
    // Before the guard is split off, which has it too then.
    let _alive = match alive::say(&work) {
        Ok(lock) => lock,
        Err(error) => {
            eprintln!("criu-pages: lock {work:?}: {error}");
            return ExitCode::FAILURE;
        }
    };
    // Whoever looks for memory to free must not take the one that holds everybody else's.
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "-1000") {
        eprintln!("criu-pages: be spared where memory is short: {error}");
    }
    let guard = match Guard::start(&work) {
        Ok(guard) => guard,
        Err(error) => {
            eprintln!("criu-pages: start the guard: {error}");
            return ExitCode::FAILURE;
        }
    };
    match serve(&Settings { store, work }, &guard) {
        Ok(()) => ExitCode::SUCCESS,
        // Said, where it happened, before any process was let go of.
        Err(_) => ExitCode::FAILURE,
    }
}
