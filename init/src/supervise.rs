//! The driver: waits, tells the machine what has happened, and does what it says.
//!
//! One thread, one loop. Messages are heard before ends of processes are looked at, and both before timers: a process that
//! says something and ends, or pings just before the watchdog's time is up, has said it, and a container that was moved at the
//! last moment has been moved.

use crate::clock::{Clock, Moment};
use crate::config::{Config, NotifyAccess, Refusal, Settings};
use crate::exit::Exit;
use crate::footprint;
use crate::kernel::{self, Children, Reaped};
use crate::machine::{Act, Event, Machine, Origin, SpawnFailure, Whom};
use crate::notice;
use crate::oom::OomKills;
use crate::record::Writer;
use crate::signals::{Arrived, Sender, Signals};
use crate::socket::{Message, Socket, SocketError};
use crate::spawn::Application;
use crate::tree::Tree;
use crate::whereabouts::Whereabouts;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::prctl;
use nix::sys::time::TimeSpec;
use std::ffi::{NulError, OsString};
use std::iter;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use thiserror::Error;

/// The longest sleep while a timer runs: how finely the clock can tell time that was not lived.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Most messages, and most signals, that are taken in one go, so that one who sends without end keeps nobody else waiting.
/// More than a socket's queue holds. Source: `net.unix.max_dgram_qlen`, at most 512 by default.
const AT_ONCE: usize = 1024;
/// Pause after a wait that failed, which it does only for want of memory.
const WAIT_FAILED: Duration = Duration::from_millis(100);
/// Exit status of a container whose init could not begin. The same as that of container engines which can't run one.
const COULD_NOT_BEGIN: u8 = 125;

/// Why init could not begin.
#[derive(Debug, Error)]
enum BeginError {
    /// It was called in another way.
    #[error("usage: tideover-init CONFIGURATION PROGRAM [ARGUMENT...]")]
    Usage,
    /// The configuration makes no sense.
    #[error(transparent)]
    Config(#[from] Refusal),
    /// The kernel refused something that each container may do.
    #[error("{what}")]
    Kernel { what: &'static str, source: Errno },
    /// A word of the application's that can't be passed on.
    #[error("keep the application's arguments and environment")]
    Line(#[from] NulError),
    /// There is no socket for messages.
    #[error(transparent)]
    Socket(#[from] SocketError),
}

/// Runs the container of this process' arguments until it ends.
///
/// Exits with the application's status, or with 125 where it could not begin.
pub fn main() -> ExitCode {
    match begin(std::env::args_os().skip(1)) {
        Ok(driver) => ExitCode::from(driver.run()),
        Err(error) => {
            // Nothing of the application's is lost in this output: it was not started.
            let mut cause: Option<&dyn std::error::Error> = Some(&error);
            eprint!("tideover-init");
            while let Some(error) = cause {
                eprint!(": {error}");
                cause = error.source();
            }
            eprintln!();
            ExitCode::from(COULD_NOT_BEGIN)
        }
    }
}

fn begin(mut arguments: impl Iterator<Item = OsString>) -> Result<Driver, BeginError> {
    let (Some(config), Some(program)) = (arguments.next(), arguments.next()) else { return Err(BeginError::Usage) };
    let line = iter::once(program).chain(arguments);
    let Config { directory, restart: settings, .. } = Config::read(&PathBuf::from(config))?;
    let failed = |what| move |source| BeginError::Kernel { what, source };
    // An application of the same user could otherwise attach to init with ptrace(2), and stop or change it.
    prctl::set_dumpable(false).map_err(failed("keep other processes from tracing init"))?;
    let init_is_pid_1 = std::process::id() == 1;
    if !init_is_pid_1 {
        prctl::set_child_subreaper(true).map_err(failed("become the parent of orphans"))?;
    }
    let (signals, mask) = Signals::open().map_err(failed("open a descriptor for signals"))?;
    let socket = match settings.access() {
        NotifyAccess::None => None,
        _ => Some(Socket::bind(&directory)?),
    };
    let notify = socket.as_ref().map(Socket::path);
    let application = Application::new(line, notify, settings.watchdog.as_micros(), mask, init_is_pid_1)?;
    Ok(Driver {
        machine: Machine::new(settings),
        clock: Clock::new(kernel::clocks()),
        now: Moment::default(),
        signals,
        socket,
        application,
        tree: Tree::own(),
        oom_kills: OomKills::find(),
        record: Writer::new(&directory),
        whereabouts: Whereabouts::of(directory),
        init_is_pid_1,
        has_spawned: false,
        next: Some(Event::Begin),
        ended: Vec::new(),
        status: None,
    })
}

struct Driver {
    machine: Machine,
    clock: Clock,
    now: Moment,
    signals: Signals,
    socket: Option<Socket>,
    application: Application,
    tree: Tree,
    oom_kills: OomKills,
    record: Writer,
    whereabouts: Whereabouts,
    init_is_pid_1: bool,
    /// Whether there are pages to give back since the last wait.
    has_spawned: bool,
    /// Told in the next round, so that a program which can't be executed is no loop in which nothing else is heard.
    next: Option<Event>,
    /// What was reaped last.
    ended: Vec<Reaped>,
    /// Set at the end.
    status: Option<u8>,
}

impl Driver {
    fn run(mut self) -> u8 {
        loop {
            if let Some(event) = self.next.take() {
                self.tell(event);
            }
            if let Some(status) = self.status {
                return status;
            }
            self.wait();
            self.hear_messages();
            self.hear_signals();
            self.reap();
            if self.machine.is_holding() && self.whereabouts.have_changed() {
                self.tell(Event::Arrived);
            }
            if self.machine.deadline().is_some_and(|at| at <= self.now) {
                self.tell(Event::Tick);
            }
        }
    }

    /// Sleeps until something happens, at most until the next deadline.
    fn wait(&mut self) {
        if std::mem::take(&mut self.has_spawned) {
            footprint::shed();
        }
        let asked = if self.next.is_some() { Some(Duration::ZERO) } else { self.longest_sleep() };
        let mut waited = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        waited.extend(self.socket.as_ref().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
        match ppoll(&mut waited, asked.map(TimeSpec::from_duration), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => std::thread::sleep(WAIT_FAILED),
        }
        drop(waited);
        self.now = self.clock.read(kernel::clocks(), asked);
    }

    fn longest_sleep(&self) -> Option<Duration> {
        // Neither the end of a main process that is another's child nor that of a debugging container's is told to init.
        let must_look = self.machine.awaits_empty() || self.main_is_another();
        let until_deadline = self.machine.deadline().map(|at| at.since(self.now).min(HEARTBEAT));
        until_deadline.or_else(|| must_look.then_some(HEARTBEAT))
    }

    /// Whether MAINPID= has named another process than the one that init started.
    fn main_is_another(&self) -> bool {
        self.machine.main().is_some() && self.machine.main() != self.machine.started()
    }

    fn hear_messages(&mut self) {
        for _ in 0..AT_ONCE {
            let message = match self.socket.as_ref().map(Socket::next) {
                Some(Ok(Some(message))) => message,
                // One that could not be taken is the sender's to send again.
                None | Some(Ok(None) | Err(_)) => return,
            };
            if let Some(event) = self.heard(&message) {
                self.tell(event);
            }
        }
    }

    /// What a message means, if its sender may say it.
    fn heard(&self, message: &Message) -> Option<Event> {
        let is = |process: Option<i32>| process == Some(message.sender);
        let may = match self.machine.settings().access() {
            NotifyAccess::None => false,
            NotifyAccess::Main => is(self.machine.main()),
            NotifyAccess::Exec => is(self.machine.main()) || is(self.machine.started()),
            NotifyAccess::All => self.is_ours(message.sender),
        };
        if !may {
            return None;
        }
        let notice = notice::parse(&message.text).ok()?;
        // The one descriptor of a barrier was closed when the message had been taken, and that is all there is to it.
        if notice.barrier || message.descriptors > 0 {
            return None;
        }
        let main_pid = notice.main_pid.filter(|pid| self.is_ours(*pid));
        Some(Event::Notified { notice, main_pid })
    }

    fn hear_signals(&mut self) {
        for _ in 0..AT_ONCE {
            let Ok(Some(Arrived { number, sender })) = self.signals.next() else { return };
            if number == libc::SIGCHLD {
                continue;
            }
            let origin = match sender {
                Sender::Outside => Origin::Outside,
                Sender::Kernel => Origin::Inside,
                // In a PID namespace of its own, a container shows its processes only to itself.
                Sender::Process(_) if self.init_is_pid_1 => Origin::Inside,
                Sender::Process(pid) if self.tree.contains(pid) => Origin::Inside,
                Sender::Process(_) => Origin::Outside,
            };
            self.tell(Event::Signal { number, origin });
        }
    }

    /// Reaps what has ended, the application's or not.
    fn reap(&mut self) {
        let mut any_left = false;
        let mut main = None;
        self.ended.clear();
        loop {
            match kernel::reap() {
                Children::None => break,
                Children::Alive => {
                    any_left = true;
                    break;
                }
                Children::Ended(ended) => self.ended.push(ended),
            }
        }
        if !self.ended.is_empty() {
            // What one of them has said before its end may have come since the messages were heard.
            self.hear_messages();
            let is_main = |ended: &&Reaped| Some(ended.pid) == self.machine.main();
            main = self.ended.iter().find(is_main).and_then(|ended| Exit::of_wait(ended.status));
            if self.ended.len() > usize::from(main.is_some()) {
                self.tell(Event::OtherEnded);
            }
        }
        if main.is_none() && self.main_is_another() && self.machine.main().is_some_and(|pid| self.tree.is_lost(pid)) {
            main = Some(Exit::Unknown);
        }
        if let Some(exit) = main {
            let others = any_left && self.others();
            self.tell(Event::MainEnded { exit, oom_killed: self.oom_kills.happened(), others });
        } else if self.machine.awaits_empty() && !(any_left && self.others()) {
            self.tell(Event::Empty);
        }
    }

    /// Whether `pid` is a process of the application, or has been one until a moment ago.
    fn is_ours(&self, pid: i32) -> bool {
        self.ended.iter().any(|ended| ended.pid == pid) || self.tree.contains(pid)
    }

    /// Whether processes of the application are left.
    fn others(&self) -> bool {
        // Where they can't be listed, a child that lives is taken for one.
        self.tree.processes().map_or(true, |processes| !processes.is_empty())
    }

    fn tell(&mut self, event: Event) {
        // The empty one is never seen: nothing between here and the next line can fail.
        let machine = std::mem::replace(&mut self.machine, Machine::new(Settings::default()));
        let (machine, acts) = machine.step(event, self.now);
        self.machine = machine;
        for act in acts {
            self.perform(act);
        }
    }

    fn perform(&mut self, act: Act) {
        match act {
            Act::Spawn => {
                self.oom_kills.begin();
                self.has_spawned = true;
                match self.application.spawn() {
                    // At once: it may have ended already, and whose end that was must be known.
                    Ok(pid) => self.tell(Event::Spawned { pid }),
                    Err((failure, error)) => {
                        if failure != SpawnFailure::NoRoom {
                            // Without this line nobody would know why there is no output at all.
                            eprintln!("tideover-init: execute {:?}: {error}", self.application.program());
                        }
                        self.next = Some(Event::NotSpawned { failure });
                    }
                }
            }
            Act::Kill { whom, signal } => self.kill(whom, signal),
            Act::Hold => self.whereabouts.note(),
            Act::Record(stop) => {
                let at = u64::try_from(kernel::clocks().real.as_millis()).unwrap_or(u64::MAX);
                // The writer counts what is lost and says so in the next line. There is nobody else to tell.
                self.record.append(&stop, at).ok();
            }
            Act::Exit(status) => self.status = Some(status),
        }
    }

    /// Sends `signal`. A process that is gone, or that has become another user's, can't be sent one; the machine's time-outs
    /// see to it that nobody waits for it for ever.
    fn kill(&self, whom: Whom, signal: i32) {
        let all = match whom {
            Whom::Main => Vec::new(),
            // Where they can't be listed: the main process leads its process group.
            Whom::All => {
                self.tree.processes().unwrap_or_else(|_| self.machine.main().map(|pid| -pid).into_iter().collect())
            }
        };
        let main = self.machine.main().filter(|pid| !all.contains(pid));
        for pid in all.into_iter().chain(main) {
            kernel::kill(pid, signal).ok();
        }
    }
}
