use std::process::ExitCode;

fn main() -> ExitCode {
    tideover_init::main()
}
