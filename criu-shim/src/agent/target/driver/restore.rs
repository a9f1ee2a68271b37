//! The restore: answering the shim, taking the relay, looking at the images, putting files in place, letting CRIU begin.

use super::TargetDriver;
use super::integrity::verify_images;
use super::memory;
use super::reply::{Known, Reply, reply};
use crate::agent::duty::verdict_of;
use crate::agent::failure::retryable;
use crate::agent::journal::{RestoreEntry, TargetEntry};
use crate::agent::source::freeze::millis;
use crate::agent::target::stage;
use crate::agent::transfer::message::{FromTarget, IMAGES};
use crate::agent::transfer::receive::WORK;
use crate::causes::chain;
use crate::criu::system_v;
use crate::local::{Create, RelayStage, ReleaseOptions, SystemV, ToRelay, ToShim, has_ran_mark};
use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::time::Instant;
use tideover_crds::migration::Verdict;
use tideover_crds::{Failure, FailureReason, Migration, Strategy, TargetStep};
use tokio::sync::mpsc;

impl TargetDriver {
    /// Answers the shim's question, once it can be answered.
    pub(super) async fn answer(&mut self, migration: Option<&Migration>) {
        let Some((create, _)) = self.asked.clone() else { return };
        self.look_for_mark().await;
        let status = migration.and_then(|migration| migration.status.as_ref());
        let known = Known {
            verdict: status.map_or(Verdict::Open, |status| verdict_of(status, self.local.attempt)),
            local: self.local,
            replace_first: status.is_some_and(|status| status.strategy == Some(Strategy::ReplaceFirst)),
            same: self.restore.as_ref().is_some_and(|restore| restore.container_id == create.container_id),
            early: self.early,
        };
        let answer = match reply(known) {
            Reply::Cold => ToShim::ColdStart,
            Reply::Refuse => {
                let why =
                    self.report.failure.as_ref().map_or("the attempt is over", |failure| failure.message.as_str());
                ToShim::Refuse { reason: format!("the restore is off: {why}") }
            }
            Reply::Again => self.restore_answer(),
            Reply::Begin => match self.begin_restore(create).await {
                Ok(()) => self.restore_answer(),
                Err(failure) => {
                    let reason = failure.message.clone();
                    self.fail(failure).await;
                    ToShim::Refuse { reason }
                }
            },
            Reply::Later => return,
        };
        if let Some((_, shim)) = self.asked.take() {
            // A shim that is gone asks again.
            shim.send(answer).await.ok();
        }
    }

    /// What the shim could tell nobody: the restore has let the processes run.
    pub(super) async fn look_for_mark(&mut self) {
        if !self.local.resumed && has_ran_mark(&self.directory().join(WORK)) {
            self.running = false;
            self.resumed().await;
        }
    }

    /// Writes down that a restore is about to begin: from here on CRIU may rebuild the processes, and this node may commit.
    async fn begin_restore(&mut self, create: Create) -> Result<(), Failure> {
        let token = new_token().map_err(|error| {
            retryable(FailureReason::RestoreFailed, format!("make a token for the restore: {error}"))
        })?;
        let restore =
            RestoreEntry { token, pod_uid: create.pod_uid, container_id: create.container_id, bundle: create.bundle };
        self.restore_limits();
        self.write_journal(TargetEntry { restore: Some(restore.clone()), ..self.entry() }).await?;
        self.registry.add_token(&restore.token, &self.key.uid);
        // Another container has another layer. The volumes are the pod's: what is put there goes on, and stays, because kubelet
        // gives one `create` two minutes. But where CRIU was released, it may have left something in them.
        let same_pod = self.restore.as_ref().is_some_and(|before| before.pod_uid == restore.pod_uid);
        if same_pod && !self.local.released {
            self.placing.leave_container();
        } else {
            self.stop_placing().await;
        }
        self.restore = Some(restore);
        self.running = true;
        self.refused = false;
        self.relay = None;
        self.local.waiting = false;
        self.local.released = false;
        self.local.held = false;
        Ok(())
    }

    fn restore_answer(&self) -> ToShim {
        let directory = self.directory();
        let token = self.restore.as_ref().map(|restore| restore.token.clone()).unwrap_or_default();
        ToShim::Restore { token, images_dir: directory.join(IMAGES), work_dir: directory.join(WORK) }
    }

    /// A relay speaks, whose CRIU is process `criu`.
    pub(super) async fn relay_came(
        &mut self,
        token: &str,
        stage: RelayStage,
        line: mpsc::Sender<ToRelay>,
        criu: Option<i32>,
    ) {
        if !self.is_current(token) {
            line.send(ToRelay::Abandon).await.ok();
            return;
        }
        self.relay = Some(line);
        self.running = true;
        self.local.waiting = true;
        self.local.released = stage != RelayStage::Requested;
        self.local.held = stage == RelayStage::Held;
        if self.is_off() {
            return self.tell_relay(ToRelay::Abandon).await;
        }
        if self.local.failed && !self.committed_here() {
            // A left-over of the agent before this one, which may have been committed; the object says so.
            return;
        }
        if stage == RelayStage::Requested {
            // Before the go where the pod is replaced first.
            self.lift_limits(criu).await;
            if !self.local.staged {
                self.prepare_pages().await;
                // It waits once what has landed is in place. runc has made its mount points by now.
                self.place_what_landed();
            }
        }
    }

    /// Whether the restore must not go on, whoever comes for it.
    fn is_off(&self) -> bool {
        self.local.destroyed || (self.local.failed && !self.committed_here() && !self.left_over)
    }

    pub(super) async fn held(&mut self) {
        if self.is_off() {
            return self.tell_relay(ToRelay::Abandon).await;
        }
        self.local.held = true;
        if let Some(released) = self.released {
            self.timings().restore_millis = millis(released.elapsed());
        }
        self.tell_source(FromTarget::Held).await;
        if !self.committed_here() {
            self.reach(TargetStep::Held);
        }
    }

    pub(super) async fn release(&mut self, migration: &Migration) {
        let Some(restore) = self.restore.clone() else { return };
        let (context, directory) = (self.context.clone(), self.directory());
        let begun = Instant::now();
        self.placing.settle().await;
        self.placing.hand_over();
        let archives = self.placing.placed();
        let placed = tokio::task::spawn_blocking(move || {
            // At every try: what counts is what CRIU is about to read, and after a commit it may have lain there for long.
            verify_images(&directory)?;
            let mut archives = archives.lock().unwrap_or_else(PoisonError::into_inner);
            stage::place_files(&context, &directory, &restore, &mut archives, &AtomicBool::new(false))?;
            Ok((memory::to_come(&directory)?, system_v(&directory.join(IMAGES))?))
        });
        let placed = placed.await;
        let placed = placed.unwrap_or_else(|error| Err(retryable(FailureReason::RestoreFailed, chain(&error))));
        self.timings().stage_millis = millis(begun.elapsed());
        self.local.released = true;
        match placed {
            Ok((pages, system_v)) => {
                self.released = Some(Instant::now());
                let options = ReleaseOptions { pages, system_v, ..release_options(migration) };
                self.tell_relay(ToRelay::Release { options }).await;
            }
            Err(failure) => {
                self.tell_relay(ToRelay::Abandon).await;
                self.not_restored(failure, Some(migration)).await;
                self.refused = true;
            }
        }
    }
}

pub(super) fn release_options(migration: &Migration) -> ReleaseOptions {
    let policy = migration.status.as_ref().and_then(|status| status.policy.as_ref());
    options_within(policy.map_or(64 << 20, |policy| policy.deleted_file_limit_bytes))
}

/// What CRIU is to restore where deleted files have `limit` bytes at most.
pub(in crate::agent) fn options_within(limit: u64) -> ReleaseOptions {
    ReleaseOptions {
        log_level: 2,
        ghost_limit: u32::try_from(limit).unwrap_or(u32::MAX),
        file_locks: true,
        link_remap: true,
        ..ReleaseOptions::default()
    }
}

/// The System V objects in the images of `directory`, if there are any. Blocking.
///
/// # Errors
/// With the failure to report, where they can't be read.
pub(in crate::agent) fn system_v(directory: &Path) -> Result<Option<SystemV>, Failure> {
    let removed = system_v::removed_segments(directory);
    let removed = removed.map_err(|error| retryable(FailureReason::RestoreFailed, chain(&error)))?;
    Ok(removed.map(|removed| SystemV { removed }))
}

/// 128 random bits, hexadecimal.
pub(in crate::agent) fn new_token() -> std::io::Result<String> {
    use std::io::Read;
    let mut random = [0_u8; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}
