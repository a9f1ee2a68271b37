//! The restore: answering the shim, taking the relay, looking at the images, putting files in place, letting CRIU begin.

use super::TargetDriver;
use super::integrity::verify_for_restore;
use super::lane::Lane;
use super::memory;
use super::reply::{Known, Reply, reply};
use crate::agent::duty::TargetDuty;
use crate::agent::failure::{permanent, retryable};
use crate::agent::journal::RestoreEntry;
use crate::agent::source::freeze::millis;
use crate::agent::target::stage;
use crate::agent::target::warm;
use crate::agent::transfer::message::{FromTarget, IMAGES};
use crate::agent::transfer::receive::WORK;
use crate::agent::transfer::stored::Pages;
use crate::causes::chain;
use crate::criu::{mount_image, system_v};
use crate::local::{
    Ahead, Create, Pages as Memory, PagesAt, RelayStage, ReleaseOptions, SystemV, ToRelay, ToShim, has_ran_mark,
};
use crate::pages::daemon::Status;
use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::time::Instant;
use tideover_crds::migration::Verdict;
use tideover_crds::{Failure, FailureReason, Migration, Strategy, TargetStep};
use tokio::sync::mpsc;
use tracing::debug;

impl TargetDriver {
    /// Answers the shims' questions, once they can be answered.
    pub(super) async fn answer(&mut self, migration: Option<&Migration>) {
        for lane in 0..self.lanes.len() {
            self.answer_of(lane, migration).await;
        }
    }

    async fn answer_of(&mut self, lane: usize, migration: Option<&Migration>) {
        let Some((create, _)) = self.lanes[lane].asked.clone() else { return };
        self.look_for_mark(lane).await;
        let status = migration.and_then(|migration| migration.status.as_ref());
        let Lane { local, restore, early, .. } = &self.lanes[lane];
        let known = Known {
            verdict: status.map_or(Verdict::Open, |status| status.verdict_of(self.local.attempt)),
            resumed: local.resumed,
            failed: self.local.failed,
            destroyed: self.local.destroyed,
            replace_first: status.is_some_and(|status| status.strategy == Some(Strategy::ReplaceFirst)),
            same: restore.as_ref().is_some_and(|restore| restore.container_id == create.container_id),
            early: *early,
            out_of_turn: self.committed_here()
                && self.go_together()
                && self.lanes[..lane].iter().any(|before| !before.running || before.refused),
        };
        let answer = match reply(known) {
            Reply::Cold => ToShim::ColdStart,
            Reply::Refuse if known.out_of_turn => {
                let reason = "a container that is started before it is not there yet".to_owned();
                ToShim::Refuse { reason }
            }
            Reply::Refuse => {
                let why =
                    self.report.failure.as_ref().map_or("the attempt is over", |failure| failure.message.as_str());
                ToShim::Refuse { reason: format!("the restore is off: {why}") }
            }
            Reply::Again => self.restore_answer(lane, migration),
            Reply::Begin => match self.begin_restore(lane, create).await {
                Ok(()) => self.restore_answer(lane, migration),
                Err(failure) => {
                    let reason = failure.message.clone();
                    // After the commit there is no way but forward.
                    match self.committed_here() {
                        true => self.not_restored(lane, failure, None).await,
                        false => self.fail(failure).await,
                    }
                    ToShim::Refuse { reason }
                }
            },
            Reply::Later => return,
        };
        if let Some((_, shim)) = self.lanes[lane].asked.take() {
            // A shim that is gone asks again.
            shim.send(answer).await.ok();
        }
    }

    /// What the shim could tell nobody: the restore has let the processes run.
    pub(super) async fn look_for_mark(&mut self, lane: usize) {
        if !self.lanes[lane].local.resumed && has_ran_mark(&self.lane_directory(lane).join(WORK)) {
            self.lanes[lane].running = false;
            self.resumed(lane).await;
        }
    }

    /// Writes down that a restore is about to begin: from here on CRIU may rebuild the processes, and this node may commit.
    async fn begin_restore(&mut self, lane: usize, create: Create) -> Result<(), Failure> {
        let failed = |what: &str, error| retryable(FailureReason::RestoreFailed, format!("{what}: {error}"));
        if let Some(ran) = self.lanes.iter().find(|lane| lane.has_run_beside(&create.pod_uid)) {
            let message = format!(
                "the container {} has run in another pod, which is gone with what was in its volumes",
                ran.container
            );
            return Err(permanent(FailureReason::StateLost, message));
        }
        let token = new_token().map_err(|error| failed("make a token for the restore", error))?;
        // From here on until it has a daemon of its own, nobody may take the word of an earlier one's for its.
        Status::forget(&self.lane_directory(lane).join(WORK))
            .map_err(|error| failed("forget what the page daemon before has said", error))?;
        let restore =
            RestoreEntry { token, pod_uid: create.pod_uid, container_id: create.container_id, bundle: create.bundle };
        let lane_again = &mut self.lanes[lane];
        lane_again.restore_limits();
        let before = lane_again.restore.replace(restore.clone());
        if let Err(failure) = self.write_journal().await {
            self.lanes[lane].restore = before;
            return Err(failure);
        }
        self.registry.add_token(&restore.token, &self.key.uid);
        // Another container has another layer. The volumes are the pod's: what is put there goes on, and stays, because kubelet
        // gives one `create` two minutes. But where CRIU was released, it may have left something in them.
        let lane = &mut self.lanes[lane];
        let same_pod = before.is_some_and(|before| before.pod_uid == restore.pod_uid);
        if same_pod && !lane.had_request {
            lane.placing.leave_container();
        } else {
            lane.placing.stop().await;
        }
        lane.begun(restore);
        Ok(())
    }

    fn restore_answer(&self, lane: usize, migration: Option<&Migration>) -> ToShim {
        let directory = self.lane_directory(lane);
        let token = self.lanes[lane].restore.as_ref().map(|restore| restore.token.clone()).unwrap_or_default();
        let (images_dir, work_dir) = (directory.join(IMAGES), directory.join(WORK));
        // kubelet creates no container before the one before it was started. The `create` of the last one has nobody behind it.
        let pages = memory::has_begun(&directory).then(|| memory::pages_at(&directory));
        let ahead = pages.map(|pages| {
            let request = migration.and_then(|migration| self.request_ahead(lane, migration, &pages));
            Box::new(Ahead { pages, request })
        });
        ToShim::Restore { token, images_dir, work_dir, stand_in: lane + 1 < self.lanes.len(), ahead }
    }

    /// What CRIU is going to be asked for, where memory is at `pages`, if it can be asked before the images are there: the source says
    /// that no mount has peers, and the go, which is what the last round waits for, waits for this answer.
    fn request_ahead(&self, lane: usize, migration: &Migration, pages: &PagesAt) -> Option<ReleaseOptions> {
        let comes_later = self.report.step < TargetStep::Waiting && !self.pod().staged && !self.committed_here();
        let known = mount_image::are_none_noted(&self.lane_directory(lane).join(IMAGES));
        (comes_later && known).then(|| ReleaseOptions {
            pages: Some(Memory { at: pages.clone(), pids: Vec::new() }),
            older_mounts: true,
            ..release_options(migration)
        })
    }

    /// A relay speaks, whose CRIU is process `criu`.
    pub(super) async fn relay_came(
        &mut self,
        token: &str,
        stage: RelayStage,
        line: mpsc::Sender<ToRelay>,
        criu: Option<i32>,
    ) {
        // What was called off is waited for, no more.
        let Some(lane) = self.lane_of_token(token).filter(|lane| !self.lanes[*lane].refused) else {
            line.send(ToRelay::Abandon).await.ok();
            return;
        };
        let came = &mut self.lanes[lane];
        came.relay = Some(line);
        came.running = true;
        came.unheard = false;
        came.local.waiting = true;
        came.local.released = stage != RelayStage::Requested;
        came.had_request |= came.local.released;
        came.local.held = stage == RelayStage::Held;
        if self.is_off() {
            return self.tell_relay(lane, ToRelay::Abandon).await;
        }
        if self.local.failed && !self.committed_here() {
            // A left-over of the agent before this one, which may have been committed; the object says so.
            return;
        }
        if stage == RelayStage::Requested {
            // Before the go where the pod is replaced first.
            self.lift_limits(lane, criu).await;
            self.warm(lane);
            if !self.lanes[lane].local.staged {
                // It waits once what has landed is in place. runc has made its mount points by now.
                self.place_what_landed(lane);
            }
        }
    }

    /// Has what the processes will want of the container's files read from the disk, once it is known and a container waits.
    pub(super) fn warm(&mut self, lane: usize) {
        let Lane { restore, mapped, local, placing, .. } = &mut self.lanes[lane];
        let Some(restore) = restore.clone().filter(|_| local.waiting && !local.released && !mapped.is_empty()) else {
            return;
        };
        let off = placing.warms();
        let (context, mapped, migration) = (self.context.clone(), mapped.clone(), self.key.name.clone());
        tokio::task::spawn_blocking(move || {
            // Without it CRIU waits for the disk, no more.
            match stage::container_root(&context, &restore) {
                Ok(root) => debug!(migration, bytes = warm::read_ahead(&root, &mapped, &off), "files are read ahead"),
                Err(failure) => debug!(migration, message = failure.message, "no files are read ahead"),
            }
        });
    }

    /// Whether the restore must not go on, whoever comes for it.
    fn is_off(&self) -> bool {
        self.local.destroyed || (self.local.failed && !self.committed_here() && !self.left_over)
    }

    /// The processes of a container are rebuilt and held.
    pub(super) async fn held(&mut self, lane: usize, migration: Option<&Migration>) {
        if self.is_off() {
            return self.tell_relay(lane, ToRelay::Abandon).await;
        }
        self.lanes[lane].local.held = true;
        if let Some(released) = self.lanes[lane].released {
            let timings = self.timings();
            timings.restore_millis = timings.restore_millis.max(millis(released.elapsed()));
        }
        if !self.pod().held {
            return;
        }
        // Before anybody is told of it.
        if let Some(migration) = migration
            && matches!(self.duty(migration), TargetDuty::Run(_))
        {
            self.run_taken(migration).await;
            if self.is_off() {
                return;
            }
        }
        self.tell_source(FromTarget::Held).await;
        if !self.committed_here() {
            self.reach(TargetStep::Held);
        }
    }

    /// Lets CRIU use the images of every container that waits, once the files of all of them are in place. Before the commit
    /// the attempt is taken meanwhile, where it is not taken yet.
    pub(super) async fn release(&mut self, migration: &Migration) {
        let begun = Instant::now();
        let mut placing = Vec::new();
        let trees = self.trees();
        for lane in 0..self.lanes.len() {
            let (context, directory) = (self.context.clone(), self.lane_directory(lane));
            let options = release_options(migration);
            let Lane { local, restore, placing: of_lane, adopted, .. } = &mut self.lanes[lane];
            let pages = if *adopted { Pages::All } else { Pages::OfImages };
            let Some(restore) = restore.clone().filter(|_| local.waiting && !local.released && !local.resumed) else {
                continue;
            };
            // First, because what is read ahead is in the way of what is still put in place.
            of_lane.hand_over();
            of_lane.settle().await;
            let archives = of_lane.placed();
            placing.push((
                lane,
                tokio::task::spawn_blocking(move || {
                    // At every try: what counts is what CRIU is about to read, and after a commit it may have lain there for long.
                    verify_for_restore(&directory, pages)?;
                    let mut archives = archives.lock().unwrap_or_else(PoisonError::into_inner);
                    stage::place_files(&context, &directory, &restore, trees, &mut archives, &AtomicBool::new(false))?;
                    with_images(options, &directory)
                }),
            ));
        }
        let mut ready = Vec::new();
        for (lane, placed) in placing {
            let placed = placed.await;
            ready.push((
                lane,
                placed.unwrap_or_else(|error| Err(retryable(FailureReason::RestoreFailed, chain(&error)))),
            ));
        }
        self.timings().stage_millis = millis(begun.elapsed());
        // kubelet gives a `create` two minutes, and what is put in place may take longer.
        self.take_what_came(migration).await;
        let all_wait = self.pod().waiting;
        // Where one can't be restored, none may as long as they go together.
        ready.sort_by_key(|(_, placed)| placed.is_ok());
        let all = ready.iter().all(|(_, placed)| placed.is_ok());
        for (lane, placed) in ready {
            if self.lanes[lane].refused || !self.lanes[lane].local.waiting || (placed.is_ok() && !all_wait) {
                // It, or another one without which it is not restored, is gone.
                continue;
            }
            self.lanes[lane].local.released = true;
            match placed {
                Ok(_) if self.is_off() => self.tell_relay(lane, ToRelay::Abandon).await,
                Ok(options) => match self.pass_release() {
                    Ok(()) => {
                        self.lanes[lane].released = Some(Instant::now());
                        self.lanes[lane].had_request = true;
                        self.tell_relay(lane, ToRelay::Release { options }).await;
                    }
                    Err(failure) => self.fail(failure).await,
                },
                Err(failure) => {
                    let failure = Failure { message: self.of_lane(lane, failure.message), ..failure };
                    self.tell_relay(lane, ToRelay::Abandon).await;
                    self.not_restored(lane, failure, Some(migration)).await;
                    self.lanes[lane].refused = true;
                }
            }
        }
        if all && !self.is_off() && !self.committed_here() {
            self.begin_to_take(migration);
            self.look_again();
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

/// `options`, with what the images in `directory`, that of an attempt or its like, ask for. Blocking.
///
/// # Errors
/// With the failure to report, where they can't be read.
pub(in crate::agent) fn with_images(options: ReleaseOptions, directory: &Path) -> Result<ReleaseOptions, Failure> {
    let failed = |error: &dyn std::error::Error| retryable(FailureReason::RestoreFailed, chain(error));
    let images = directory.join(IMAGES);
    let removed = system_v::removed_segments(&images).map_err(|error| failed(&error))?;
    let have_peers = mount_image::has_peers(&images).map_err(|error| failed(&error))?;
    Ok(ReleaseOptions {
        pages: memory::to_come(directory)?,
        system_v: removed.map(|removed| SystemV { removed }),
        older_mounts: !have_peers,
        ..options
    })
}

/// 128 random bits, hexadecimal.
pub(in crate::agent) fn new_token() -> std::io::Result<String> {
    use std::io::Read;
    let mut random = [0_u8; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}
