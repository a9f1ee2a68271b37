//! The page daemon, installed as `/opt/tideover/bin/criu-pages`.

fn main() -> std::process::ExitCode {
    criu_shim::pages::main()
}
