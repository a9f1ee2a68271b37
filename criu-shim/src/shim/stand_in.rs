//! The process that stands in a container's place until its processes are there, and is their parent from then on.
//!
//! kubelet creates and starts the containers of a pod one after the other, each only once the one before it runs. Those of a pod
//! that moves are restored at one cut, which none of them can wait for inside its `create`. So all but the last get a stand-in:
//! containerd is told its pid, `runc restore` works below it, and as a subreaper it inherits what that rebuilds. It ends as the
//! container's first process does, so that containerd sees the same exit. Why, and what else was thought of, is in
//! `docs/decisions/0013-several-containers.md`.
//!
//! It is one thread that waits for signals, holds nothing of the container, and stays for the container's life.

use super::cli::Create;
use super::create::{CreateError, clear_away, restore_command};
use super::log;
use super::marker::{Mark, Markers};
use super::runtime::{Runtime, exit_code};
use crate::causes::chain;
use crate::criu::{ProcessId, leave_container};
use crate::freezer;
use crate::local::{STAND_IN_ENV, mark_ran};
use crate::shim::ask::Restore;
use nix::fcntl::OFlag;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, raise, sigprocmask};
use nix::sys::signalfd::SignalFd;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe2, setsid};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Error, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

/// Said by the relay: runc has done its part, and put the process that says so into the container's cgroups.
const IN_PLACE: Signal = Signal::SIGUSR1;
/// Said by `start`: containerd has seen what it wants to see of the stand-in's cgroups.
const STARTED: Signal = Signal::SIGUSR2;
/// What the stand-in listens to. All else keeps its meaning: nobody else is to send it anything.
const HEARD: [Signal; 7] =
    [Signal::SIGCHLD, IN_PLACE, STARTED, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];
/// How long a stand-in that was told to end may take: a CRIU at work is not killed, but made to give up.
const END_LIMIT: Duration = Duration::from_secs(30);
/// The file in the container's bundle in which runc leaves the pid of its first process.
const PID_FILE: &str = "restored.pid";
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// Has a stand-in begin the restore. Returns 0 once it waits in the container's place and the pid file names it; else runc's exit
/// code, with nothing left.
///
/// # Errors
/// Where there could be no stand-in. Nothing of it is left.
pub(super) fn begin(runtime: &Runtime, create: &Create, bundle: &Path, restore: Restore) -> Result<i32, CreateError> {
    let failed = |error: Error| CreateError::StandIn(error);
    let (ready, tell) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| failed(errno.into()))?;
    // SAFETY: this program has one thread, so the child may do anything.
    match unsafe { fork() }.map_err(|errno| failed(errno.into()))? {
        ForkResult::Child => {
            drop(ready);
            std::process::exit(stand(runtime, create, bundle, restore, tell));
        }
        ForkResult::Parent { child } => {
            drop((tell, restore));
            let mut word = [0];
            let stands = File::from(ready).read(&mut word).map_err(failed)? == word.len();
            if !stands {
                return Ok(wait_for(child).map_or(1, exit_code));
            }
            match create.pid_file.as_deref().map_or(Ok(()), |path| write_pid(Path::new(path), child)) {
                Ok(()) => Ok(0),
                Err(error) => {
                    // It is gone where that fails.
                    kill(child, Signal::SIGTERM).ok();
                    wait_for(child);
                    Err(failed(error))
                }
            }
        }
    }
}

/// As runc does it: whoever sees the file sees all of it.
fn write_pid(path: &Path, pid: Pid) -> std::io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}"));
    std::fs::write(&beside, pid.to_string())?;
    std::fs::rename(beside, path)
}

fn wait_for(child: Pid) -> Option<ExitStatus> {
    waitpid(child, None).ok().and_then(how).map(|(_, status)| status)
}

/// The process and how it ended, if that is what it says.
fn how(status: WaitStatus) -> Option<(Pid, ExitStatus)> {
    match status {
        WaitStatus::Exited(pid, code) => Some((pid, ExitStatus::from_raw((code & 0xff) << 8))),
        WaitStatus::Signaled(pid, signal, _) => Some((pid, ExitStatus::from_raw(signal as i32))),
        _ => None,
    }
}

/// `start` of a container with a stand-in.
///
/// # Errors
/// Where the stand-in is gone: then so is the container.
pub(super) fn start(mark: &Mark) -> std::io::Result<()> {
    match mark.stand_in {
        Some(stand_in) if stand_in.is_alive() => Ok(kill(Pid::from_raw(stand_in.pid), STARTED)?),
        Some(_) => Err(Error::other("what stands in the container's place has ended")),
        None => Ok(()),
    }
}

/// Whether the container is a stand-in and nothing else yet. Whatever signal it is sent, there is nobody but the stand-in, and
/// nothing to do but to end.
pub(super) fn stands_alone(mark: &Mark) -> bool {
    mark.container.is_none() && mark.stand_in.is_some_and(|stand_in| stand_in.is_alive())
}

/// Tells a stand-in that stands alone to end.
///
/// # Errors
/// Where it can't be told.
pub(super) fn end(mark: &Mark) -> std::io::Result<()> {
    match mark.stand_in {
        Some(stand_in) if stand_in.is_alive() => Ok(kill(Pid::from_raw(stand_in.pid), Signal::SIGTERM)?),
        _ => Ok(()),
    }
}

/// The same, and waits for it.
///
/// # Errors
/// Where it can't be told, or does not end.
pub(super) fn see_it_end(mark: &Mark) -> std::io::Result<()> {
    end(mark)?;
    let begun = Instant::now();
    while stands_alone(mark) && !mark.stand_in.is_some_and(has_ended) {
        if begun.elapsed() > END_LIMIT {
            return Err(Error::other("what stands in the container's place does not end"));
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Whether only its exit status is left, which containerd has not fetched.
fn has_ended(process: ProcessId) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid)).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

/// Where a stand-in stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Below it, `runc restore` is at work.
    Restoring {
        /// That process.
        runc: Pid,
    },
    /// The container's processes run.
    Standing {
        /// The first of them.
        container: Pid,
    },
}

/// What a signal means to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Nothing,
    /// Fetch what has ended.
    Reap,
    /// Enter the cgroups of the process that says so, and let `create` return.
    TakePlace,
    /// Enter Tideover's own cgroups.
    StepAside,
    /// Send this signal to this process.
    Send(Pid, Signal),
}

/// Decides. Without runc the relay makes CRIU give up: neither is ever killed itself.
fn heard(stage: Stage, signal: Signal) -> Act {
    match (stage, signal) {
        (_, Signal::SIGCHLD) => Act::Reap,
        (Stage::Restoring { .. }, IN_PLACE) => Act::TakePlace,
        (_, STARTED) => Act::StepAside,
        (Stage::Restoring { runc }, _) => Act::Send(runc, Signal::SIGKILL),
        // Late, or somebody who takes it for the container's first process.
        (Stage::Standing { .. }, IN_PLACE) => Act::Nothing,
        (Stage::Standing { container }, signal) => Act::Send(container, signal),
    }
}

/// The stand-in's life. Returns its exit code.
fn stand(runtime: &Runtime, create: &Create, bundle: &Path, restore: Restore, tell: OwnedFd) -> i32 {
    let (markers, log) = (Markers::of_node(), create.log.clone());
    let begun = Place::take(markers.clone(), create, bundle)
        .and_then(|place| place.restore(runtime, create, bundle, &restore).map(|runc| (place, runc)));
    let (mut place, runc) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            say(log.as_deref(), "begin a restore below a stand-in", &error);
            restore.report(1);
            return 1;
        }
    };
    let (mut stage, mut restore, mut tell) = (Stage::Restoring { runc }, Some(restore), Some(tell));
    loop {
        match place.next(stage) {
            Ok(Next::Nothing) => {}
            Ok(Next::Ready(entered)) => {
                if let Err(error) = entered {
                    say(log.as_deref(), "enter the container's cgroups", &error);
                }
                // Where nobody hears it, nobody waits.
                tell.take().map(|tell| File::from(tell).write_all(b"!"));
            }
            Ok(Next::Ended(process, status)) if stage == (Stage::Restoring { runc: process }) => {
                let Some(restore) = restore.take() else { continue };
                let code = exit_code(status);
                // Before anybody learns that there is a container: it may end, and another one be asked for, before there is an agent
                // again that could be told.
                if code == 0
                    && let Err(error) = mark_ran(&restore.work_dir)
                {
                    say(log.as_deref(), "mark that the container has run", &error);
                }
                match (code == 0).then(|| place.container()).transpose() {
                    Ok(Some(container)) => {
                        restore.report(0);
                        stage = Stage::Standing { container };
                        // Without it nothing was created.
                        if let Some(status) = place.ended.remove(&container) {
                            return end_like(status);
                        }
                    }
                    failed => {
                        if let Err(error) = failed {
                            say(log.as_deref(), "find what was restored", &error);
                        }
                        let code = code.max(1);
                        clear_away(runtime, create);
                        if let Err(error) = markers.clear(&create.id) {
                            say(log.as_deref(), "clear the mark of the container", &error);
                        }
                        restore.report(code);
                        return code;
                    }
                }
            }
            Ok(Next::Ended(process, status)) if stage == (Stage::Standing { container: process }) => {
                return end_like(status);
            }
            Ok(Next::Ended(process, status)) => {
                place.ended.insert(process, status);
            }
            Err(error) => say(log.as_deref(), "stand in for the container", &error),
        }
    }
}

fn say(log: Option<&Path>, what: &str, error: &dyn std::error::Error) {
    log::error(log, &format!("{what}: {}", chain(error)), &jiff::Timestamp::now().to_string());
}

/// What comes next.
enum Next {
    Nothing,
    /// `create` may return. Where the cgroups could not be entered, containerd tells those of another.
    Ready(Result<(), Error>),
    /// A child has ended.
    Ended(Pid, ExitStatus),
}

/// What a stand-in has.
struct Place {
    signals: SignalFd,
    markers: Markers,
    id: String,
    stand_in: ProcessId,
    /// What has ended while runc was at work: the container's first process may be among it.
    ended: HashMap<Pid, ExitStatus>,
    /// Where runc leaves the pid of the container's first process.
    pid_file: PathBuf,
    reaping: bool,
}

impl Place {
    fn take(markers: Markers, create: &Create, bundle: &Path) -> Result<Self, Error> {
        let heard = SigSet::from_iter(HEARD);
        heard.thread_block()?;
        let signals = SignalFd::with_flags(&heard, nix::sys::signalfd::SfdFlags::SFD_CLOEXEC)?;
        // Whatever runc leaves behind becomes this process' child.
        prctl::set_child_subreaper(true)?;
        setsid()?;
        std::env::set_current_dir("/")?;
        let stand_in = i32::try_from(std::process::id()).ok().and_then(ProcessId::now);
        let stand_in = stand_in.ok_or_else(|| Error::other("this process is not in /proc"))?;
        // Before the restore: once the processes run there is no way back, and without the mark `start` would fail.
        markers.set(&create.id, &Mark { stand_in: Some(stand_in), container: None })?;
        // Not where the images are: an agent that has heard that the processes run takes those away before runc has ended.
        let (id, pid_file) = (create.id.clone(), bundle.join(PID_FILE));
        Ok(Self { signals, markers, id, stand_in, ended: HashMap::new(), pid_file, reaping: false })
    }

    /// Starts the restore, and lets go of the container's input and output: those are its own.
    fn restore(&self, runtime: &Runtime, create: &Create, bundle: &Path, restore: &Restore) -> Result<Pid, Error> {
        let started = restore_command(runtime, create, bundle, restore, Some(self.pid_file.as_os_str()))
            .env(STAND_IN_ENV, self.stand_in.pid.to_string())
            .spawn();
        let runc = match started {
            Ok(runc) => runc,
            Err(error) => {
                self.markers.clear(&self.id)?;
                return Err(error);
            }
        };
        let null = File::options().read(true).write(true).open("/dev/null")?;
        dup2_stdin(&null)?;
        dup2_stdout(&null)?;
        dup2_stderr(&null)?;
        i32::try_from(runc.id()).map(Pid::from_raw).map_err(Error::other)
    }

    /// Waits for what comes next.
    fn next(&mut self, stage: Stage) -> Result<Next, Error> {
        if self.reaping {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(nix::Error::ECHILD) => self.reaping = false,
                Ok(status) => return Ok(how(status).map_or(Next::Nothing, |(pid, status)| Next::Ended(pid, status))),
                Err(error) => return Err(error.into()),
            }
        }
        let Some(signal) = self.signals.read_signal()? else { return Ok(Next::Nothing) };
        let number = i32::try_from(signal.ssi_signo).map_err(Error::other)?;
        match heard(stage, Signal::try_from(number)?) {
            Act::Nothing => {}
            Act::Reap => self.reaping = true,
            Act::TakePlace => {
                let by = i32::try_from(signal.ssi_pid).map_err(Error::other)?;
                let cgroups = freezer::directories(by, Path::new("/")).map_err(Error::other);
                return Ok(Next::Ready(cgroups.and_then(|cgroups| enter(&cgroups))));
            }
            Act::StepAside => leave_container(Path::new("/")).map_err(Error::other)?,
            Act::Send(process, signal) => kill(process, signal)?,
        }
        Ok(Next::Nothing)
    }

    /// The restore has let the processes run: the first of them, which is noted for all who take this one for it.
    fn container(&self) -> Result<Pid, Error> {
        let pid: i32 = std::fs::read_to_string(&self.pid_file)?.trim().parse().map_err(Error::other)?;
        let mark = Mark { stand_in: Some(self.stand_in), container: ProcessId::now(pid) };
        self.markers.set(&self.id, &mark)?;
        Ok(Pid::from_raw(pid))
    }
}

/// Enters the container's cgroups: containerd looks there for what it says of the container.
fn enter(cgroups: &[PathBuf]) -> Result<(), Error> {
    cgroups.iter().try_for_each(|cgroup| std::fs::write(cgroup.join("cgroup.procs"), b"0"))
}

/// The exit code of a process that ends as another has. Where that was a signal, this does not return.
fn end_like(status: ExitStatus) -> i32 {
    if let Some(signal) = status.signal().and_then(|number| Signal::try_from(number).ok()) {
        // The container has left its core where it belongs, if anywhere.
        prctl::set_dumpable(false).ok();
        let all = SigSet::all();
        sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&all), None).ok();
        raise(signal).ok();
    }
    exit_code(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn before_the_restore_every_word_to_end_is_for_runc_and_after_it_for_the_container() {
        let (runc, container) = (Pid::from_raw(7), Pid::from_raw(8));
        let restoring = Stage::Restoring { runc };
        let standing = Stage::Standing { container };
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
            assert_eq!(heard(restoring, signal), Act::Send(runc, Signal::SIGKILL));
            assert_eq!(heard(standing, signal), Act::Send(container, signal));
        }
        assert_eq!(heard(restoring, IN_PLACE), Act::TakePlace);
        assert_eq!(heard(standing, IN_PLACE), Act::Nothing);
        for stage in [restoring, standing] {
            assert_eq!(heard(stage, Signal::SIGCHLD), Act::Reap);
            assert_eq!(heard(stage, STARTED), Act::StepAside);
        }
    }

    #[test]
    fn a_mark_without_a_stand_in_stands_for_nobody() {
        let gone = ProcessId { pid: std::process::id() as i32, start_time: 1 };
        let own = ProcessId::now(gone.pid).expect("this process");
        assert!(!stands_alone(&Mark::default()));
        assert!(!stands_alone(&Mark { stand_in: Some(gone), container: None }));
        assert!(!stands_alone(&Mark { stand_in: Some(own), container: Some(own) }));
        assert!(stands_alone(&Mark { stand_in: Some(own), container: None }));
        start(&Mark::default()).expect("the processes of a container without a stand-in run already");
        start(&Mark { stand_in: Some(gone), container: None }).expect_err("it has ended");
    }
}
