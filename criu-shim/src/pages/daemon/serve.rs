//! The daemon's loop.

use super::ahead;
use super::book::{Book, SpaceId};
use super::error::DaemonError;
use super::freeing::Freeing;
use super::guard::Guard;
use super::link::{Heard, Link, listen};
use super::live::{Live, Outcome};
use super::missing::Chunk;
use super::pace::{be_patient, is_one_of_many, is_time_to_fill, rest_after};
use super::status::Status;
use super::tie::{Tie, Told};
use super::userfault::{Message, Userfault};
use super::window::WINDOW;
use crate::cache::Wanted;
use crate::causes::chain;
use crate::local::has_ran_mark;
use crate::pages::store::Store;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Bytes that the background fill puts between two looks at who waits.
const FILL: u64 = 32 << 10;
/// Bytes of the store that are given back at once, and for as long as which the kernel lets nobody else read of it from the disk. On one,
/// a MiB took 0.5 ms by 1 MiB at a time, and 0.3 by four.
const FREE: u64 = 4 << 20;
/// Pause, in milliseconds, before memory is asked for again.
const NO_MEMORY_PAUSE: u16 = 5;
/// How often it is looked whether the processes that were given up are gone.
const HOLD_PAUSE: Duration = Duration::from_millis(50);

const LISTENER: u64 = u64::MAX;
const LINK: u64 = u64::MAX - 1;
const TIE: u64 = u64::MAX - 2;

/// From where to serve. Whom, [`super::tie`] hears.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Directory of the page store.
    pub store: PathBuf,
    /// CRIU's work directory, for the socket and the status.
    pub work: PathBuf,
}

/// Serves one restore until every process has all its pages, or is gone.
///
/// Until CRIU says that it has finished, nothing of a store is used up, and the restore can be tried again with another
/// daemon; of a store that lasts, until the processes have run. After success nothing is missing anywhere, the stores are removed, and the status is [`Status::Complete`]. After a
/// failure the status is [`Status::Failed`], and was so before any userfaultfd was let go of: the processes that lack
/// pages stand still at the first one they need until somebody has ended them, and only then does this return.
///
/// A store is opened when CRIU sends its process: the daemon may be started before the store is finished.
///
/// # Errors
/// Any [`DaemonError`]: the restored processes must not go on.
pub(super) fn serve(settings: &Settings, guard: &Guard) -> Result<(), DaemonError> {
    let mut daemon = Daemon::new(settings, guard).inspect_err(|error| say_failed(settings, error))?;
    match daemon.run() {
        // Said first: the guard holds nothing any more, and whoever finds neither of the two alive relies on this.
        Ok(()) => say(settings, &Status::Complete)
            .and_then(|()| guard.end().map_err(DaemonError::Guard))
            .inspect_err(|error| say_failed(settings, error)),
        Err(error) => {
            say_failed(settings, &error);
            daemon.hold();
            Err(error)
        }
    }
}

fn say(settings: &Settings, status: &Status) -> Result<(), DaemonError> {
    status.write(&settings.work).map_err(|source| DaemonError::Status { path: settings.work.clone(), source })
}

fn say_failed(settings: &Settings, error: &DaemonError) {
    let why = chain(error);
    eprintln!("criu-pages: {why}");
    if let Err(error) = say(settings, &Status::Failed(why)) {
        eprintln!("criu-pages: {}", chain(&error));
    }
}

struct Daemon<'a> {
    settings: &'a Settings,
    guard: &'a Guard,
    epoll: Epoll,
    listener: Option<UnixListener>,
    link: Option<Link>,
    tie: Tie,
    /// Who was announced and has not come yet; none while nobody was announced. Each has a store, even if that is empty.
    expected: Option<BTreeSet<i32>>,
    /// Since when CRIU has restored everything.
    finished: Option<Instant>,
    /// Whether the processes run, or nobody is left who would say so.
    running: bool,
    /// Whether the shim has marked that they have run.
    ran: bool,
    stores: BTreeMap<i32, Store>,
    live: BTreeMap<SpaceId, Live>,
    book: Book,
    /// When a fault was answered last.
    answered: Option<Instant>,
    /// When something was filled in last.
    filled: Option<Instant>,
    /// Since when there has been no memory.
    no_memory_since: Option<Instant>,
    freeing: Freeing,
    /// Until a restore begins.
    ahead: Option<Wanted>,
}

impl<'a> Daemon<'a> {
    fn new(settings: &'a Settings, guard: &'a Guard) -> Result<Self, DaemonError> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|errno| DaemonError::Wait(errno.into()))?;
        Ok(Self {
            settings,
            guard,
            epoll,
            listener: None,
            link: None,
            tie: Tie::default(),
            expected: None,
            finished: None,
            running: false,
            ran: false,
            stores: BTreeMap::new(),
            live: BTreeMap::new(),
            book: Book::default(),
            answered: None,
            filled: None,
            no_memory_since: None,
            freeing: Freeing::default(),
            ahead: None,
        })
    }

    fn run(&mut self) -> Result<(), DaemonError> {
        self.listen()?;
        loop {
            self.hear()?;
            self.answer_faults()?;
            if self.finished.is_some() {
                if self.fills() && !self.listens() {
                    self.fill()?;
                    self.give_back();
                }
                self.let_go_of_full()?;
                if self.live.is_empty() {
                    self.freeing.end();
                    return Ok(());
                }
            }
        }
    }

    fn listen(&mut self) -> Result<(), DaemonError> {
        self.ahead = Some(ahead::begin(&self.settings.store));
        let listener = listen(&self.settings.work)?;
        self.watch(&listener, LISTENER)?;
        self.listener = Some(listener);
        self.watch(&std::io::stdin(), TIE)?;
        say(self.settings, &Status::Listening)
    }

    /// Takes in what CRIU, the processes and their threads say. Waits for it only if there is nothing else to do.
    fn hear(&mut self) -> Result<(), DaemonError> {
        let waiting = self.live.values().any(|live| !live.faults.is_empty());
        let timeout = match (waiting || (self.fills() && self.book.has_work()), self.no_memory_since, self.finished) {
            (true, Some(_), _) => EpollTimeout::from(NO_MEMORY_PAUSE),
            (true, None, _) => EpollTimeout::ZERO,
            (false, _, Some(since)) if !self.fills() => {
                EpollTimeout::try_from(rest_after(since.elapsed())).unwrap_or(EpollTimeout::ZERO)
            }
            (false, ..) => EpollTimeout::NONE,
        };
        let mut events = [EpollEvent::empty(); 64];
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(DaemonError::Wait(errno.into())),
        };
        for event in events.iter().take(count) {
            match event.data() {
                LISTENER => self.accept()?,
                LINK => self.hear_criu()?,
                TIE => self.hear_starter()?,
                number => self.hear_process(SpaceId(number))?,
            }
        }
        Ok(())
    }

    fn hear_starter(&mut self) -> Result<(), DaemonError> {
        match self.tie.read(std::io::stdin()).map_err(DaemonError::Tie)? {
            Told::Nothing => {}
            Told::Serve(pids) => self.expected = Some(pids),
            Told::Gone if self.listener.is_some() => return Err(DaemonError::NobodyCame),
            Told::Gone => {
                self.unwatch(&std::io::stdin());
                self.running = true;
            }
        }
        Ok(())
    }

    /// Who is still to come. CRIU may be heard before the line is, which was written before.
    fn expected(&mut self) -> Result<&mut BTreeSet<i32>, DaemonError> {
        if self.expected.is_none() {
            self.expected = Some(self.tie.read_line(std::io::stdin()).map_err(DaemonError::Tie)?);
        }
        Ok(self.expected.get_or_insert_default())
    }

    /// There is one connection in the life of a daemon.
    fn accept(&mut self) -> Result<(), DaemonError> {
        self.ahead = None;
        if let Some(listener) = self.listener.take() {
            self.unwatch(&listener);
            let link = Link::accept(&listener)?;
            self.watch(&link, LINK)?;
            self.link = Some(link);
        }
        Ok(())
    }

    fn hear_criu(&mut self) -> Result<(), DaemonError> {
        while let Some(link) = &mut self.link {
            match link.hear()? {
                None => break,
                Some(Heard::Process { pid, userfault }) => {
                    let userfault = Userfault::new(userfault).map_err(|source| DaemonError::Read { pid, source })?;
                    self.add(pid, userfault)?;
                }
                Some(Heard::Zombie { pid }) => {
                    self.expected()?.remove(&pid);
                    self.say_if_all_are_here()?;
                }
                Some(Heard::Finished) => {
                    if let Some(pid) = self.expected()?.first() {
                        return Err(DaemonError::LeftOut { pid: *pid });
                    }
                    self.finished = Some(Instant::now());
                    self.close_link();
                }
                Some(Heard::Closed) => return Err(DaemonError::HungUp),
            }
        }
        Ok(())
    }

    fn add(&mut self, pid: i32, userfault: Userfault) -> Result<(), DaemonError> {
        let store = match self.expected().map(|expected| expected.remove(&pid)) {
            Ok(true) => Store::open(&self.settings.store, pid).map_err(|source| DaemonError::Store { pid, source }),
            Ok(false) => Err(DaemonError::Unannounced { pid }),
            Err(error) => Err(error),
        };
        let id = self.book.add(pid, store.as_ref().map_or(&[], Store::extents));
        self.watch(&userfault, id.0)?;
        // Before anything is refused: a process whose userfaultfd is not held sees zeros.
        let held = self.guard.hold(id.0, userfault.as_fd());
        self.live.insert(id, Live::new(pid, userfault));
        held.map_err(DaemonError::Guard)?;
        self.stores.insert(pid, store?);
        self.say_if_all_are_here()
    }

    /// Whoever is about to let the processes run relies on this.
    fn say_if_all_are_here(&mut self) -> Result<(), DaemonError> {
        if self.expected()?.is_empty() { say(self.settings, &Status::Serving) } else { Ok(()) }
    }

    /// Reads all that an address space has to say before any of it is acted on: a fault may be older than a change.
    fn hear_process(&mut self, id: SpaceId) -> Result<(), DaemonError> {
        loop {
            let Some(live) = self.live.get_mut(&id) else { return Ok(()) };
            let pid = live.pid;
            let messages = live.userfault.read().map_err(|source| DaemonError::Read { pid, source })?;
            if messages.is_empty() {
                return Ok(());
            }
            let mut children = Vec::new();
            for message in messages {
                match message {
                    Message::Fault(address) => live.faults.push_back(address),
                    Message::Changed(change) => self.book.change(id, change),
                    Message::Forked(userfault) => children.extend(self.book.fork(id).map(|child| (child, userfault))),
                }
            }
            for (child, userfault) in children {
                let watched = self.watch(&userfault, child.0);
                let held = self.guard.hold(child.0, userfault.as_fd());
                self.live.insert(child, Live::new(pid, userfault));
                watched?;
                held.map_err(DaemonError::Guard)?;
            }
        }
    }

    /// Puts the pages that threads wait for. What can't be put yet is tried again after the next look at the events.
    fn answer_faults(&mut self) -> Result<(), DaemonError> {
        let waited_for: Vec<SpaceId> =
            self.live.iter().filter(|(_, live)| !live.faults.is_empty()).map(|(id, _)| *id).collect();
        for id in waited_for {
            let Some(live) = self.live.get_mut(&id) else { continue };
            for address in std::mem::take(&mut live.faults) {
                live.near = Some(address);
                let window = live.windows.next(address);
                let outcome = match (self.book.around(id, address, window), self.stores.get(&live.pid)) {
                    (Some(chunk), Some(store)) => live.put(id, chunk, store, &mut self.book)?,
                    _ => live.zero(address)?,
                };
                match outcome {
                    Outcome::Done => (self.no_memory_since, self.answered) = (None, Some(Instant::now())),
                    Outcome::Changing => live.faults.push_back(address),
                    Outcome::NoMemory(page) => {
                        live.faults.push_back(address);
                        be_patient(self.no_memory_since.get_or_insert_with(Instant::now).elapsed(), live.pid, page)?;
                    }
                    Outcome::Gone => {
                        self.let_go(id)?;
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether it is time for what nobody waits for yet.
    fn fills(&self) -> bool {
        is_time_to_fill(self.finished.map(|since| since.elapsed()), self.running)
    }

    /// Whether the next fault may be on its way, which is not to wait for a fill.
    fn listens(&self) -> bool {
        let elapsed = |instant: Option<Instant>| instant.map(|instant| instant.elapsed());
        is_one_of_many(elapsed(self.answered), elapsed(self.filled))
    }

    /// Puts the next pages that nobody waits for yet.
    fn fill(&mut self) -> Result<(), DaemonError> {
        self.filled = Some(Instant::now());
        let Some((id, chunk)) = self.near().or_else(|| self.book.next(FILL)) else { return Ok(()) };
        let Some(live) = self.live.get(&id) else { return Ok(()) };
        let Some(store) = self.stores.get(&live.pid) else { return Ok(()) };
        match live.put(id, chunk, store, &mut self.book)? {
            Outcome::Done => self.no_memory_since = None,
            // The next look at the events brings the reason.
            Outcome::Changing => {}
            Outcome::NoMemory(page) => {
                be_patient(self.no_memory_since.get_or_insert_with(Instant::now).elapsed(), live.pid, page)?
            }
            Outcome::Gone => self.let_go(id)?,
        }
        Ok(())
    }

    /// What is around the last fault of an address space, once for each.
    fn near(&mut self) -> Option<(SpaceId, Chunk)> {
        let book = &self.book;
        self.live.iter_mut().find_map(|(id, live)| {
            let chunk = book.beside(*id, live.near.take()?, WINDOW)?;
            Some((*id, Chunk { length: chunk.length.min(FILL), ..chunk }))
        })
    }

    /// Gives back the memory of what no process needs any more, so that it is not used twice for longer than it must.
    fn give_back(&mut self) {
        let has_run = self.has_run();
        for (pid, store) in self.stores.iter().filter(|(_, store)| has_run || !store.lasts()) {
            if let Some(range) = self.book.free(*pid, store.length(), FREE) {
                self.freeing.part(store, range);
            }
        }
    }

    /// The only place where a userfaultfd is closed and all is well: nothing is missing behind it.
    fn let_go_of_full(&mut self) -> Result<(), DaemonError> {
        let full: Vec<SpaceId> = self
            .live
            .iter()
            .filter(|(id, live)| live.faults.is_empty() && self.book.is_full(**id))
            .map(|(id, _)| *id)
            .collect();
        full.into_iter().try_for_each(|id| self.let_go(id))
    }

    /// Closes the userfaultfd of an address space that lacks nothing, or is gone; and its store after the last of them.
    fn let_go(&mut self, id: SpaceId) -> Result<(), DaemonError> {
        if let Some(live) = self.live.remove(&id) {
            self.unwatch(&live.userfault);
            self.guard.let_go(id.0).map_err(DaemonError::Guard)?;
        }
        let Some(pid) = self.book.close(id) else { return Ok(()) };
        let Some(store) = self.stores.remove(&pid) else { return Ok(()) };
        // A restore that is refused before it was finished may be tried again, from the same store. One that lasts is removed with the
        // directory otherwise.
        if self.finished.is_none() || store.lasts() && !self.has_run() {
            return Ok(());
        }
        self.freeing.whole(&store);
        Ok(())
    }

    /// Whether the processes are known to have run: nobody restores them again. That CRIU has finished says less.
    fn has_run(&mut self) -> bool {
        self.ran = self.ran || has_ran_mark(&self.settings.work);
        self.ran
    }

    /// After a failure: keeps every userfaultfd whose process may lack pages until that process is gone. What the
    /// process lacks stays missing, so that it stands still there.
    fn hold(&mut self) {
        self.listener = None;
        self.close_link();
        loop {
            let (book, finished) = (&self.book, self.finished.is_some());
            self.live.retain(|id, live| !(live.userfault.is_gone() || finished && book.is_full(*id)));
            if self.live.is_empty() {
                return;
            }
            std::thread::sleep(HOLD_PAUSE);
        }
    }

    fn close_link(&mut self) {
        if let Some(link) = self.link.take() {
            self.unwatch(&link);
        }
    }

    fn watch(&self, descriptor: &impl AsFd, number: u64) -> Result<(), DaemonError> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, number);
        self.epoll.add(descriptor, event).map_err(|errno| DaemonError::Wait(errno.into()))
    }

    /// Said in so many words, because others may have the same open file.
    fn unwatch(&self, descriptor: &impl AsFd) {
        self.epoll.delete(descriptor).ok();
    }
}
