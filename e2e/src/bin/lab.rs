//! `lab`: see `lab --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    e2e::cli::main()
}
