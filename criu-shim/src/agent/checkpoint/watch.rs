//! Looks each second of which container a checkpoint is due, and takes one at a time; and once a minute whether the pods of those
//! that are stored are still there.

use super::due::{Times, here_since, is_due, running_since};
use super::ledger::{Heard, Ledger};
use super::shelf::ShelfError;
use super::take::{NotTaken, millis, take};
use super::tell::{News, Outcome, tell};
use super::{Checkpoints, Subject, restore};
use crate::agent::context::{Context, answer};
use crate::agent::target::registry::Registry;
use crate::causes::chain;
use crate::supervised::place::Stamp;
use crate::supervised::{Checkpoints as Rules, Identity, PLACES, Place};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tideover_init::record::Line;
use tracing::{info, warn};

/// How often it is looked what is due.
const LOOK: Duration = Duration::from_secs(1);
/// How often it is looked whether pods are gone.
const SWEEP: Duration = Duration::from_secs(60);

/// A container of which one is due.
#[derive(Clone, Debug)]
struct Due {
    subject: Subject,
    id: String,
    rules: Rules,
    /// Of its record when it was looked at.
    stamp: Option<Stamp>,
}

/// Looks for ever.
pub async fn watch(context: Arc<Context>, registry: Registry) {
    let mut tried: HashMap<String, u64> = HashMap::new();
    // When each was last seen to be moved: what it was until then is not how it runs here.
    let mut moved: HashMap<String, u64> = HashMap::new();
    let mut swept: Option<Instant> = None;
    restore::take_over(&context).await;
    loop {
        tokio::time::sleep(LOOK).await;
        if context.is_leaving() {
            continue;
        }
        if swept.is_none_or(|at| at.elapsed() >= SWEEP) {
            sweep(&context).await;
            swept = Some(Instant::now());
        }
        let (asked, moves, known, mut moving) = (context.clone(), registry.clone(), tried.clone(), moved.clone());
        let looked = tokio::task::spawn_blocking(move || {
            let (ids, due) = look(&asked, &moves, &known, &mut moving, millis(SystemTime::now()));
            (ids, due, moving)
        });
        let (ids, due) = match looked.await {
            Ok((ids, due, moving)) => {
                moved = moving;
                (ids, due)
            }
            Err(error) => {
                warn!(%error, "the look for what checkpoints are due ended early");
                continue;
            }
        };
        tried.retain(|id, _| ids.contains(id));
        moved.retain(|id, _| ids.contains(id));
        for due in due {
            let (id, began) = (due.id.clone(), millis(SystemTime::now()));
            if one(&context, &registry, due).await == Tried::Fully {
                tried.insert(id, began);
            }
        }
    }
}

/// The ids of the containers of which checkpoints are taken, and those of which one is due. Blocking.
fn look(
    context: &Context,
    registry: &Registry,
    tried: &HashMap<String, u64>,
    moved: &mut HashMap<String, u64>,
    now: u64,
) -> (Vec<String>, Vec<Due>) {
    let places = context.node.path(Path::new(PLACES));
    let (mut ids, mut all) = (Vec::new(), Vec::new());
    // A place that can't be read is about to come or to go.
    for (id, place) in Place::all(&places).unwrap_or_default() {
        let Ok(identity) = place.identity() else { continue };
        let Some(rules) = identity.checkpoints else { continue };
        // Before the record is read: what comes after is seen by it.
        let stamp = place.stamp();
        let (Ok(contents), Some(made)) = (place.contents(), place.made()) else { continue };
        ids.push(id.clone());
        let subject = Subject::from(&identity);
        if registry.is_moving(&subject.pod_uid) {
            moved.insert(id.clone(), now);
        }
        // A place is there before what is restored into its container runs.
        let Ok(ledger) = context.checkpoints.shelf.ledger(&subject) else { continue };
        let unfinished = ledger.as_ref().and_then(Ledger::unfinished);
        if unfinished.is_some_and(|restore| restore.container_id == id) {
            continue;
        }
        let ran = ledger.and_then(|ledger| ledger.ran_at(&id));
        let here = here_since(millis(made), ran, moved.get(&id).copied());
        let Some(running) = running_since(here, &contents.lines).filter(|_| !contents.ended) else { continue };
        let newest = context
            .checkpoints
            .shelf
            .stored(&subject)
            .ok()
            .and_then(|all| all.iter().map(|about| about.taken_millis).max());
        let last = newest.max(tried.get(&id).copied());
        if is_due(&rules, Times { running, last }, now) {
            all.push(Due { subject, id, rules, stamp });
        }
    }
    (ids, all)
}

/// Whether the next try waits for as long as after a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tried {
    Fully,
    /// What was in the way passes.
    NotNow,
}

async fn one(context: &Arc<Context>, registry: &Registry, due: Due) -> Tried {
    let Due { subject, id, rules, stamp } = due;
    let figures = &context.checkpoints.figures;
    match take(context, registry, &subject, (&id, stamp), rules.keep).await {
        Ok(about) => {
            let paused = Duration::from_micros(about.paused_micros);
            let (number, bytes) = (about.number, about.bytes);
            info!(pod = subject.pod_name, container = id, number, ?paused, bytes, "a checkpoint is stored");
            figures.count(&subject, Outcome::Stored);
            figures.show(&subject, paused, bytes);
        }
        Err(NotTaken::NotNow(why)) => {
            info!(pod = subject.pod_name, container = id, why, "no checkpoint now");
            return Tried::NotNow;
        }
        Err(error) => {
            warn!(pod = subject.pod_name, container = id, error = %chain(&error), "no checkpoint");
            figures.count(&subject, Outcome::NotTaken);
            let news = News::NotTaken { container_id: id, kind: error.kind(), why: chain(&error) };
            tell(context, &subject, &news);
        }
    }
    Tried::Fully
}

/// Takes what the record of a container says, and returns what is to be told of it. Blocking.
///
/// # Errors
/// Where it can't be written down; it is to be said again then.
pub fn hear(
    checkpoints: &Checkpoints,
    identity: &Identity,
    (id, place): (&str, &Place),
    lines: &[Line],
) -> Result<Option<News>, ShelfError> {
    let (Some(rules), Some(made)) = (identity.checkpoints, place.made()) else { return Ok(None) };
    let heard = Heard { id, made: millis(made), lines, proven: rules.proven_millis };
    let now = millis(SystemTime::now());
    let poisoned = checkpoints.shelf.judge(&identity.into(), now, |ledger| ledger.hear(heard))?;
    Ok(poisoned.map(|(about, why)| News::Poisoned(about, why)))
}

/// Removes what is stored of pods that are gone.
async fn sweep(context: &Arc<Context>) {
    let shelf = context.checkpoints.shelf.clone();
    let all = match tokio::task::spawn_blocking(move || shelf.all()).await {
        Ok(Ok(all)) => all,
        Ok(Err(error)) => return warn!(error = %chain(&error), "what is stored can't be listed"),
        Err(error) => return warn!(%error, "the look at what is stored ended early"),
    };
    for Ledger { subject, .. } in all {
        let there = answer(context.pods(&subject.pod_namespace).get_opt(&subject.pod_name)).await;
        // Without an answer it stays.
        let Ok(there) = there else { continue };
        if there.is_some_and(|pod| pod.metadata.uid.as_deref() == Some(&subject.pod_uid)) {
            continue;
        }
        let shelf = context.checkpoints.shelf.clone();
        let gone = subject.clone();
        match tokio::task::spawn_blocking(move || shelf.forget(&gone)).await {
            Ok(Ok(())) => {
                info!(pod = subject.pod_name, "the pod is gone, and so are its checkpoints");
                context.checkpoints.figures.forget(&subject);
            }
            Ok(Err(error)) => warn!(pod = subject.pod_name, error = %chain(&error), "checkpoints are left"),
            Err(error) => warn!(pod = subject.pod_name, %error, "removing checkpoints ended early"),
        }
    }
}
