//! Files on their way into place before the freeze: from when the new container waits at the relay, each round as it lands.

use super::TargetDriver;
use crate::agent::failure::retryable;
use crate::agent::target::event::Event;
use crate::agent::target::stage::{self, Placed};
use crate::causes::chain;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tideover_crds::{Failure, FailureReason, TargetStep};
use tokio::task::JoinHandle;

/// The work for one restore.
#[derive(Debug, Default)]
pub(super) struct Placing {
    placed: Arc<Mutex<Placed>>,
    off: Option<Arc<AtomicBool>>,
    task: Option<JoinHandle<()>>,
    /// Something has landed since the task began.
    more: bool,
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
            *self = Self::default();
        }
    }

    /// Nobody wants it any more. It ends soon.
    pub(super) fn call_off(&mut self) {
        self.off.iter().for_each(|off| off.store(true, Ordering::Relaxed));
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
        self.placing.task = Some(tokio::spawn(async move {
            let token = restore.token.clone();
            let placing = tokio::task::spawn_blocking(move || {
                let mut placed = placed.lock().unwrap_or_else(PoisonError::into_inner);
                stage::place_files(&context, &directory, &restore, &mut placed)
            });
            let result =
                placing.await.unwrap_or_else(|error| Err(retryable(FailureReason::RestoreFailed, chain(&error))));
            // Told by another task, because the driver may be waiting for this one and not for events.
            tokio::spawn(async move { events.send(Event::Placed { token, result }).await.ok() });
        }));
    }

    /// Ends what is under way, and forgets what is in place.
    pub(super) async fn stop_placing(&mut self) {
        self.placing.call_off();
        self.placing.settle().await;
        self.placing = Placing::default();
    }

    /// What had landed is in place.
    pub(super) async fn were_placed(&mut self, result: Result<(), Failure>) {
        self.placing.settle().await;
        match result {
            // What was released has been put in place anew since.
            Err(_) if self.local.released => {}
            Err(failure) => self.fail(failure).await,
            Ok(()) => {
                if self.report.step < TargetStep::Waiting && !self.local.failed && !self.local.staged {
                    self.reach(TargetStep::Waiting);
                }
                if std::mem::take(&mut self.placing.more) {
                    self.place_what_landed();
                }
            }
        }
    }
}
