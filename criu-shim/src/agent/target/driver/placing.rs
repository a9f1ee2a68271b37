//! Files on their way into place before the freeze: from when the new container waits at the relay, each round as it lands. The
//! source hears what is in place, and freezes when nothing but its last round is left to be put there.

use super::TargetDriver;
use crate::agent::failure::retryable;
use crate::agent::target::event::Event;
use crate::agent::target::stage::{self, Placed};
use crate::agent::transfer::message::FromTarget;
use crate::causes::chain;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tideover_crds::{Failure, FailureReason, TargetStep};
use tokio::task::JoinHandle;

/// The work of one attempt. It outlives the containers of the replacement that kubelet gives up: what lies in the pod's volumes
/// stays there, and only the layer is put in place for each anew.
#[derive(Debug, Default)]
pub(super) struct Placing {
    placed: Arc<Mutex<Placed>>,
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

    /// Nobody wants it any more. It ends soon.
    pub(super) fn call_off(&mut self) {
        self.off.iter().for_each(|off| off.store(true, Ordering::Relaxed));
    }

    /// The container is on its way out: nothing more goes into its layer.
    pub(super) fn leave_container(&mut self) {
        self.gone.store(true, Ordering::Relaxed);
    }

    /// A round has landed.
    pub(super) fn landed(&mut self, round: u32) {
        self.landed = round;
    }

    /// All that has landed is put in place by somebody else from now on.
    pub(super) fn hand_over(&mut self) {
        self.more = false;
    }

    /// What is in place.
    pub(super) fn placed(&self) -> Arc<Mutex<Placed>> {
        self.placed.clone()
    }
}

impl TargetDriver {
    /// Begins to put in place what has landed, for the restore that waits; what is under way goes on.
    pub(super) fn place_what_landed(&mut self) {
        let Some(restore) = self.restore.clone() else { return };
        self.placing.more = self.placing.task.is_some();
        if self.placing.more {
            return;
        }
        let (context, directory) = (self.context.clone(), self.directory());
        let (placed, events) = (self.placing.placed(), self.own_events.clone());
        self.placing.off = Some(placed.lock().unwrap_or_else(PoisonError::into_inner).off_switch());
        let gone = Arc::new(AtomicBool::new(false));
        self.placing.gone = gone.clone();
        self.placing.up_to = self.placing.landed;
        self.placing.number += 1;
        let number = self.placing.number;
        self.placing.task = Some(tokio::spawn(async move {
            let placing = tokio::task::spawn_blocking(move || {
                let mut placed = placed.lock().unwrap_or_else(PoisonError::into_inner);
                stage::place_files(&context, &directory, &restore, &mut placed, &gone)
            });
            let result =
                placing.await.unwrap_or_else(|error| Err(retryable(FailureReason::RestoreFailed, chain(&error))));
            // Told by another task, because the driver may be waiting for this one and not for events.
            tokio::spawn(async move { events.send(Event::Placed { number, result }).await.ok() });
        }));
    }

    /// Ends what is under way, and forgets what is in place.
    pub(super) async fn stop_placing(&mut self) {
        self.placing.call_off();
        self.placing.settle().await;
        self.placing.forget();
    }

    /// What had landed when it was begun for the `number`th time is in place.
    pub(super) async fn were_placed(&mut self, number: u64, result: Result<(), Failure>) {
        if number != self.placing.number {
            return;
        }
        let (up_to, in_container) = (self.placing.up_to, !self.placing.gone.load(Ordering::Relaxed));
        self.placing.settle().await;
        match result {
            // What was released has been put in place anew since.
            Err(_) if self.local.released => {}
            Err(failure) if in_container => self.fail(failure).await,
            // Its files went with the container. What else there is to it is met again for the next one.
            Err(_) => {}
            Ok(()) if in_container && self.local.waiting => {
                if self.report.step < TargetStep::Waiting && !self.local.failed && !self.local.staged {
                    self.reach(TargetStep::Waiting);
                }
                self.tell_source(FromTarget::Placed { round: up_to }).await;
            }
            Ok(()) => {}
        }
        if std::mem::take(&mut self.placing.more) && self.local.waiting {
            self.place_what_landed();
        }
    }
}
