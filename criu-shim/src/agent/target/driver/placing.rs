//! Files on their way into place before the freeze: from when the new container waits at the relay, each round as it lands. The
//! source hears what is in place, and freezes when nothing but its last round is left to be put there. Archives of that one are put
//! there while they land, and the release waits for what is left.

use super::TargetDriver;
use super::lane::Lane;
use crate::agent::duty::LaneLocal;
use crate::agent::failure::retryable;
use crate::agent::target::event::Event;
use crate::agent::target::stage::{self, Arriving, Placed, Trees};
use crate::agent::transfer::growing::Growing;
use crate::agent::transfer::message::FromTarget;
use crate::cache::Wanted;
use crate::causes::chain;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tideover_crds::{Failure, FailureReason, TargetStep};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Archives that land and that the driver has not heard of yet, at most.
const FOLLOWED: usize = 8;
/// How long the disk may take for what was put in place before the source hears that it was.
const DISK_LIMIT: Duration = Duration::from_secs(15);

/// The work of one attempt. It outlives the containers of the replacement that kubelet gives up: what lies in the pod's volumes
/// stays there, and only the layer is put in place for each anew.
#[derive(Debug, Default)]
pub(super) struct Placing {
    placed: Arc<Mutex<Placed>>,
    /// Archives of the last round, from when they begin to land.
    arriving: Arriving,
    off: Option<Arc<AtomicBool>>,
    /// The container that the task began with is no longer there.
    gone: Arc<AtomicBool>,
    task: Option<JoinHandle<()>>,
    /// How often it was begun. What is heard of another time means nothing.
    number: u64,
    /// Something has landed since the task began, or another container has come.
    more: bool,
    /// The last round that has landed.
    landed: u32,
    /// The last round that had when the task began.
    up_to: u32,
    /// Files of the container that are read ahead.
    warming: Option<Wanted>,
}

impl Placing {
    /// Waits until nothing is under way.
    pub(super) async fn settle(&mut self) {
        if let Some(task) = self.task.take() {
            // What came of it is an event, and seen again by whoever needs it to have worked.
            task.await.ok();
        }
        if self.off.as_ref().is_some_and(|off| off.load(Ordering::Relaxed)) {
            // It may have ended in the middle.
            self.forget();
        }
    }

    fn forget(&mut self) {
        *self = Self { number: self.number, landed: self.landed, ..Self::default() };
    }

    /// Ends what is under way, and forgets what is in place.
    pub(super) async fn stop(&mut self) {
        self.call_off();
        self.settle().await;
        self.forget();
    }

    /// Nobody wants it any more. It ends soon.
    pub(super) fn call_off(&mut self) {
        self.warming = None;
        self.off.iter().for_each(|off| off.store(true, Ordering::Relaxed));
    }

    /// The container is on its way out: nothing more goes into its layer.
    pub(super) fn leave_container(&mut self) {
        self.warming = None;
        self.gone.store(true, Ordering::Relaxed);
    }

    /// A round has landed.
    pub(super) fn landed(&mut self, round: u32) {
        self.landed = round;
    }

    /// All that has landed is put in place by somebody else from now on.
    pub(super) fn hand_over(&mut self) {
        self.warming = None;
        self.more = false;
    }

    /// Files are about to be read ahead. For who reads: whether nobody wants it any more.
    pub(super) fn warms(&mut self) -> Arc<AtomicBool> {
        self.warming.insert(Wanted::default()).off()
    }

    /// What is in place.
    pub(super) fn placed(&self) -> Arc<Mutex<Placed>> {
        self.placed.clone()
    }
}

impl TargetDriver {
    /// Has the driver hear of the archives of a container that begin to land.
    pub(super) fn follower(&self, attempt: u32, container: &str) -> mpsc::Sender<Growing> {
        let (follower, mut archives) = mpsc::channel(FOLLOWED);
        let (events, container) = (self.own_events.clone(), container.to_owned());
        // It ends with where they land.
        tokio::spawn(async move {
            while let Some(archive) = archives.recv().await {
                let container = container.clone();
                if events.send(Event::Archive { attempt, container, archive }).await.is_err() {
                    return;
                }
            }
        });
        follower
    }

    /// An archive of the last round begins to land. It is put in place meanwhile where the container waits already: the source is frozen.
    pub(super) fn archive_lands(&mut self, lane: usize, archive: Growing) {
        // What has failed is on its way out, and would be kept from that.
        let over = self.local.failed && !self.committed_here();
        let Lane { local, placing, .. } = &mut self.lanes[lane];
        // Where no container waits yet, it is put in place with all others, from the disk.
        if local.waiting && !local.released && !over {
            placing.arriving.add(archive);
            self.place_what_landed(lane);
        }
    }

    /// Begins to put in place what has landed, for the restore that waits; what is under way goes on.
    pub(super) fn place_what_landed(&mut self, lane: usize) {
        let (context, directory, which) = (self.context.clone(), self.lane_directory(lane), self.trees());
        let (events, container) = (self.own_events.clone(), self.lanes[lane].container.clone());
        let Lane { restore, placing, .. } = &mut self.lanes[lane];
        let Some(restore) = restore.clone() else { return };
        placing.more = placing.task.is_some();
        if placing.more {
            return;
        }
        let placed = placing.placed();
        placing.off = Some(placed.lock().unwrap_or_else(PoisonError::into_inner).off_switch());
        let gone = Arc::new(AtomicBool::new(false));
        placing.gone = gone.clone();
        placing.up_to = placing.landed;
        placing.number += 1;
        let (number, arriving) = (placing.number, placing.arriving.clone());
        placing.task = Some(tokio::spawn(async move {
            let placing = tokio::task::spawn_blocking(move || {
                let mut placed = placed.lock().unwrap_or_else(PoisonError::into_inner);
                stage::place_arriving(&context, &directory, &restore, which, &mut placed, &gone, &arriving)?;
                Ok(placed.heavy())
            });
            let result =
                placing.await.unwrap_or_else(|error| Err(retryable(FailureReason::RestoreFailed, chain(&error))));
            // Told by another task, because the driver may be waiting for this one and not for events; and a release must not wait
            // for a disk.
            tokio::spawn(async move {
                let result = match result {
                    Ok(heavy) if heavy.is_empty() => Ok(()),
                    Ok(heavy) => {
                        let disk = tokio::task::spawn_blocking(move || stage::bring_to_disk(&heavy));
                        tokio::time::timeout(DISK_LIMIT, disk).await.ok();
                        Ok(())
                    }
                    Err(failure) => Err(failure),
                };
                events.send(Event::Placed { container, number, result }).await.ok()
            });
        }));
    }

    /// Which trees may still be put in place. The volumes are the pod's: what one container's CRIU opens there, or its processes write,
    /// must not be replaced for another one. They were in place before any CRIU had its request.
    pub(super) fn trees(&self) -> Trees {
        let unreleased = self.unreleased.is_some();
        if self.lanes.iter().any(|lane| lane.may_use_volumes(unreleased)) { Trees::LayerOnly } else { Trees::All }
    }

    /// What had landed for a container when it was begun for the `number`th time is in place.
    pub(super) async fn were_placed(&mut self, lane: usize, number: u64, result: Result<(), Failure>) {
        let placing = &mut self.lanes[lane].placing;
        if number != placing.number {
            return;
        }
        let (up_to, in_container) = (placing.up_to, !placing.gone.load(Ordering::Relaxed));
        placing.settle().await;
        let LaneLocal { released, waiting, .. } = self.lanes[lane].local;
        match result {
            // What was released has been put in place anew since.
            Err(_) if released => {}
            Err(failure) if in_container => self.fail(failure).await,
            // Its files went with the container. What else there is to it is met again for the next one.
            Err(_) => {}
            Ok(()) if in_container && waiting => {
                self.lanes[lane].in_place = true;
                let all = self.lanes.iter().all(|lane| lane.in_place);
                if all && self.report.step < TargetStep::Waiting && !self.local.failed && !self.pod().staged {
                    self.reach(TargetStep::Waiting);
                }
                self.tell_source_of(lane, FromTarget::Placed { round: up_to }).await;
            }
            Ok(()) => {}
        }
        let lane_again = &mut self.lanes[lane];
        if std::mem::take(&mut lane_again.placing.more) && lane_again.local.waiting {
            self.place_what_landed(lane);
        }
    }
}
