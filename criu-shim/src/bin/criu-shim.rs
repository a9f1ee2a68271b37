//! The OCI runtime in front of runc, installed as `/opt/tideover/bin/criu-shim`.

fn main() -> std::process::ExitCode {
    criu_shim::shim::main()
}
