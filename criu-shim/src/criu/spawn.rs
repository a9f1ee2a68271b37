//! Starting CRIU in its place: the one module of the client with `unsafe` in it.

use super::place::OpenPlace;
use super::{CriuError, CriuProgram, mappings, withheld};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sched::setns;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

/// Where CRIU finds `tar`, which it executes for the content of a tmpfs.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// CRIU's fault strategy 130: no hardware breakpoints in the tasks. They bring nothing here and cost some 10 ms of freeze
/// for each process. Source: CRIU's `criu/include/fault-injection.h` (`FI_NO_BREAKPOINTS`, among those that are not fatal).
///
/// To stop a task behind the parasite (dump) or the restorer (restore), CRIU lets it run into a hardware breakpoint at the
/// place of `rt_sigreturn`. Without, it steps from system call to system call until it sees that one, which is what it
/// does by itself where breakpoints don't work (`compel_stop_pie` in `compel/src/lib/infect.c`). Nothing else changes, and
/// only one strategy can be set.
pub(crate) const NO_BREAKPOINTS: (&str, &str) = ("CRIU_FAULT", "130");

/// Starts `criu swrk` on `socket`, which is CRIU's end of a pair. It inherits `withheld` and `mappings`, for the library in it.
pub(super) fn swrk(
    program: &CriuProgram,
    place: Option<OpenPlace>,
    socket: OwnedFd,
    withheld: File,
    mappings: File,
) -> Result<Child, CriuError> {
    let (executable, arguments) = program.command();
    let mut command = Command::new(&executable);
    command.args(arguments).arg("--no-default-config").arg("swrk").arg(socket.as_raw_fd().to_string());
    command.env_clear().env("PATH", PATH).env(NO_BREAKPOINTS.0, NO_BREAKPOINTS.1).envs(program.environment());
    command.env(withheld::VARIABLE, withheld.as_raw_fd().to_string());
    command.env(mappings::VARIABLE, mappings.as_raw_fd().to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");

    let enter = move || -> std::io::Result<()> {
        if let Some(place) = &place {
            for procs in &place.cgroups {
                // "0" is the writer itself. Source: cgroups(7).
                nix::unistd::write(procs, b"0")?;
            }
            for (namespace, kind) in &place.namespaces {
                setns(namespace, *kind)?;
            }
        }
        fcntl(&socket, FcntlArg::F_SETFD(FdFlag::empty()))?;
        fcntl(&withheld, FcntlArg::F_SETFD(FdFlag::empty()))?;
        fcntl(&mappings, FcntlArg::F_SETFD(FdFlag::empty()))?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes write, setns and fcntl system calls only, on descriptors opened
    // before the fork. It neither allocates nor takes a lock, so it is safe in a
    // child of a process with threads.
    unsafe { command.pre_exec(enter) };
    // The closure owns the parent's copy of CRIU's end; it is closed with `command` at the end of this function, so
    // that the end of CRIU is seen as the end of the connection.
    command.spawn().map_err(|source| CriuError::Start { program: executable, source })
}
