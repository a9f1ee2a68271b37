//! The relay, installed as `/opt/tideover/relay/criu`.

fn main() -> std::process::ExitCode {
    criu_shim::relay::main()
}
