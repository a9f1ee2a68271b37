//! What the tests run inside pods.

mod beside;
mod crowd;
mod fork;
mod layer;
mod load;
mod mapping;
mod noise;
mod notify;
mod pace;
mod postgres;
mod resp;
mod sql;
mod store;
mod ticker;
mod work;
mod zoo;

use clap::Parser;
use std::process::ExitCode;

/// Test programs of Tideover.
#[derive(Parser)]
enum Command {
    /// Tick every millisecond, tell every tick to a collector, and remember the longest gap.
    Tick(ticker::Args),
    /// Tick, with processes, threads, mappings and descriptors beside the ticker.
    Crowd(crowd::Args),
    /// Do nothing: one of a crowd's processes.
    #[command(hide = true)]
    Idle,
    /// Hold memory of every kind, write to it, and look at every page of it again and again.
    Zoo(zoo::Args),
    /// Fill a store with keys.
    Fill(store::FillArgs),
    /// Write to a store for ever and print what it acknowledged.
    Write(store::WriteArgs),
    /// Read and write a store's filled keys for ever and tell a collector what it answered.
    Load(load::Args),
    /// Hold sessions of a PostgreSQL and ask it all the time.
    Sql(sql::Args),
    /// Check that a store has every filled key and every acknowledged write.
    Verify(store::VerifyArgs),
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Tick(args) => ticker::run(&args),
        Command::Crowd(args) => crowd::run(&args),
        Command::Idle => crowd::idle(),
        Command::Zoo(args) => zoo::run(&args),
        Command::Fill(args) => store::fill(&args),
        Command::Write(args) => store::write(&args),
        Command::Load(args) => load::run(&args),
        Command::Sql(args) => sql::run(&args),
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
