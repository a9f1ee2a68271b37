//! The first process of the tests' virtual machine. It makes a system of the bare kernel, runs every check there, reports each
//! on the second serial line, and powers off.
//!
//! [`system`] is what a distribution's init would have done, [`checks`] what is looked at, [`container`] how a check gets a
//! real container, [`report`] the form of what is said. `e2e/src/vm` makes the machine and reads the report.

mod checks;
mod container;
mod report;
mod system;

use anyhow::{Context, Result};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

fn main() {
    if let Err(error) = run() {
        // On the console, which is shown when the report does not end as it should.
        eprintln!("guest: {error:#}");
    }
    if let Err(error) = system::power_off() {
        eprintln!("guest: {error:#}");
    }
}

fn run() -> Result<()> {
    system::prepare()?;
    // SAFETY: this process has one thread, so no lock can be held by another one at the fork.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Parent { child } => reap_until(child),
        ForkResult::Child => {
            let checked = check_all();
            if let Err(error) = &checked {
                eprintln!("guest: {error:#}");
            }
            std::process::exit(i32::from(checked.is_err()));
        }
    }
}

/// What PID 1 is there for: whatever loses its parent is reaped here, until the process that checks has ended.
fn reap_until(child: Pid) -> Result<()> {
    loop {
        match waitpid(None, None).context("wait for processes")? {
            WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..) if pid == child => return Ok(()),
            _ => {}
        }
    }
}

fn check_all() -> Result<()> {
    let mut report = report::Report::open()?;
    for (name, check) in checks::ALL {
        // The console says what was going on where a check never ends.
        eprintln!("guest: {name}");
        report.checked(name, check())?;
    }
    report.end()
}
