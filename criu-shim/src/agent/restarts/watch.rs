//! Looks at the records of this node's supervised containers, and tells and counts what is new in them.
//!
//! An end is told before it is written down that it was. An agent that ends in between tells it again, and the API server knows
//! the Event by its name. It is counted after it was written down: counts end with the agent, and what it had shown must not be
//! added once more by the next.

use super::allowance::Allowance;
use super::annotate::annotate;
use super::count::{Counts, uncounted};
use super::event::{event, sentence};
use super::news::{Item, news};
use super::summary::Summaries;
use crate::agent::checkpoint;
use crate::agent::checkpoint::tell::{Outcome as Counted, tell as tell_of_checkpoint};
use crate::agent::context::{Context, RequestError, answer};
use crate::causes::chain;
use crate::supervised::place::{Contents, Stamp, Told};
use crate::supervised::{Identity, PLACES, Place, PlaceError};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use kube::api::{Api, PostParams};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tideover_init::decide::Rule;
use tracing::{info, warn};

/// How often records are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// One container's record, read.
struct Record {
    id: String,
    place: Place,
    /// From before it was read.
    stamp: Option<Stamp>,
    identity: Identity,
    contents: Contents,
    told: Told,
}

/// What is remembered of a container, for as long as it has a place.
#[derive(Clone, Copy)]
struct Known {
    allowance: Allowance,
    /// The record's when all of it was told.
    told_at: Option<Stamp>,
}

/// What the API server makes of an Event.
enum Outcome {
    /// It is there, or will never be.
    Settled,
    /// It is to be tried again.
    Later,
}

/// Looks and tells for ever, and counts in `counts`.
pub async fn watch(context: Arc<Context>, mut counts: Counts) {
    let mut known: HashMap<String, Known> = HashMap::new();
    let mut summaries = Summaries::default();
    loop {
        tokio::time::sleep(LOOK).await;
        let (node, before) = (context.node.clone(), known.clone());
        let looked = tokio::task::spawn_blocking(move || look(&node.path(Path::new(PLACES)), &before)).await;
        match looked {
            Ok(Ok((ids, mut records))) => {
                known.retain(|id, _| ids.contains(id));
                counts.retain(&ids, Instant::now());
                summaries.retain(&ids);
                for record in &mut records {
                    count(record, &mut counts);
                    summaries.hear(&record.id, &record.identity, &record.contents.lines, Timestamp::now());
                }
                annotate(&context, &mut summaries).await;
                for record in records {
                    let heard = hear(&context, &record).await;
                    let said = heard && summaries.is_settled(&record.id, &record.identity);
                    let fresh = Known { allowance: Allowance::new(Instant::now()), told_at: None };
                    let known = known.entry(record.id.clone()).or_insert(fresh);
                    let stamp = record.stamp;
                    let all = tell(&context, record, &mut known.allowance, said).await;
                    known.told_at = stamp.filter(|_| all);
                }
            }
            Ok(Err(error)) => warn!(error = %chain(&error), "the records of restarts can't be read"),
            Err(error) => warn!(%error, "the look at the records of restarts has ended early"),
        }
    }
}

/// The containers that there are, and the records of those of which there may be something to tell. One that can't be read is
/// skipped until it can: its container may be about to come or to go. Blocking.
fn look(places: &Path, known: &HashMap<String, Known>) -> Result<(HashSet<String>, Vec<Record>), PlaceError> {
    let all = Place::all(places)?;
    let ids = all.iter().map(|(id, _)| id.clone()).collect();
    let read = |(id, place): (String, Place)| {
        let stamp = place.stamp();
        if stamp.is_some() && known.get(&id).is_some_and(|known| known.told_at == stamp) {
            return None;
        }
        let record = (|| Ok((place.identity()?, place.contents()?, place.told()?)))();
        match record {
            Ok((identity, contents, told)) => Some(Record { id, place, stamp, identity, contents, told }),
            Err(PlaceError::Parse { path, source }) => {
                // Written by another version of Tideover, or not at all: nobody will ever make more of it.
                warn!(?path, %source, "what is known of a container's restarts can't be understood");
                None
            }
            Err(_) => None,
        }
    };
    let mut records: Vec<Record> = all.into_iter().filter_map(read).collect();
    // A container that is gone was there before the one that kubelet has made in its place.
    records.sort_by_key(|record| !record.contents.ended);
    Ok((ids, records))
}

/// Has what is remembered of the container's checkpoints learn from its record; true if that is written down. Until then the place
/// stays: what the container wishes is nowhere else.
async fn hear(context: &Arc<Context>, record: &Record) -> bool {
    if record.identity.checkpoints.is_none() {
        return true;
    }
    let (checkpoints, identity, id) = (context.checkpoints.clone(), record.identity.clone(), record.id.clone());
    let (place, lines) = (record.place.clone(), record.contents.lines.clone());
    let heard =
        tokio::task::spawn_blocking(move || checkpoint::watch::hear(&checkpoints, &identity, (&id, &place), &lines));
    match heard.await {
        Ok(Ok(news)) => {
            let subject = checkpoint::Subject::from(&record.identity);
            if let Some(news) = news {
                context.checkpoints.figures.count(&subject, Counted::Poisoned);
                tell_of_checkpoint(context, &subject, &news);
            }
            true
        }
        Ok(Err(error)) => {
            warn!(container = record.id, error = %chain(&error), "what follows for its checkpoints can't be written down");
            false
        }
        Err(error) => {
            warn!(container = record.id, %error, "taking a record for checkpoints has ended early");
            false
        }
    }
}

/// Counts what is new.
fn count(record: &mut Record, counts: &mut Counts) {
    let found = uncounted(record.told, &record.contents.lines);
    if found.counted == record.told.counted {
        return;
    }
    let told = Told { counted: found.counted, ..record.told };
    match record.place.set_told(told) {
        Ok(()) => {
            counts.add(&record.id, &record.identity, &found);
            record.told = told;
        }
        Err(error) => {
            warn!(container = record.id, error = %chain(&error), "that an end was counted can't be written down")
        }
    }
}

/// Tells what is new; true if that was all. `said` is whether the pod's object has it all: until then the place stays.
async fn tell(context: &Context, record: Record, allowance: &mut Allowance, said: bool) -> bool {
    let Record { id, place, identity, contents, mut told, .. } = record;
    for item in news(told, &contents.lines, allowance.left(Instant::now())) {
        // kubelet itself tells of the stops that it asks for.
        if item.line.rule != Rule::StopAsked {
            if let Outcome::Later = publish(context, &identity, &id, &item).await {
                return false;
            }
            allowance.take();
        }
        info!(
            namespace = identity.pod_namespace,
            pod = identity.pod_name,
            container = id,
            sequence = item.line.sequence,
            "{}",
            sentence(&identity.container_name, &item)
        );
        told.sequence = item.line.sequence;
        if let Err(error) = place.set_told(told) {
            warn!(container = id, error = %chain(&error), "that an end was told can't be written down");
            return false;
        }
    }
    let all = news(told, &contents.lines, 1).is_empty();
    if contents.ended
        && all
        && said
        && let Err(error) = place.remove()
    {
        warn!(container = id, error = %chain(&error), "the record of a container that is gone stays");
    }
    all
}

async fn publish(context: &Context, identity: &Identity, id: &str, item: &Item) -> Outcome {
    let event = event(identity, id, item, &context.settings.node_name, Timestamp::now());
    let api: Api<Event> = Api::namespaced(context.client.clone(), &identity.pod_namespace);
    match answer(api.create(&PostParams::default(), &event)).await {
        Ok(_) => Outcome::Settled,
        // It was told before.
        Err(RequestError::Api(kube::Error::Api(status))) if status.code == 409 => Outcome::Settled,
        // The namespace is going, or the API server will have none of it: the log has it all the same.
        Err(RequestError::Api(kube::Error::Api(status))) if (400..500).contains(&status.code) && status.code != 429 => {
            warn!(container = id, message = status.message, "an Event was refused");
            Outcome::Settled
        }
        Err(error) => {
            warn!(container = id, error = %chain(&error), "an Event has to wait");
            Outcome::Later
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::restarts::fixture::identity;
    use tideover_init::record::NEW;

    const LINE: &str = r#"{"version":1,"sequence":1,"atMillis":1,"cause":"clean","code":0,"ranMillis":5,"outcome":"exit","rule":"policy"}"#;

    #[test]
    fn a_container_that_spoils_its_record_spoils_nobody_elses() {
        let places = tempfile::tempdir().unwrap();
        let identity = identity();
        let make = |id: &str| {
            let place = Place::of(places.path(), id);
            std::fs::create_dir_all(place.inside()).unwrap();
            std::fs::write(places.path().join(id).join("identity.json"), serde_json::to_string(&identity).unwrap())
                .unwrap();
            place
        };
        std::fs::write(make("good").inside().join(NEW), format!("{LINE}\n")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", make("evil").inside().join(NEW)).unwrap();
        std::fs::create_dir(places.path().join("coming")).unwrap();
        let (ids, records) = look(places.path(), &HashMap::new()).unwrap();
        assert_eq!((ids.len(), records.len()), (3, 1));
        assert_eq!((records[0].id.as_str(), records[0].contents.lines.len()), ("good", 1));
        assert_eq!(records[0].told, Told::default());

        let known = Known { allowance: Allowance::new(Instant::now()), told_at: records[0].stamp };
        let known = HashMap::from([("good".to_owned(), known)]);
        assert_eq!(look(places.path(), &known).unwrap().1.len(), 0, "nothing has been written since");
        std::fs::write(records[0].place.inside().join(NEW), format!("{LINE}\n{LINE}\n")).unwrap();
        assert_eq!(look(places.path(), &known).unwrap().1.len(), 1);
    }

    #[test]
    fn an_end_that_was_counted_is_not_counted_by_the_next_agent() {
        let places = tempfile::tempdir().unwrap();
        let place = Place::of(places.path(), "c");
        std::fs::create_dir_all(place.inside()).unwrap();
        let identity = serde_json::to_string(&identity()).unwrap();
        std::fs::write(places.path().join("c/identity.json"), identity).unwrap();
        std::fs::write(place.inside().join(NEW), format!("{LINE}\n")).unwrap();
        let shown = || {
            let mut registry = prometheus_client::registry::Registry::default();
            let mut counts = Counts::in_registry(&mut registry);
            for record in &mut look(places.path(), &HashMap::new()).unwrap().1 {
                count(record, &mut counts);
            }
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            text.contains("tideover_restarts_total{")
        };
        assert!(shown());
        assert!(!shown(), "another agent");
        assert_eq!(place.told().unwrap(), Told { sequence: 0, counted: 1 }, "nobody was told of it");
    }
}
