//! The shim as a process.

use super::cli::{self, Command};
use super::create::{self, Created};
use super::delete::{self, Deleted};
use super::log;
use super::marker::Markers;
use super::runtime::Runtime;
use super::stand_in;
use std::error::Error;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// The program `criu-shim`.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let runtime = match Runtime::find(std::env::var_os("PATH").as_deref()) {
        Ok(runtime) => runtime,
        Err(error) => return fail(None, &error),
    };
    match cli::parse(&arguments) {
        Command::Create(command) => match create::create(&runtime, &command) {
            Ok(Created::Cold) => hand_over(&runtime, &arguments),
            Ok(Created::Restored(code)) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
            Err(error) => fail(command.log.as_deref(), &error),
        },
        Command::Start(id) => match Markers::of_node().get(&id) {
            // The processes of a restored container run since `create`, or will without being started.
            Ok(Some(mark)) => done(stand_in::start(&mark)),
            Ok(None) => hand_over(&runtime, &arguments),
            Err(error) => fail(None, &error),
        },
        Command::Kill(id) => match Markers::of_node().get(&id) {
            Ok(Some(mark)) if stand_in::stands_alone(&mark) => done(stand_in::end(&mark)),
            Ok(_) => hand_over(&runtime, &arguments),
            Err(error) => fail(None, &error),
        },
        Command::Delete(id) => match delete::delete(&runtime, &id, &arguments) {
            Ok(Deleted::HandOver(arguments)) => hand_over(&runtime, &arguments),
            Ok(Deleted::Done(code)) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
            Err(error) => fail(None, &error),
        },
        Command::Other => hand_over(&runtime, &arguments),
    }
}

fn done(result: std::io::Result<()>) -> ExitCode {
    result.map_or_else(|error| fail(None, &error), |()| ExitCode::SUCCESS)
}

fn hand_over(runtime: &Runtime, arguments: &[OsString]) -> ExitCode {
    fail(None, &runtime.become_it(arguments))
}

/// Says why, with every cause, where containerd looks for it.
fn fail(log: Option<&Path>, error: &dyn Error) -> ExitCode {
    let mut reason = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        reason = format!("{reason}: {error}");
        cause = error.source();
    }
    log::error(log, &reason, &jiff::Timestamp::now().to_string());
    ExitCode::FAILURE
}
