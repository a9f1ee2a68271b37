//! Looks at the records of this node's supervised containers, and tells what is new in them.
//!
//! An end is told before it is written down that it was. An agent that ends in between tells it again, and the API server knows
//! the Event by its name.

use super::allowance::Allowance;
use super::event::{event, sentence};
use super::news::{Item, news};
use crate::agent::context::{Context, RequestError, answer};
use crate::causes::chain;
use crate::supervised::place::{Contents, Told};
use crate::supervised::{Identity, PLACES, Place, PlaceError};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use kube::api::{Api, PostParams};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// How often records are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// One container's record, read.
struct Record {
    id: String,
    place: Place,
    identity: Identity,
    contents: Contents,
    told: Told,
}

/// What the API server makes of an Event.
enum Outcome {
    /// It is there, or will never be.
    Settled,
    /// It is to be tried again.
    Later,
}

/// Looks and tells for ever.
pub async fn watch(context: Arc<Context>) {
    let mut allowances: HashMap<String, Allowance> = HashMap::new();
    loop {
        tokio::time::sleep(LOOK).await;
        let node = context.node.clone();
        let looked = tokio::task::spawn_blocking(move || records(&node.path(Path::new(PLACES)))).await;
        match looked {
            Ok(Ok(records)) => {
                allowances.retain(|id, _| records.iter().any(|record| record.id == *id));
                for record in records {
                    let now = Instant::now();
                    let allowance = allowances.entry(record.id.clone()).or_insert_with(|| Allowance::new(now));
                    tell(&context, record, allowance).await;
                }
            }
            Ok(Err(error)) => warn!(error = %chain(&error), "the records of restarts can't be read"),
            Err(error) => warn!(%error, "the look at the records of restarts has ended early"),
        }
    }
}

/// The records that can be read. One that can't be is skipped until it can: its container may be about to come or to go. Blocking.
fn records(places: &Path) -> Result<Vec<Record>, PlaceError> {
    let all = Place::all(places)?.into_iter();
    let read = |(id, place): (String, Place)| {
        let record = (|| Ok((place.identity()?, place.contents()?, place.told()?)))();
        match record {
            Ok((identity, contents, told)) => Some(Record { id, place, identity, contents, told }),
            Err(PlaceError::Parse { path, source }) => {
                // Written by another version of Tideover, or not at all: nobody will ever make more of it.
                warn!(?path, %source, "what is known of a container's restarts can't be understood");
                None
            }
            Err(_) => None,
        }
    };
    Ok(all.filter_map(read).collect())
}

async fn tell(context: &Context, record: Record, allowance: &mut Allowance) {
    let Record { id, place, identity, contents, mut told } = record;
    for item in news(told, &contents.lines, allowance.left(Instant::now())) {
        if let Outcome::Later = publish(context, &identity, &id, &item).await {
            return;
        }
        allowance.take();
        info!(
            namespace = identity.pod_namespace,
            pod = identity.pod_name,
            container = id,
            sequence = item.line.sequence,
            "{}",
            sentence(&identity.container_name, &item)
        );
        told = Told { sequence: item.line.sequence };
        if let Err(error) = place.set_told(told) {
            warn!(container = id, error = %chain(&error), "that an end was told can't be written down");
            return;
        }
    }
    if contents.ended
        && news(told, &contents.lines, 1).is_empty()
        && let Err(error) = place.remove()
    {
        warn!(container = id, error = %chain(&error), "the record of a container that is gone stays");
    }
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
    use tideover_init::record::NEW;

    const LINE: &str = r#"{"version":1,"sequence":1,"atMillis":1,"cause":"clean","code":0,"ranMillis":5,"outcome":"exit","rule":"policy"}"#;

    #[test]
    fn a_container_that_spoils_its_record_spoils_nobody_elses() {
        let places = tempfile::tempdir().unwrap();
        let identity = Identity {
            pod_namespace: "shop".into(),
            pod_name: "web-0".into(),
            pod_uid: "u".into(),
            container_name: "app".into(),
            program: "0123456789abcdef0123456789abcdef".into(),
        };
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
        let records = records(places.path()).unwrap();
        assert_eq!(records.len(), 1);
        assert_eq!((records[0].id.as_str(), records[0].contents.lines.len()), ("good", 1));
        assert_eq!(records[0].told, Told::default());
    }
}
