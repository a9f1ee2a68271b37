//! A whole move on one machine without Kubernetes: a real container under runc, rounds of its memory by each engine, freeze, dump by our
//! CRIU, transfer, restore by runc, relay and page daemon into another container, and every page compared before it runs.
//!
//! The test plays operator and API server, which know nothing of all that, and the target's agent where that speaks with the relay.
//! Needs Tideover's programs where they are on a node, and puts a socket there: only in the tests' virtual machine.

mod application;
mod pod;
mod relay;

use super::connect::EARLY;
use super::frozen::{FrozenContainer, FrozenPod};
use super::precopy::{self, Followed, PreCopy, Trees};
use super::round::{self, Going, Line};
use super::watching::Watching;
use crate::agent::room::Room;
use crate::agent::transfer::link::{self, LinkReceiver, LinkSender};
use crate::agent::transfer::message::{FromSource, FromTarget, IMAGES, MEMORY};
use crate::agent::transfer::receive::{Landing, RoundKind, WORK};
use crate::agent::transfer::{send, stored};
use crate::criu::{Bundle, CriuProgram, DumpOptions, DumpRequest, Memory, Place, WarmCriu, descriptors, mount_image};
use crate::freezer::{Freezer, FreezerState};
use crate::local::{Ahead, Pages, PagesAt, ReleaseOptions};
use crate::memory::{Attached, Comparer, Engine, Injector, SoftDirty, Tracker};
use crate::pages::daemon::Status;
use crate::pages::store;
use crate::throttle::CpuLimits;
use application::Snapshot;
use pod::{Pod, QUOTA};
use relay::Relay;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tideover_crds::MemoryEngine;
use tokio::sync::watch;

/// How long anything may take. The processor is emulated.
const LIMIT: Duration = Duration::from_secs(300);

/// Rounds while the application writes.
const ROUNDS: usize = 4;

#[test]
#[ignore = "needs a node's file system: make test-vm"]
fn a_container_goes_on_as_another_by_write_protection() {
    moves("protect", MemoryEngine::WriteProtect, |pid, injector| {
        Ok(Attached { engine: Engine::WriteProtect(Box::new(Tracker::attach(pid, injector)?)), instead: Vec::new() })
    });
}

#[test]
#[ignore = "needs a node's file system: make test-vm"]
fn a_container_goes_on_as_another_by_soft_dirty_marks() {
    moves("marks", MemoryEngine::SoftDirty, |pid, _| {
        Ok(Attached { engine: Engine::SoftDirty(Box::new(SoftDirty::attach(pid)?)), instead: Vec::new() })
    });
}

#[test]
#[ignore = "needs a node's file system: make test-vm"]
fn a_container_goes_on_as_another_by_comparing() {
    moves("compare", MemoryEngine::ReadAndCompare, |pid, _| {
        Ok(Attached { engine: Engine::ReadAndCompare(Comparer::attach(pid)?), instead: Vec::new() })
    });
}

fn moves(name: &str, engine: MemoryEngine, choose: precopy::Choose) {
    let source = Pod::new(name, "source").start();
    source.until_it_counts_to(20);
    let freezer = Freezer::of_process(source.pid(), Path::new("/")).expect("freezer");
    let followed = Followed::attach_by(freezer.clone(), Injector::Here, choose).expect("follow");
    assert_eq!(followed.engine(), engine);

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    let moved = runtime.block_on(send_all(&source, &freezer, followed));
    drop(runtime);

    assert_eq!(freezer.state().expect("state"), FreezerState::Frozen);
    stored::verify(&moved.landed).expect("what landed is what was sent");
    restore(name, &source, &moved);
    freezer.kill_all(LIMIT).expect("retire the source");
}

/// What a source has sent.
struct Moved {
    /// The attempt's directory on the target.
    landed: PathBuf,
    /// The memory of the frozen process.
    snapshot: Snapshot,
    /// How far the application had counted.
    count: u64,
}

/// Rounds, freeze and dump, to a target that only lands what comes.
async fn send_all(source: &Pod, freezer: &Freezer, followed: Followed) -> Moved {
    let (local, landed) = (source.directory().join("attempt"), source.directory().join("landed"));
    for made in [IMAGES, WORK, EARLY] {
        std::fs::create_dir_all(local.join(made)).expect("directory");
    }
    let found = descriptors::read(source.pid()).expect("descriptors");
    descriptors::write(&local.join(EARLY), &found).expect("descriptors");
    let place = Place { namespaces_of: source.pid(), outside_ipc: false, node_root: "/".into() };
    let program = CriuProgram::installed().withholding();
    WarmCriu::examine(&program, Path::new("/")).expect("examine CRIU");
    let criu = WarmCriu::start(&program, &place).expect("start CRIU");

    let (near, far) = tokio::io::duplex(1 << 20);
    let (sender, mut receiver) = link::open::<_, FromSource, FromTarget>(near);
    let (to_source, from_source) = link::open::<_, FromTarget, FromSource>(far);
    let target = tokio::spawn(land(landed.clone(), from_source, to_source));

    let trees = Trees::new(vec![freezer.clone()], Vec::new());
    let mut rounds = PreCopy::new(Some(followed), trees.clone(), 1);
    for _ in 0..ROUNDS {
        rounds.next(&sender, &mut receiver).await.expect("a round");
        source.until_it_counts_on();
    }
    rounds.at_the_go();
    rounds.next(&sender, &mut receiver).await.expect("the round at the go");
    let (mut followed, number) = rounds.finish().expect("rounds");

    let mut limits = CpuLimits::of_process(source.pid(), Path::new("/")).expect("limits");
    limits.plan_lift().expect("plan");
    let request = DumpRequest {
        pid: source.pid(),
        images_dir: local.join(IMAGES),
        work_dir: local.join(WORK),
        freeze_cgroup: freezer.path_in_node().to_owned(),
        bundle: Bundle::read(source.bundle(), Path::new("/")).expect("bundle"),
        options: DumpOptions { memory: Memory::ButWithheld, ..DumpOptions::default() },
    };
    let criu = round::begin(criu, request).await.expect("CRIU waits for the word");
    let (pod, froze) = FrozenPod::freeze(vec![FrozenContainer { freezer: freezer.clone(), limits }]);
    froze.expect("freeze");
    let (snapshot, count) = (Snapshot::of(source.pid()), source.count());
    assert_eq!(source.cpu_quota(), "max", "no limit holds up a dump");
    let (_migration, mut news) = watch::channel(None);
    let mut watching = Watching::within(&mut news, 1, LIMIT);
    let mut line = Line { receiver: &mut receiver, watching: &mut watching };
    let going = Going { freezer, trees, number, last: true, followed: &mut followed, stays_frozen: true };
    let log = local.join(WORK).join("dump.log");
    let dumped = line.dump(send::begin(&sender, number, true), criu, going).await;
    let mut dumped = dumped.unwrap_or_else(|error| panic!("{error:?}; {}", said(&log)));
    let held = dumped.held.take().expect("CRIU keeps hold of it");
    assert_ne!(freezer.state().expect("its state"), FreezerState::Thawed, "it would run if CRIU died");
    let manifest = line.images(dumped, vec![local.join(IMAGES), local.join(EARLY)], || Ok(())).await.expect("images");
    line.verified(number, &manifest.digest()).await.expect("landed");
    round::let_go_of(held).await.expect("CRIU ends");
    target.await.expect("the target");
    // Nothing but its guard knows that it is frozen; the test ends it.
    drop((pod, followed));
    Moved { landed, snapshot, count }
}

/// The target as far as rounds go.
async fn land(directory: PathBuf, mut link: LinkReceiver<FromSource>, to_source: LinkSender<FromTarget>) {
    let share = Room::new(|| u64::MAX).promise(0).expect("room");
    let mut landing = Landing::create(&directory, share).expect("landing");
    loop {
        let round = landing.round(&mut link).await.expect("a round");
        let (number, digest) = (round.number, round.manifest.digest());
        to_source.say(&FromTarget::Verified { round: number, digest }).await.expect("say");
        if round.kind == RoundKind::Last {
            return;
        }
        to_source.say(&FromTarget::Placed { round: number }).await.expect("say");
    }
}

/// Restores, compares while it is held, lets it run, and ends it.
fn restore(name: &str, source: &Pod, moved: &Moved) {
    let (images, work) = (moved.landed.join(IMAGES), moved.landed.join(WORK));
    let at = PagesAt { store: moved.landed.join(MEMORY), work: work.clone() };
    let pids = store::pids(&at.store).expect("stores");
    assert!(!pids.is_empty(), "its memory has crossed before the dump");
    let target = Pod::beside(source, name, "target");
    let listening = Relay::listen();
    let DumpOptions { ghost_limit, log_level, .. } = DumpOptions::default();
    let options = ReleaseOptions {
        log_level,
        ghost_limit,
        file_locks: true,
        link_remap: true,
        pages: Some(Pages { at: at.clone(), pids: Vec::new() }),
        external_mounts: BTreeMap::new(),
        system_v: None,
        older_mounts: !mount_image::has_peers(&images).expect("an image of its mounts"),
    };
    // CRIU has its request before the first of its images is there.
    let (inventory, aside) = (images.join("inventory.img"), work.join("inventory.img"));
    std::fs::rename(&inventory, &aside).expect("aside");
    let restoring = target.restore(&images, &work, &Ahead { pages: at.clone(), request: Some(options.clone()) });
    let mut relay = Relay::accept(&listening, target.token());
    assert!(!inventory.exists(), "the name is free");
    std::fs::rename(&aside, &inventory).expect("the image");
    relay.release(ReleaseOptions { pages: Some(Pages { at, pids }), ..options });
    let held = relay.is_held();
    assert!(held.is_ok(), "{held:?}; {}", said(&work.join("restore.log")));

    moved.snapshot.compare(target.pid());
    assert_eq!(target.count(), moved.count, "it does not run yet");
    relay.resume();
    let status = restoring.join().expect("runc");
    assert!(status.success(), "{status}; {}", said(&work.join("restore.log")));
    let begun = Instant::now();
    while Status::read(&work).expect("status") != Some(Status::Complete) {
        assert!(begun.elapsed() < LIMIT, "{:?}; {}", Status::read(&work), said(&work.join("pages.log")));
        std::thread::sleep(Duration::from_millis(5));
    }
    target.until_it_counts_to(moved.count + 20);
    assert_eq!(target.cpu_quota(), QUOTA.to_string(), "its own limit");
    // It compares all of its memory with what it has written, and says so.
    target.until_it_has_checked_itself();
}

fn said(log: &Path) -> String {
    std::fs::read_to_string(log).unwrap_or_default()
}
