//! What the shim is told of a container that nobody moves: whether it goes on from a checkpoint.
//!
//! The order is always the same: what is known of the container's last restore and of its record is taken first; then the newest
//! good checkpoint is looked for, and everything of it compared with what was stored. One that fails that is poisoned, and the next
//! older is tried. What is about to be done is on the disk before the shim hears of it.

use super::about::{About, newest_good};
use super::restore::{self, Begun};
use super::shelf::{Shelf, ShelfError};
use super::take::{image, millis};
use super::tell::{News, Outcome, tell};
use super::watch::hear;
use super::{Checkpoints, Subject};
use crate::agent::context::Context;
use crate::agent::host::{self, FactsError, NodeRoot};
use crate::agent::target::driver::have_program;
use crate::agent::target::registry::Registry;
use crate::agent::transfer::receive::WORK;
use crate::causes::chain;
use crate::criu::Bundle;
use crate::local::{Create, has_ran_mark};
use crate::supervised::{PLACES, Place};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;
use thiserror::Error;
use tideover_crds::HostFacts;
use tracing::warn;

/// How a container starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// As runc would start it.
    Cold,
    /// It was being restored when the agent before this one ended: kubelet makes another one.
    Cut,
    /// From a checkpoint: whoever has this name in the registry knows how.
    Restore(String),
}

/// What was found for a container.
#[derive(Debug)]
enum Found {
    Cold,
    Cut,
    Checkpoint(Box<About>, PathBuf),
}

/// Answers for the container `create`. Where something can't be known it starts cold: it is no second copy of anything.
pub async fn start(context: &Arc<Context>, registry: &Registry, create: &Create) -> Start {
    let name = restore::name(&create.container_id);
    if registry.target(&name).is_some() {
        return Start::Restore(name);
    }
    let subject = Subject {
        pod_namespace: create.pod_namespace.clone(),
        pod_name: create.pod_name.clone(),
        pod_uid: create.pod_uid.clone(),
        container_name: create.container_name.clone(),
    };
    let (asked, known, who, what) = (context.clone(), registry.clone(), subject.clone(), create.clone());
    let found = tokio::task::spawn_blocking(move || {
        let mut news = Vec::new();
        let facts = || host::facts(&asked.node, asked.criu_version);
        let is_restoring = |id: &str| known.target(&restore::name(id)).is_some();
        let found = find(&asked.checkpoints, &asked.node, (&who, &what), facts, is_restoring, &mut news);
        (found, news)
    });
    let (found, news) = match found.await {
        Ok(found) => found,
        Err(error) => {
            warn!(pod = create.pod_name, %error, "looking for a checkpoint ended early");
            return Start::Cold;
        }
    };
    for news in news {
        context.checkpoints.figures.count(
            &subject,
            match news {
                News::NoneGood { .. } => Outcome::NoneGood,
                _ => Outcome::Poisoned,
            },
        );
        tell(context, &subject, &news);
    }
    match found {
        Ok(Found::Cold) => Start::Cold,
        Ok(Found::Cut) => Start::Cut,
        Ok(Found::Checkpoint(about, directory)) => {
            let begun = Begun { subject, about: *about, directory, create: create.clone() };
            match restore::begin(context, registry, begun) {
                Ok(()) => Start::Restore(name),
                Err(error) => {
                    warn!(pod = create.pod_name, %error, "a restore can't begin");
                    Start::Cold
                }
            }
        }
        Err(error) => {
            warn!(pod = create.pod_name, error = %chain(&error), "what is known of checkpoints can't be read");
            Start::Cold
        }
    }
}

/// Looks for the checkpoint that the container goes on from, and notes that it does. Blocking.
fn find(
    checkpoints: &Checkpoints,
    node: &NodeRoot,
    (subject, create): (&Subject, &Create),
    facts: impl FnOnce() -> Result<HostFacts, FactsError>,
    is_restoring: impl Fn(&str) -> bool,
    news: &mut Vec<News>,
) -> Result<Found, FindError> {
    let (shelf, now) = (&checkpoints.shelf, millis(SystemTime::now()));
    if take_note(shelf, (subject, create), is_restoring, now, news)? {
        return Ok(Found::Cut);
    }
    for (id, place) in Place::all(&node.path(Path::new(PLACES))).unwrap_or_default() {
        // One that can't be read is about to come or to go.
        let (Ok(identity), Ok(contents)) = (place.identity(), place.contents()) else { continue };
        if Subject::from(&identity) == *subject {
            news.extend(hear(checkpoints, &identity, (&id, &place), &contents.lines)?);
        }
    }
    if !shelf.ledger(subject)?.is_some_and(|ledger| ledger.wishes()) {
        return Ok(Found::Cold);
    }
    let image = Bundle::read(&create.bundle, node.root()).map(|bundle| image(&bundle)).unwrap_or_default();
    let facts = facts()?;
    let mut passed = Vec::new();
    loop {
        let mut stored = shelf.stored(subject)?;
        stored.retain(|about| !passed.contains(&about.number));
        let Some(about) = newest_good(&stored, &facts, &image).cloned() else { break };
        shelf.edit(subject, |ledger| ledger.begin(about.number, &create.container_id))?;
        // `tideover-init` may have been replaced by another version, and the old one removed, since.
        let prepared = match shelf.prepare(subject, &about, &create.container_id) {
            // That may pass, and need not be a fault of the checkpoint's: it is not marked.
            Err(error @ ShelfError::File { .. }) => {
                warn!(pod = subject.pod_name, number = about.number, error = %chain(&error), "a checkpoint can't be copied now");
                shelf.edit(subject, |ledger| ledger.given_up(&create.container_id))?;
                shelf.clear_restoring(subject, &create.container_id)?;
                passed.push(about.number);
                continue;
            }
            prepared => prepared.map_err(|error| chain(&error)),
        };
        let prepared = prepared.and_then(|directory| match have_program(&directory, node) {
            Ok(()) => Ok(directory),
            Err(failure) => Err(failure.message),
        });
        match prepared {
            Ok(directory) => return Ok(Found::Checkpoint(Box::new(about), directory)),
            Err(why) => {
                let poisoned = shelf.judge(subject, now, |ledger| ledger.failed(&create.container_id, &why))?;
                shelf.clear_restoring(subject, &create.container_id)?;
                match poisoned {
                    Some((about, why)) => news.push(News::Poisoned(about, why)),
                    // Without a mark it would be tried for ever.
                    None => break,
                }
            }
        }
    }
    shelf.edit(subject, super::ledger::Ledger::cold)?;
    news.push(News::NoneGood { container_id: create.container_id.clone() });
    Ok(Found::Cold)
}

/// Takes note of what became of a restore that nobody has reported the end of; true if it was of this container, or is still under
/// way in another, whose files are the pod's as well.
fn take_note(
    shelf: &Shelf,
    (subject, create): (&Subject, &Create),
    is_restoring: impl Fn(&str) -> bool,
    now: u64,
    news: &mut Vec<News>,
) -> Result<bool, ShelfError> {
    let ledger = shelf.ledger(subject)?;
    let Some(unfinished) = ledger.as_ref().and_then(|ledger| ledger.unfinished()) else { return Ok(false) };
    if has_ran_mark(&shelf.restoring(subject, &unfinished.container_id).join(WORK)) {
        shelf.edit(subject, |ledger| ledger.ran(&unfinished.container_id, now))?;
        return Ok(false);
    }
    if unfinished.container_id == create.container_id || is_restoring(&unfinished.container_id) {
        return Ok(true);
    }
    let id = &unfinished.container_id;
    let poisoned = shelf.judge(subject, now, |ledger| ledger.failed(id, "its restore was cut short"))?;
    news.extend(poisoned.map(|(about, why)| News::Poisoned(about, why)));
    Ok(false)
}

/// Why it can't be known whether there is one.
#[derive(Debug, Error)]
enum FindError {
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    #[error("look at this node")]
    Facts(#[from] FactsError),
}

#[cfg(test)]
#[path = "desk_tests.rs"]
mod tests;
