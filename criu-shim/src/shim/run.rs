//! The shim as a process.

use super::cli::{self, Command};
use super::create::{self, Created};
use super::delete::{self, Deleted};
use super::log;
use super::marker::Markers;
use super::runtime::Runtime;
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
        // The processes of a restored container run since `create`.
        Command::Start(id) if Markers::of_node().is_set(&id) => ExitCode::SUCCESS,
        Command::Delete(id) => match delete::delete(&runtime, &id, &arguments) {
            Ok(Deleted::HandOver) => hand_over(&runtime, &arguments),
            Ok(Deleted::Done(code)) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
            Err(error) => fail(None, &error),
        },
        Command::Start(_) | Command::Other => hand_over(&runtime, &arguments),
    }
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
