//! Memory that comes after the restore: whether somebody brings it, before the commit; and that all of it has come, after.

use super::TargetDriver;
use crate::agent::context::Context;
use crate::agent::failure::{permanent, retryable};
use crate::agent::source::container::find;
use crate::agent::transfer::message::{IMAGES, MEMORY};
use crate::agent::transfer::receive::WORK;
use crate::causes::chain;
use crate::criu::{pagemap, shared};
use crate::local::{Pages, PagesAt};
use crate::pages::daemon::{Status, is_alive};
use crate::pages::store;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tideover_crds::{Failure, FailureReason};
use tracing::{error, warn};

/// How often it is looked whether all memory has come.
const LOOK: Duration = Duration::from_millis(200);
/// How long the page daemon may take to say that every process has come. It is said before CRIU says that it holds them.
const SERVES_WITHIN: Duration = Duration::from_secs(1);
/// How often that is looked at: every one of these is a part of the freeze.
const SERVES_LOOK: Duration = Duration::from_millis(1);
/// How long the processes of a container that can't go on may take to end, before it is tried again.
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// Where memory that comes after the restore is, in a container's directory.
pub(super) fn pages_at(directory: &Path) -> PagesAt {
    PagesAt { store: directory.join(MEMORY), work: directory.join(WORK) }
}

/// Whether pages of processes have landed in a container's directory. Shared memory is CRIU's own business. Blocking.
pub(super) fn has_begun(directory: &Path) -> bool {
    let entries = directory.join(MEMORY).read_dir().into_iter().flatten().flatten();
    entries.into_iter().any(|entry| !store::is_shared_name(&entry.file_name()))
}

/// The memory in a container's directory that comes after the restore, if any does. Blocking.
///
/// # Errors
/// With the failure to report, where the images wait for memory that is not there.
pub(super) fn to_come(directory: &Path) -> Result<Option<Pages>, Failure> {
    let failed = |why: String| retryable(FailureReason::RestoreFailed, why);
    let (images, store) = (directory.join(IMAGES), directory.join(MEMORY));
    let pids = store::pids(&store).map_err(|error| failed(format!("list the page stores: {error}")))?;
    for pid in pagemap::processes(&images).map_err(|error| failed(format!("list the images: {error}")))? {
        let lazy = pagemap::lazy(&images, pid).map_err(|error| failed(chain(&error)))?;
        if !lazy.is_empty() && !pids.contains(&pid) {
            return Err(failed(format!("the memory of process {pid} is not here any more")));
        }
    }
    if let Some(inode) = shared::incomplete(&images).map_err(|error| failed(chain(&error)))? {
        return Err(failed(format!("the shared memory {inode} is not here any more")));
    }
    Ok((!pids.is_empty()).then(|| Pages { at: pages_at(directory), pids }))
}

/// That an application which ran here has lost its state, because of what the page daemon has said last.
fn state_lost(why: &str) -> Failure {
    let message = format!("memory of the restored processes is missing, and they were ended: {why}");
    permanent(FailureReason::StateLost, message)
}

impl TargetDriver {
    /// Waits until the page daemon has brought everything into a container. Where it can't any more, the container is ended, and that
    /// is reported: kubelet starts it again, cold.
    pub(super) async fn filled(&mut self, lane: usize) {
        let Some(restore) = self.lanes[lane].restore.clone() else { return };
        let directory = self.lane_directory(lane);
        if let Err(why) = filled(&self.context, &directory, &restore.container_id, &self.key.name).await {
            self.report.failure = Some(state_lost(&self.of_lane(lane, why)));
            self.reporter.report(self.report.clone());
        }
    }
}

/// Sees to it that the memory which is still to come to what was restored from `directory` will come, before anything relies on it.
///
/// # Errors
/// With the failure to report.
pub(in crate::agent) async fn is_served(directory: &Path) -> Result<(), Failure> {
    let begun = Instant::now();
    // That nothing else is waited for was seen before the release.
    if store::pids(&directory.join(MEMORY)).is_ok_and(|pids| pids.is_empty()) {
        return Ok(());
    }
    let work = directory.join(WORK);
    let failed = |why: &str| retryable(FailureReason::RestoreFailed, format!("the page daemon: {why}"));
    loop {
        match Status::read(&work) {
            Ok(Some(Status::Serving | Status::Complete)) => return Ok(()),
            Ok(Some(Status::Failed(why))) => return Err(failed(&why)),
            _ if begun.elapsed() > SERVES_WITHIN => return Err(failed("not every process has come to it")),
            _ => tokio::time::sleep(SERVES_LOOK).await,
        }
    }
}

/// Waits until the page daemon has brought everything to the container `id`, which was restored from `directory`. Where it can't any
/// more, the container is ended: kubelet starts it again, cold. `whose` is for the log.
///
/// # Errors
/// With what the page daemon has said last, where the container was ended.
pub(in crate::agent) async fn filled(
    context: &Arc<Context>,
    directory: &Path,
    id: &str,
    whose: &str,
) -> Result<(), String> {
    let work = directory.join(WORK);
    match store::pids(&directory.join(MEMORY)) {
        Ok(pids) if pids.is_empty() => return Ok(()),
        Ok(_) => {}
        Err(error) => warn!(whose, %error, "whether memory is to come is unknown"),
    }
    let why = loop {
        // In this order: whoever is not alive any more has said its last word before.
        let alive = is_alive(&work).unwrap_or(true);
        match Status::read(&work) {
            Ok(Some(Status::Complete)) => return Ok(()),
            Ok(Some(Status::Failed(why))) => break why,
            _ if !alive => break "the page daemon is gone".to_owned(),
            _ => tokio::time::sleep(LOOK).await,
        }
    };
    error!(whose, why, "memory of the restored processes is missing: they are ended");
    while let Err(error) = end_container(context, id).await {
        error!(whose, error, "a container that lacks memory can't be ended");
        tokio::time::sleep(LOOK).await;
    }
    context.lost.count();
    Err(why)
}

/// Ends the processes of the container `id`.
///
/// # Errors
/// With a sentence, where they are not known to have ended.
pub(super) async fn end_container(context: &Arc<Context>, id: &str) -> Result<(), String> {
    let (context, id) = (context.clone(), id.to_owned());
    let ended = tokio::task::spawn_blocking(move || match find(&context.node, &id) {
        Ok(found) => found.freezer.kill_all(KILL_LIMIT).map_err(|error| chain(&error)),
        Err(absent) if absent.is_absence() => Ok(()),
        Err(error) => Err(chain(&error)),
    });
    ended.await.map_err(|error| chain(&error))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::criu::image;
    use crate::pages::PageRange;
    use crate::pages::store::StoreWriter;

    /// `PAGEMAP_MAGIC` of CRIU's `criu/include/magic.h`.
    const MAGIC: u32 = 0x5608_4025;

    /// An attempt whose images know process 1, with one page at 0x1000 that is called lazy.
    fn attempt() -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a directory");
        for name in [IMAGES, MEMORY] {
            std::fs::create_dir(directory.path().join(name)).expect("a directory");
        }
        // `pages_id` 1; then `vaddr`, `compat_nr_pages`, `flags` 2 and `nr_pages`.
        let entries = [vec![0x08, 1], vec![0x08, 0x80, 0x20, 0x10, 0, 0x20, 2, 0x28, 1]];
        let image = image::assemble(MAGIC, entries);
        std::fs::write(directory.path().join(IMAGES).join("pagemap-1.img"), image).expect("an image");
        directory
    }

    #[test]
    fn images_that_wait_for_memory_which_is_not_here_are_not_given_to_criu() {
        let attempt = attempt();
        let refusal = to_come(attempt.path()).expect_err("its memory is missing");
        assert!(refusal.message.contains("the memory of process 1 is not here"), "{}", refusal.message);
    }

    #[test]
    fn memory_that_is_here_is_to_come() {
        let attempt = attempt();
        let store = attempt.path().join(MEMORY);
        let mut writer = StoreWriter::create(&store, 1).expect("a store");
        writer.write(0x1000, &[7; 4096]).expect("a page");
        writer.finish(&[PageRange::new(0x1000, 4096).expect("a page")]).expect("an index");
        let pages = to_come(attempt.path()).expect("all is here").expect("memory");
        assert_eq!((pages.pids, pages.at.store), (vec![1], store));
    }
}
