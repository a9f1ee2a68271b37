//! What the tests run inside pods.

mod resp;
mod store;
mod ticker;

use clap::Parser;
use std::process::ExitCode;

/// Test programs of Tideover.
#[derive(Parser)]
enum Command {
    /// Tick every millisecond, tell every tick to a collector, and remember the longest gap.
    Tick(ticker::Args),
    /// Fill a store with keys.
    Fill(store::FillArgs),
    /// Write to a store for ever and print what it acknowledged.
    Write(store::WriteArgs),
    /// Check that a store has every filled key and every acknowledged write.
    Verify(store::VerifyArgs),
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Tick(args) => ticker::run(&args),
        Command::Fill(args) => store::fill(&args),
        Command::Write(args) => store::write(&args),
        Command::Verify(args) => store::verify(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("probe: {error}");
            ExitCode::FAILURE
        }
    }
}
