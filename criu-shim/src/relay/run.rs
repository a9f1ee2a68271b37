//! The relay as a process: taking over from runc, and carrying out what [`super::state`] says.

use super::agent::AgentLine;
use super::ahead::{AheadError, Fifo, Gate};
use super::handover::{self, Side};
use super::mounts::{self, MountsError};
use super::pages::{PageDaemon, PagesError};
use super::pass::{self, Packet};
use super::request::{self, Directories, RequestError, RestoreRequest};
use super::state::{Act, Event, POST_RESTORE, State};
use super::system_v::{self, PodObjects, SystemVError};
use super::take;
use crate::causes::chain;
use crate::criu::bundle::BundleError;
use crate::criu::rpc::{Notify, Request, RequestType, Response};
use crate::criu::{Bundle, CriuProgram, first_error, last_errors};
use crate::local::{AHEAD_ENV, Ahead, BUNDLE_ENV, FromRelay, PagesAt, ReleaseOptions, SILENCE, SOCKET, TOKEN_ENV};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use prost::Message;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use thiserror::Error;

/// How often the relay looks whether the line to the agent is up, milliseconds.
const TICK_MILLIS: u16 = 100;

/// How many error lines of CRIU's log explain a failure.
const LOG_LINES: usize = 4;

/// Why a restore could not be relayed.
#[derive(Debug, Error)]
enum RelayError {
    #[error("take the socket that runc named")]
    Socket(#[source] std::io::Error),
    #[error("receive runc's request")]
    Receive(#[source] std::io::Error),
    #[error("read runc's request")]
    Request(#[from] RequestError),
    #[error("runc's request names no image directory")]
    NoDirectory,
    #[error("take runc's directories")]
    Directories(#[source] std::io::Error),
    #[error("read what to do before the images are there")]
    Ahead(#[source] serde_json::Error),
    #[error("make a socket pair for CRIU")]
    SocketPair(#[source] std::io::Error),
    #[error("split off the relay")]
    Split(#[source] std::io::Error),
    #[error("enter the pod's namespaces")]
    Enter(#[source] std::io::Error),
    #[error("find the container's cgroups")]
    Cgroups(#[source] std::io::Error),
    /// It is needed for hooks, and for what belongs into `/dev`.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error("make mounts for CRIU")]
    Mounts(#[from] MountsError),
    #[error("tell who stands in the container's place")]
    StandIn(#[source] std::io::Error),
    #[error("execute CRIU")]
    Execute(#[source] std::io::Error),
}

/// Why something can't be done for CRIU that it relies on.
#[derive(Debug, Error)]
enum ActError {
    #[error(transparent)]
    Pages(#[from] PagesError),
    #[error(transparent)]
    SystemV(#[from] SystemVError),
    #[error(transparent)]
    Ahead(#[from] AheadError),
}

/// The program `criu`: relays a restore that has a token, and becomes the real CRIU for everything else.
pub fn main() -> ExitCode {
    let program = CriuProgram::installed();
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let token = std::env::var(TOKEN_ENV).ok().filter(|token| !token.is_empty());
    let bundle = std::env::var_os(BUNDLE_ENV).map(PathBuf::from);
    let result = match (arguments.as_slice(), token) {
        ([command, number], Some(token)) if command == "swrk" => {
            swrk(&program, &number.to_string_lossy(), token, bundle)
        }
        _ => Err(RelayError::Execute(handover::become_criu(&program, &arguments))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Standard error is the container's. runc sees that its CRIU has gone; the agent hears the reason, if the relay is
        // there to tell it.
        Err(_) => ExitCode::FAILURE,
    }
}

fn swrk(program: &CriuProgram, number: &str, token: String, bundle: Option<PathBuf>) -> Result<(), RelayError> {
    let runc = take::named(number).map_err(RelayError::Socket)?;
    let peeked = pass::peek(runc.as_fd()).map_err(RelayError::Receive)?;
    if !peeked.is_some_and(|packet| request::is_restore(&packet.bytes)) {
        let number = runc.into_raw_fd().to_string();
        return Err(RelayError::Execute(handover::become_criu(program, &["swrk".into(), number.into()])));
    }
    let packet = pass::receive(runc.as_fd()).map_err(RelayError::Receive)?.ok_or(RequestError::NoOptions)?;
    let runc = take::high(runc).map_err(RelayError::Socket)?;
    let request = RestoreRequest::decode(&packet.bytes)?;
    let of_runc = request.directories().ok_or(RelayError::NoDirectory)?;
    let (images, work) = take::directories(of_runc).map_err(RelayError::Directories)?;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(|errno| RelayError::SocketPair(errno.into()))?;
    let ours = take::high(ours).map_err(RelayError::SocketPair)?;
    let theirs = take::inheritable(theirs).map_err(RelayError::SocketPair)?;

    // Before the split, so that the relay can tell the agent what went wrong.
    let place = prepare(&request, bundle);
    let ahead =
        std::env::var(AHEAD_ENV).ok().map(|text| serde_json::from_str(&text).map_err(RelayError::Ahead)).transpose();

    // The side that becomes CRIU is this process still.
    let pid = i32::try_from(std::process::id()).ok();
    match handover::split().map_err(RelayError::Split)? {
        Side::Criu => {
            drop((runc, ours));
            place?;
            handover::tell_stand_in().map_err(RelayError::StandIn)?;
            let socket = theirs.as_raw_fd().to_string();
            let arguments = ["--no-default-config".into(), "swrk".into(), socket.into()];
            Err(RelayError::Execute(handover::become_criu(&program.clone().keeping_ipc(), &arguments)))
        }
        Side::Relay => {
            let directories = Directories { images: images.as_raw_fd(), work: work.as_ref().map(AsRawFd::as_raw_fd) };
            // Not inherited by what the relay starts.
            let again = images.try_clone().map_err(RelayError::Directories)?;
            let relay = Relay {
                images: take::high(again).map_err(RelayError::Directories)?,
                runc,
                criu: ours,
                log: log_path(&request, work.as_ref()),
                work,
                line: AgentLine::new(PathBuf::from(SOCKET), token, pid),
                state: State::new(place.as_ref().is_ok_and(|place| place.has_hooks)),
                request,
                directories,
                place: Place::default(),
                packet: None,
                root_task: None,
                answer: None,
                page_daemon: None,
                system_v: None,
                gate: None,
            };
            // CRIU's alone from here on; `detach` closes this process' copies.
            let _ = (images.into_raw_fd(), theirs.into_raw_fd());
            relay.serve(place, ahead);
            Ok(())
        }
    }
}

/// Where CRIU will work.
#[derive(Debug, Default)]
struct Place {
    /// Mounts made for CRIU: name in the image, path.
    mounts: BTreeMap<String, PathBuf>,
    /// The IPC namespace is another than the node's.
    own_ipc: bool,
    /// runc runs something once the container's namespaces are there.
    has_hooks: bool,
}

/// Enters the new pod's namespaces and makes the mounts that the dump left out.
fn prepare(request: &RestoreRequest, bundle: Option<PathBuf>) -> Result<Place, RelayError> {
    let node = system_v::namespace().map_err(RelayError::Enter)?;
    let network = request.network_namespace().map(take::inherited).transpose().map_err(RelayError::Enter)?;
    handover::enter(network, &request.joined_namespaces()).map_err(RelayError::Enter)?;
    let own_ipc = system_v::namespace().map_err(RelayError::Enter)? != node;
    let bound = request.cgroup_mounts();
    let read = |path: &str| std::fs::read_to_string(path).map_err(RelayError::Cgroups);
    let mut mounts = mounts::own_cgroups(&bound, &read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?);
    // Where they can't be known, runc is asked.
    let mut has_hooks = true;
    if let Some(bundle) = bundle {
        let spec = Bundle::read(&bundle, Path::new("/"))?.spec;
        has_hooks = spec.hooks.are_any();
        mounts.extend(mounts::make(&spec, bound.iter().map(|(key, _)| key.as_path()))?);
    }
    Ok(Place { mounts, own_ipc, has_hooks })
}

fn log_path(request: &RestoreRequest, work: Option<&OwnedFd>) -> Option<PathBuf> {
    Some(PathBuf::from(format!("/proc/self/fd/{}", work?.as_raw_fd())).join(request.log_file()?))
}

/// The relaying process.
#[derive(Debug)]
struct Relay {
    runc: OwnedFd,
    criu: OwnedFd,
    images: OwnedFd,
    work: Option<OwnedFd>,
    log: Option<PathBuf>,
    line: AgentLine,
    state: State,
    request: RestoreRequest,
    directories: Directories,
    place: Place,
    /// What came last from CRIU or runc; kept while it is held.
    packet: Option<Packet>,
    /// The root task, as CRIU has named it last.
    root_task: Option<i32>,
    /// CRIU's last answer.
    answer: Option<Response>,
    /// Where there is one.
    page_daemon: Option<PageDaemon>,
    /// Where CRIU makes any.
    system_v: Option<PodObjects>,
    /// Where CRIU has its request and waits for the images, and the request.
    gate: Option<(Gate, Vec<u8>)>,
}

impl Relay {
    fn serve(mut self, place: Result<Place, RelayError>, ahead: Result<Option<Ahead>, RelayError>) {
        let keep: Vec<&OwnedFd> =
            [&self.runc, &self.criu, &self.images].into_iter().chain(self.work.as_ref()).collect();
        if let Err(error) = handover::detach(&keep) {
            return self.end(false, &format!("the relay could not leave the container: {error}"));
        }
        match place {
            Ok(place) => self.place = place,
            Err(error) => return self.end(false, &chain(&error)),
        }
        // Before the agent hears of this restore: an image that lands is not met by what CRIU waits at.
        match ahead {
            Ok(None) => {}
            Ok(Some(ahead)) => {
                if let Err(error) = self.go_ahead(&ahead) {
                    return self.end(false, &chain(&error));
                }
            }
            Err(error) => return self.end(false, &chain(&error)),
        }
        loop {
            for event in self.wait() {
                let (state, acts) = self.state.step(event);
                self.state = state;
                for act in acts {
                    if let Act::End { success, reason } = act {
                        return self.end(success, reason);
                    }
                    if let Err(error) = self.act(act) {
                        return self.end(false, &chain(&error));
                    }
                }
            }
        }
    }

    /// What has happened, after no more than a tick.
    fn wait(&mut self) -> Vec<Event> {
        self.line.keep_up(self.state.stage);
        let [criu, runc, agent] = self.poll();
        let mut events = Vec::new();
        // One packet at a time, because an event is about the packet that came last.
        if criu {
            events.push(self.receive_from_criu());
        } else if runc {
            events.push(self.receive_from_runc());
        } else if agent {
            events.extend(self.line.receive().into_iter().map(Event::Agent));
        } else if self.line.silence() > SILENCE {
            events.push(Event::Silence);
        }
        events
    }

    fn poll(&self) -> [bool; 3] {
        let mut ready: Vec<PollFd> = [Some(self.criu.as_fd()), self.runc_descriptor(), self.line.descriptor()]
            .into_iter()
            .flatten()
            .map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN))
            .collect();
        // A failed poll is a tick without news.
        if poll(&mut ready, PollTimeout::from(TICK_MILLIS)).is_err() {
            return [false; 3];
        }
        let mut ready = ready.iter().map(|descriptor| descriptor.any() == Some(true));
        let mut next = |present: bool| present && ready.next() == Some(true);
        [next(true), next(self.runc_descriptor().is_some()), next(self.line.descriptor().is_some())]
    }

    /// runc's socket, while runc is there; a closed one would be ready all the time.
    fn runc_descriptor(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        (!self.state.orphaned).then(|| self.runc.as_fd())
    }

    fn receive_from_criu(&mut self) -> Event {
        let Ok(Some(packet)) = pass::receive(self.criu.as_fd()) else { return Event::CriuGone };
        let Ok(response) = Response::decode(packet.bytes.as_slice()) else { return Event::CriuGone };
        self.packet = Some(packet);
        if response.r#type == i32::from(RequestType::Notify) {
            let notify = response.notify.unwrap_or_default();
            self.root_task = notify.pid.or(self.root_task);
            return Event::Notified(notify.script.unwrap_or_default());
        }
        let success = response.success;
        self.answer = Some(response);
        Event::Answered { success }
    }

    fn receive_from_runc(&mut self) -> Event {
        match pass::receive(self.runc.as_fd()) {
            Ok(Some(packet)) => {
                // What is no answer is CRIU's to judge.
                let answer = Request::decode(packet.bytes.as_slice()).ok();
                let success = answer.is_none_or(|answer| answer.notify_success != Some(false));
                self.packet = Some(packet);
                Event::Runc { success }
            }
            _ => Event::RuncGone,
        }
    }

    /// A send that fails is no event of its own: the other side has hung up, and the next wait says so.
    ///
    /// # Errors
    /// Where memory would be missing after the restore, or System V objects not be as they were: CRIU was not asked for it then,
    /// or fails when this hangs up.
    fn act(&mut self, act: Act) -> Result<(), ActError> {
        let sent = match act {
            Act::Release(mut options) => {
                if let Some(pages) = &options.pages {
                    self.page_daemon(&pages.at)?.serve(&pages.pids)?;
                }
                if let Some(system_v) = options.system_v.take() {
                    self.system_v = Some(PodObjects::none_but(system_v, self.place.own_ipc)?);
                }
                let bytes = self.request_for(&options);
                match self.gate.take() {
                    Some((gate, asked)) if asked == bytes => return Ok(gate.open(self.images.as_fd())?),
                    Some(_) => return Err(AheadError::Changed.into()),
                    None => pass::send(self.criu.as_fd(), &Packet { bytes, descriptors: Vec::new() }),
                }
            }
            Act::MarkRemoved => {
                return self.system_v.as_ref().map_or(Ok(()), |objects| Ok(objects.mark_removed()?));
            }
            Act::ToRunc => self.packet.take().map_or(Ok(()), |packet| pass::send(self.runc.as_fd(), &packet)),
            Act::ToCriu => self.packet.take().map_or(Ok(()), |packet| pass::send(self.criu.as_fd(), &packet)),
            Act::GoOn | Act::Resume => self.answer_criu(true),
            Act::Refuse => self.answer_criu(false),
            Act::Announce => {
                let notify = Notify { script: Some(POST_RESTORE.to_owned()), pid: self.root_task };
                let r#type = RequestType::Notify.into();
                let told = Response { r#type, success: true, notify: Some(notify), ..Default::default() };
                pass::send(self.runc.as_fd(), &Packet { bytes: told.encode_to_vec(), descriptors: Vec::new() })
            }
            Act::Tell(message) => {
                self.line.tell(&message);
                Ok(())
            }
            Act::End { .. } => Ok(()),
        };
        drop(sent);
        Ok(())
    }

    /// Starts what brings memory after the restore. Gives CRIU its request before the images are there, and waits until it has come to
    /// them.
    fn go_ahead(&mut self, ahead: &Ahead) -> Result<(), ActError> {
        self.page_daemon(&ahead.pages)?;
        let Some(options) = &ahead.request else { return Ok(()) };
        let Some(fifo) = Fifo::make(self.images.as_fd())? else { return Ok(()) };
        let bytes = self.request_for(options);
        // Where it fails, CRIU is gone, and the wait ends for that.
        drop(pass::send(self.criu.as_fd(), &Packet { bytes: bytes.clone(), descriptors: Vec::new() }));
        let gate = fifo.await_criu(self.images.as_fd(), self.criu.as_fd())?;
        self.gate = Some((gate, bytes));
        Ok(())
    }

    /// The request that CRIU gets, with the mounts that were made for it.
    fn request_for(&self, options: &ReleaseOptions) -> Vec<u8> {
        let mut options = options.clone();
        for (name, path) in &self.place.mounts {
            options.external_mounts.entry(name.clone()).or_insert_with(|| path.clone());
        }
        self.request.edit(self.directories, &options)
    }

    /// Answers CRIU's notification.
    fn answer_criu(&self, success: bool) -> std::io::Result<()> {
        let answer =
            Request { r#type: RequestType::Notify.into(), notify_success: Some(success), ..Default::default() };
        pass::send(self.criu.as_fd(), &Packet { bytes: answer.encode_to_vec(), descriptors: Vec::new() })
    }

    /// The one that was started before, or a new one.
    fn page_daemon(&mut self, at: &PagesAt) -> Result<&mut PageDaemon, PagesError> {
        let daemon = match self.page_daemon.take() {
            Some(daemon) => daemon,
            None => PageDaemon::start(at)?,
        };
        Ok(self.page_daemon.insert(daemon))
    }

    fn end(mut self, success: bool, reason: &str) {
        drop(self.gate.take());
        // Untied, the page daemon fills in what nobody waits for: CRIU is out of its way.
        drop(self.page_daemon.take());
        let mut message = if success { String::new() } else { self.explain(reason) };
        // What processes may use that run already stays, whatever CRIU has said after.
        if !success
            && !self.state.resumed
            && let Some(Err(error)) = self.system_v.take().map(PodObjects::remove)
        {
            message = format!("{message}; {}", chain(&error));
        }
        self.line.tell_the_end(&FromRelay::Ended { success, message }, self.state.stage);
    }

    /// Our own reason, CRIU's first error and the last ones of its log.
    fn explain(&self, reason: &str) -> String {
        let mut parts = vec![reason.to_owned()];
        if let Some(answer) = &self.answer {
            parts.extend(first_error(answer.cr_errmsg.as_deref()));
            parts.extend(answer.cr_errno.filter(|errno| *errno != 0).map(|errno| format!("errno {errno}")));
        }
        parts.extend(self.log.iter().flat_map(|log| last_errors(log, LOG_LINES)));
        parts.retain(|part| !part.is_empty());
        parts.dedup();
        parts.join("; ")
    }
}
