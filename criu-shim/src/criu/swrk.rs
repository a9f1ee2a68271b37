//! `criu swrk`: one CRIU process that serves one client over a SOCK_SEQPACKET pair.

use super::dump::{LOG_FILE, look_in_container, read_mountinfo, resolve_in_container};
use super::mappings::Mappings;
use super::mounts;
use super::rpc::{Features, Options, Request, RequestType, Response};
use super::withheld::{ObjectId, Withheld};
use super::{CriuError, CriuProgram, DumpRequest, Place, ProcessId, first_error, last_errors, spawn};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use prost::Message;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

/// Longest answer of CRIU's, bytes. Real ones have less than 1 KiB; runc accepts 40.
const MAX_ANSWER: usize = 64 * 1024;

/// How long CRIU may take to say that it is there. Without `/run/criu.kdat` it examines the kernel first, 0.2-1.2 s.
const START_LIMIT: Duration = Duration::from_secs(20);

/// How many error lines of the log explain a failure.
const LOG_LINES: usize = 4;

/// A connection to a CRIU process, and the process.
#[derive(Debug)]
pub(super) struct Swrk {
    socket: Option<OwnedFd>,
    child: Option<Child>,
    withheld: Withheld,
    mappings: Mappings,
}

impl Swrk {
    pub(super) fn start(program: &CriuProgram, place: Option<&Place>) -> Result<Self, CriuError> {
        let place = place.map(Place::open).transpose()?;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
            .map_err(|errno| CriuError::SocketPair(errno.into()))?;
        let withheld = Withheld::new().map_err(CriuError::Withhold)?;
        let inherited = withheld.descriptor().map_err(CriuError::Withhold)?;
        let mappings = Mappings::new().map_err(CriuError::Withhold)?;
        let texts = mappings.descriptor().map_err(CriuError::Withhold)?;
        let child = spawn::swrk(program, place, theirs, inherited, texts)?;
        Ok(Self { socket: Some(ours), child: Some(child), withheld, mappings })
    }

    pub(super) fn ask(&self, request: &Request) -> Result<(), CriuError> {
        let Some(socket) = &self.socket else { return Err(CriuError::Vanished { log: Vec::new() }) };
        send(socket.as_raw_fd(), &request.encode_to_vec(), MsgFlags::MSG_NOSIGNAL)
            .map(|_| ())
            .map_err(|errno| CriuError::Send(errno.into()))
    }

    /// The next answer; none when `limit` has passed.
    pub(super) fn answer(&self, limit: Duration) -> Result<Option<Response>, CriuError> {
        let Some(socket) = &self.socket else { return Err(CriuError::Vanished { log: Vec::new() }) };
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up, so that a wait of less than a millisecond does not become a busy loop.
            let left = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
            let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, left) {
                Ok(0) if Instant::now() >= deadline => return Ok(None),
                Ok(0) | Err(Errno::EINTR) => continue,
                Ok(_) => break,
                Err(errno) => return Err(CriuError::Receive(errno.into())),
            }
        }
        let mut packet = vec![0; MAX_ANSWER];
        let length = recv(socket.as_raw_fd(), &mut packet, MsgFlags::empty())
            .map_err(|errno| CriuError::Receive(errno.into()))?;
        if length == 0 {
            return Err(CriuError::Vanished { log: Vec::new() });
        }
        Response::decode(&packet[..length]).map(Some).map_err(CriuError::Decode)
    }

    /// Whether it is there and says nothing.
    fn is_silent(&self) -> bool {
        let Some(socket) = &self.socket else { return false };
        // The end of a connection is there to be read too.
        let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut ready, PollTimeout::ZERO), Ok(0))
    }

    /// Asks for `kind` and returns the answer, if it is one to that.
    pub(super) fn exchange(&self, request: &Request, kind: RequestType) -> Result<Response, CriuError> {
        self.ask(request)?;
        let response = self.answer(START_LIMIT)?.ok_or(CriuError::Silent(START_LIMIT))?;
        if response.r#type == i32::from(kind) {
            Ok(response)
        } else {
            Err(CriuError::Unexpected { asked: kind.into(), found: response.r#type })
        }
    }

    /// Waits until CRIU has ended by itself.
    fn finish(&mut self) -> Result<(), CriuError> {
        drop(self.socket.take());
        self.child.take().map_or(Ok(()), |mut child| child.wait().map(drop)).map_err(CriuError::Wait)
    }
}

impl Drop for Swrk {
    /// Hangs up, which makes CRIU fail through its own protocol wherever it is, and has it reaped whenever that is done.
    /// It is never killed.
    fn drop(&mut self) {
        drop(self.socket.take());
        if let Some(mut child) = self.child.take() {
            std::thread::spawn(move || child.wait());
        }
    }
}

/// A CRIU that is started, has examined the kernel and waits for a request. Made before the freeze.
#[derive(Debug)]
pub struct WarmCriu {
    swrk: Swrk,
    process: ProcessId,
    outside_ipc: bool,
}

impl WarmCriu {
    /// Starts a CRIU in its place and waits until it has answered once.
    ///
    /// After success it waits for a dump for as long as it is kept; dropped, it ends by itself. After an error nothing is
    /// left behind. Not one task of the container has been touched in either case.
    ///
    /// # Errors
    /// Any [`CriuError`] but [`CriuError::Dump`].
    pub fn start(program: &CriuProgram, place: &Place) -> Result<Self, CriuError> {
        let swrk = Swrk::start(program, Some(place))?;
        let pid = swrk.child.as_ref().map_or(0, |child| child.id() as i32);
        let process = ProcessId::now(pid).ok_or(CriuError::Vanished { log: Vec::new() })?;
        let check = Request {
            r#type: RequestType::FeatureCheck.into(),
            features: Some(Features { lazy_pages: Some(true), ..Default::default() }),
            // CRIU waits for another request after this one.
            keep_open: Some(true),
            ..Default::default()
        };
        // "No" is the answer of a CRIU that could not examine the kernel. It would say the same in the freeze.
        if !swrk.exchange(&check, RequestType::FeatureCheck)?.success {
            return Err(CriuError::Examine);
        }
        Ok(Self { swrk, process, outside_ipc: place.outside_ipc })
    }

    /// Has CRIU write down what it knows of the kernel, below `node_root`, where that is missing or another build's. In the
    /// caller's own network, because in one without a route CRIU gives up examining the kernel; a container's may be one.
    ///
    /// # Errors
    /// As [`WarmCriu::start`].
    pub fn examine(program: &CriuProgram, node_root: &Path) -> Result<(), CriuError> {
        let own = std::process::id().cast_signed();
        let place = Place { namespaces_of: own, outside_ipc: false, node_root: node_root.to_owned() };
        Self::start(program, &place).map(drop)
    }

    /// Whether its dump has the System V objects of the container's IPC namespace ([`Place::outside_ipc`]).
    pub fn is_outside_ipc(&self) -> bool {
        self.outside_ipc
    }

    /// The CRIU process, for the journal: while it is alive, an earlier agent's dump is still going on.
    pub fn process(&self) -> ProcessId {
        self.process
    }

    /// Asks for the dump, and returns when CRIU is about to touch the tasks, which need not be frozen yet. That it got so far takes some
    /// milliseconds. Blocking.
    ///
    /// # Errors
    /// Any [`CriuError`]: CRIU has ended, or is about to, and has not touched the tasks.
    pub fn begin(self, request: DumpRequest) -> Result<BegunDump, CriuError> {
        let asked = Asked::of(request)?;
        let Self { swrk, outside_ipc, .. } = self;
        let opts = Some(asked.options.clone());
        swrk.ask(&Request { r#type: RequestType::Dump.into(), opts, ..Default::default() })?;
        let mut begun = BegunDump { swrk, asked, outside_ipc };
        begun.await_pre_dump()?;
        Ok(begun)
    }
}

/// What CRIU was asked for.
#[derive(Debug)]
struct Asked {
    request: DumpRequest,
    options: Options,
    // CRIU opens them through /proc/<this process>/fd.
    images: OwnedFd,
    work: OwnedFd,
}

impl Asked {
    fn of(request: DumpRequest) -> Result<Self, CriuError> {
        let images = open_directory(&request.images_dir)?;
        let work = open_directory(&request.work_dir)?;
        let options = options(&request, &images, &work, &read_mountinfo(request.pid)?);
        Ok(Self { request, options, images, work })
    }
}

/// CRIU's options, as the container is now, with mounts that its `mountinfo` says.
fn options(request: &DumpRequest, images: &OwnedFd, work: &OwnedFd, mountinfo: &str) -> Options {
    let mounts = mounts::parse(mountinfo);
    let resolve = |path: &Path| resolve_in_container(request.pid, path);
    request.options(images, work, &mounts, resolve, |path| look_in_container(request.pid, path))
}

/// A dump for which CRIU waits for the word, before it touches the tasks. Dropped, it makes CRIU end.
#[derive(Debug)]
pub struct BegunDump {
    swrk: Swrk,
    asked: Asked,
    outside_ipc: bool,
}

impl BegunDump {
    /// What was asked for.
    pub fn request(&self) -> &DumpRequest {
        &self.asked.request
    }

    /// Whether it has the System V objects of the container's IPC namespace ([`Place::outside_ipc`]).
    pub fn is_outside_ipc(&self) -> bool {
        self.outside_ipc
    }

    /// What it leaves out.
    pub fn withheld(&self) -> Withheld {
        self.swrk.withheld.clone()
    }

    /// What is read for it.
    pub fn mappings(&self) -> Mappings {
        self.swrk.mappings.clone()
    }

    fn await_pre_dump(&mut self) -> Result<(), CriuError> {
        let notified = self.swrk.answer(START_LIMIT)?.ok_or(CriuError::Silent(START_LIMIT))?;
        let script = notified.notify.as_ref().and_then(|notify| notify.script.as_deref());
        if notified.r#type == i32::from(RequestType::Notify) && script == Some(PRE_DUMP) {
            return Ok(());
        }
        if notified.r#type == i32::from(RequestType::Dump) {
            self.swrk.finish()?;
            return Err(refused(&notified, &self.asked.request.work_dir.join(LOG_FILE)));
        }
        Err(CriuError::Unexpected { asked: RequestType::Notify.into(), found: notified.r#type })
    }

    /// Gives the word: the tasks are frozen, and of the shared memory of theirs `objects`, at most [`super::MOST_WITHHELD`], are left
    /// out, once these are known. Only a CRIU with the preload for it ([`CriuProgram::withholding`]) does so, and then they must be accounted
    /// for before a restore ([`super::shared::fill_in`]). Returns at once;
    /// [`RunningDump::wait`] tells how it went, and [`Premise::holds`] whether that is of any use. Blocking.
    ///
    /// # Errors
    /// Any [`CriuError`] but [`CriuError::Dump`]: CRIU has not touched the tasks.
    pub fn go(self, objects: impl FnOnce() -> Vec<ObjectId>) -> Result<(RunningDump, Premise), CriuError> {
        let Self { swrk, asked, .. } = self;
        // Before the word, because CRIU mounts something in the container while it dumps.
        let mountinfo = read_mountinfo(asked.request.pid)?;
        swrk.withheld.set_objects(&objects()).map_err(CriuError::Withhold)?;
        swrk.ask(&go_on())?;
        let log = asked.request.work_dir.join(LOG_FILE);
        Ok((RunningDump { swrk, log, complete: false }, Premise { asked, mountinfo }))
    }
}

/// CRIU's notification before it looks at any task. Source: `ACT_PRE_DUMP` in CRIU's `criu/action-scripts.c`; `cr_dump_tasks` in
/// `criu/cr-dump.c` has it before anything else.
const PRE_DUMP: &str = "pre-dump";

fn go_on() -> Request {
    Request { r#type: RequestType::Notify.into(), notify_success: Some(true), ..Default::default() }
}

/// Why CRIU, which has ended by itself, has made no dump.
fn refused(response: &Response, log: &Path) -> CriuError {
    let log = last_errors(log, LOG_LINES);
    let first = first_error(response.cr_errmsg.as_deref());
    let message = first.or_else(|| log.first().cloned()).unwrap_or_else(|| "no reason given".to_owned());
    CriuError::Dump { message, errno: response.cr_errno.unwrap_or(0), log }
}

/// What a dump goes by, which was found out while the tasks ran.
#[derive(Debug)]
pub struct Premise {
    asked: Asked,
    /// Of the frozen container.
    mountinfo: String,
}

impl Premise {
    /// Makes sure that what was asked for is what would be asked for of the frozen container: before anything is made of the images.
    /// Blocking.
    ///
    /// # Errors
    /// [`CriuError::Changed`] where its mounts are others.
    pub fn holds(&self) -> Result<(), CriuError> {
        let Asked { request, options: asked, images, work } = &self.asked;
        if options(request, images, work, &self.mountinfo) == *asked { Ok(()) } else { Err(CriuError::Changed) }
    }
}

/// A dump under way. Dropped, it makes CRIU fail and let go of the tasks; better wait.
#[derive(Debug)]
pub struct RunningDump {
    swrk: Swrk,
    log: PathBuf,
    /// CRIU waits to hear that it may let go.
    complete: bool,
}

/// How waiting for CRIU ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// CRIU is still at work. If that is because a task can't be seized, only a thaw lets it end.
    Overdue,
    /// It is where it was waited for.
    Done,
}

/// CRIU's notification that all images are complete and closed, and that it holds the tasks still. Source: `ACT_POST_DUMP`,
/// `cr_dump_finish` in `criu/cr-dump.c`. Only its log and its statistics are written after.
const POST_DUMP: &str = "post-dump";

impl RunningDump {
    /// Waits until the images are complete, no longer than `limit`. CRIU holds on to the tasks until [`RunningDump::let_go`]; by
    /// ptrace alone, where nobody freezes the cgroup anew: it has thawed it to seize them (`freeze_processes` in `criu/seize.c`).
    ///
    /// # Errors
    /// [`CriuError::Dump`]: CRIU said no, has ended, and left the tasks as they were found: frozen. Every other error
    /// means that CRIU itself broke; it has ended or is about to.
    pub fn wait(&mut self, limit: Duration) -> Result<Waited, CriuError> {
        let deadline = Instant::now() + limit;
        while !self.complete {
            match self.hear(deadline)? {
                None => return Ok(Waited::Overdue),
                Some(Heard::Notified(script)) if script == POST_DUMP => self.complete = true,
                Some(Heard::Notified(_)) => self.swrk.ask(&go_on())?,
                Some(Heard::Success) => {
                    let (asked, found) = (RequestType::Notify.into(), RequestType::Dump.into());
                    return Err(CriuError::Unexpected { asked, found });
                }
            }
        }
        Ok(Waited::Done)
    }

    /// Makes sure that CRIU has held the tasks until now. What was told to freeze before this does so whenever it lets go of them or dies:
    /// a process that ends closes its files before the kernel releases what it traces (`do_exit` in linux `kernel/exit.c`).
    ///
    /// # Errors
    /// [`CriuError::Vanished`]: the tasks may have run, and the images are not their state any more.
    pub fn still_holds(&self) -> Result<(), CriuError> {
        if self.complete && self.swrk.is_silent() {
            return Ok(());
        }
        Err(CriuError::Vanished { log: last_errors(&self.log, LOG_LINES) })
    }

    /// Has CRIU let go of the tasks, wherever it is, and waits for that no longer than `limit`. The cgroup is frozen then as it was
    /// found: CRIU does that before it lets go (`pstree_switch_state` in `criu/seize.c`).
    ///
    /// # Errors
    /// As [`RunningDump::wait`]. Images that were complete are so whatever this says.
    pub fn let_go(&mut self, limit: Duration) -> Result<Waited, CriuError> {
        let deadline = Instant::now() + limit;
        if std::mem::take(&mut self.complete) {
            self.swrk.ask(&go_on())?;
        }
        loop {
            match self.hear(deadline)? {
                None => return Ok(Waited::Overdue),
                Some(Heard::Notified(_)) => self.swrk.ask(&go_on())?,
                Some(Heard::Success) => return Ok(Waited::Done),
            }
        }
    }

    /// What CRIU says next; none where it says nothing before `deadline`.
    fn hear(&mut self, deadline: Instant) -> Result<Option<Heard>, CriuError> {
        let response = match self.swrk.answer(deadline.saturating_duration_since(Instant::now())) {
            Ok(Some(response)) => response,
            Ok(None) => return Ok(None),
            Err(CriuError::Vanished { .. }) => {
                self.swrk.finish()?;
                return Err(CriuError::Vanished { log: last_errors(&self.log, LOG_LINES) });
            }
            Err(error) => return Err(error),
        };
        if response.r#type == i32::from(RequestType::Notify) {
            return Ok(Some(Heard::Notified(response.notify.and_then(|notify| notify.script).unwrap_or_default())));
        }
        if response.success && response.r#type == i32::from(RequestType::Dump) {
            return Ok(Some(Heard::Success));
        }
        self.swrk.finish()?;
        Err(refused(&response, &self.log))
    }
}

/// What CRIU says in a dump.
#[derive(Debug)]
enum Heard {
    /// It waits for the answer to this notification.
    Notified(String),
    /// It has made the dump, has let go of the tasks, and ends.
    Success,
}

fn open_directory(path: &Path) -> Result<OwnedFd, CriuError> {
    File::open(path).map(OwnedFd::from).map_err(|source| CriuError::Directory { path: path.to_owned(), source })
}
