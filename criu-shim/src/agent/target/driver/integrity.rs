//! What has landed is as it was sent: looked at on the disk, before anything is made of it.

use super::TargetDriver;
use crate::agent::failure::retryable;
use crate::agent::host::NodeRoot;
use crate::agent::install::payload;
use crate::agent::transfer::manifest::Manifest;
use crate::agent::transfer::message::IMAGES;
use crate::agent::transfer::receive::{Landing, ReceiveError, Round, RoundKind};
use crate::agent::transfer::stored::{self, Pages};
use crate::causes::chain;
use crate::local::INSTALL_ROOT;
use crate::supervised::program::{self, Program};
use std::path::Path;
use tideover_crds::{Failure, FailureReason, Migration, Strategy};

impl TargetDriver {
    /// Sees to it that a round that has landed can be relied on, as far as that is not seen to later.
    pub(super) async fn settle(&self, lane: usize, round: &Round, strategy: Strategy) -> Result<(), Failure> {
        let (directory, only) = (self.lane_directory(lane), is_the_only_one(strategy));
        let (node, kind, brought) = (self.context.node.clone(), round.kind, round.manifest.clone());
        // The images that go early are small, nothing is frozen yet, and runc reads them before CRIU is released. Archives are
        // compared while they are put in place, but for those of which there may be no others by then.
        if !only && kind != RoundKind::Early {
            // The freeze does not wait for a thread that has nothing to do.
            return Ok(());
        }
        let settling = tokio::task::spawn_blocking(move || {
            match (only, kind) {
                (false, _) => verify_images(&directory)?,
                (true, RoundKind::Early | RoundKind::Rehearsal) => verify_round(&directory, &brought)?,
                // What came before is on the disk by now, and was compared.
                (true, RoundKind::Last) => {
                    Landing::sync(&directory).map_err(|error| not_received(&error))?;
                    verify_round(&directory, &brought)?;
                }
            }
            if kind == RoundKind::Early { have_program(&directory, &node) } else { Ok(()) }
        });
        settling.await.unwrap_or_else(|error| Err(retryable(FailureReason::TransferFailed, chain(&error))))
    }
}

/// Compares the images that lie in a container's directory with what was sent. Blocking.
///
/// # Errors
/// With the failure to report, which names the file.
pub(super) fn verify_images(directory: &Path) -> Result<(), Failure> {
    stored::verify_images(directory).map_err(|error| retryable(FailureReason::Corrupted, chain(&error)))
}

/// Sees to it that this node has the `tideover-init` under which the container runs, if it is supervised: as long as nothing is
/// frozen, another node may be chosen. What the source has sent is kept where this node has none. Blocking.
///
/// # Errors
/// With the failure to report.
pub(in crate::agent) fn have_program(directory: &Path, node: &NodeRoot) -> Result<(), Failure> {
    let failed = |error: &dyn std::error::Error| retryable(FailureReason::IncompatibleHost, chain(error));
    let images = directory.join(IMAGES);
    match Program::read(&images).map_err(|error| failed(&error))? {
        Some(program) if program.check_there(node.root()).is_err() => {
            let programs = node.path(&Path::new(INSTALL_ROOT).join(program::PROGRAMS));
            payload::add_program(&images.join(program::CONTENT), &programs, &program).map_err(|error| failed(&error))
        }
        _ => Ok(()),
    }
}

/// The same of images, and of the files that one round has brought.
fn verify_round(directory: &Path, brought: &Manifest) -> Result<(), Failure> {
    stored::verify_round(directory, brought).map_err(|error| retryable(FailureReason::Corrupted, chain(&error)))
}

/// The same of images, and of memory that is to outlast the commit. Blocking.
///
/// # Errors
/// As [`verify_images`].
pub(super) fn verify_for_restore(directory: &Path, pages: Pages) -> Result<(), Failure> {
    stored::verify_for_restore(directory, pages).map_err(|error| retryable(FailureReason::Corrupted, chain(&error)))
}

/// The failure to report where a round could not be taken.
pub(super) fn not_received(error: &ReceiveError) -> Failure {
    let reason = if error.is_corruption() { FailureReason::Corrupted } else { FailureReason::TransferFailed };
    retryable(reason, chain(error))
}

/// How the replacement of a move comes to be: by that it is known what has to be done with what lands.
///
/// # Errors
/// With the failure to report, where the Migration is gone or does not say it. Neither way is right for both.
pub(super) fn strategy_of(migration: Option<&Migration>) -> Result<Strategy, Failure> {
    let status = migration.and_then(|migration| migration.status.as_ref());
    status.and_then(|status| status.strategy).ok_or_else(|| {
        let message = "the Migration does not say whether the pod is replaced or deleted first";
        retryable(FailureReason::NotMovable, message)
    })
}

/// Whether what lands is about to be all that there is of the application: where the commit is made on it alone. It must be on
/// the disk by then, and right. With ReplaceFirst the processes are rebuilt before the commit: the freeze does not wait for
/// the disk, and what is there is looked at once, just before CRIU reads it.
pub(super) fn is_the_only_one(strategy: Strategy) -> bool {
    strategy == Strategy::DeleteFirst
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::fixture::migration;

    #[test]
    fn what_lands_for_a_move_of_no_known_strategy_is_refused() {
        for strategy in [Strategy::ReplaceFirst, Strategy::DeleteFirst] {
            assert_eq!(strategy_of(Some(&migration().strategy(strategy).build())).unwrap(), strategy);
        }
        let mut unsaid = migration().build();
        unsaid.status.as_mut().unwrap().strategy = None;
        for migration in [None, Some(&unsaid)] {
            let refused = strategy_of(migration).unwrap_err();
            assert_eq!(refused.reason, FailureReason::NotMovable);
            assert!(refused.message.contains("does not say whether"), "{}", refused.message);
        }
    }

    #[test]
    fn a_target_that_lacks_the_program_keeps_the_one_that_was_sent() {
        let (attempt, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (images, node) = (attempt.path().join(IMAGES), NodeRoot::at(root.path()));
        std::fs::create_dir(&images).unwrap();
        have_program(attempt.path(), &node).unwrap();
        let program = Program::of_content(&blake3::hash(b"the program"));
        program.write(&images).unwrap();
        std::fs::write(images.join(program::CONTENT), "another").unwrap();
        let refused = have_program(attempt.path(), &node).unwrap_err();
        assert_eq!((refused.reason, refused.retryable), (FailureReason::IncompatibleHost, true));
        std::fs::write(images.join(program::CONTENT), "the program").unwrap();
        have_program(attempt.path(), &node).unwrap();
        program.check_there(root.path()).unwrap();
        std::fs::remove_file(images.join(program::CONTENT)).unwrap();
        have_program(attempt.path(), &node).unwrap();
    }
}
