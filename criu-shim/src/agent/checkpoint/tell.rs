//! What is told of checkpoints: Events on the pod, and the agent's metrics.

use super::Subject;
use super::about::About;
use crate::agent::context::{Context, RequestError, answer};
use crate::agent::restarts::event::{About as On, pod_event};
use crate::causes::chain;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use kube::api::{Api, PostParams};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tracing::{info, warn};

/// How often an Event is tried, and the pause between two tries.
const TRIES: u32 = 10;
const AGAIN: Duration = Duration::from_secs(3);

/// Something that a person should hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// The container goes on from a checkpoint.
    Restored(About),
    /// A checkpoint is not used again, for this reason.
    Poisoned(About, String),
    /// The container gave up, and there is nothing that it could go on from.
    NoneGood {
        /// Which container starts cold.
        container_id: String,
    },
    /// No checkpoint is taken, for this reason.
    NotTaken {
        /// Of which container.
        container_id: String,
        /// A word for the reason. It is told once for each.
        kind: String,
        /// Why, a sentence.
        why: String,
    },
}

impl News {
    fn kind(&self) -> (&'static str, &'static str) {
        match self {
            Self::Restored(_) => ("Normal", "RestoredFromCheckpoint"),
            Self::Poisoned(..) => ("Warning", "CheckpointPoisoned"),
            Self::NoneGood { .. } => ("Warning", "NoGoodCheckpoint"),
            Self::NotTaken { .. } => ("Warning", "CheckpointNotTaken"),
        }
    }

    fn sentence(&self, container: &str) -> String {
        match self {
            Self::Restored(about) => {
                format!("{container} goes on from checkpoint {}, which was taken at {}", about.number, taken(about))
            }
            Self::Poisoned(about, why) => {
                format!(
                    "checkpoint {} of {container}, taken at {}, is not used again: {why}",
                    about.number,
                    taken(about)
                )
            }
            Self::NoneGood { .. } => format!("there is no good checkpoint of {container}: it starts cold"),
            Self::NotTaken { why, .. } => format!("no checkpoint is taken of {container}: {why}"),
        }
    }

    /// The same for the same news, and for no other.
    fn key(&self) -> String {
        match self {
            Self::Restored(about) => format!("restored/{}/{}", about.number, about.taken_millis),
            Self::Poisoned(about, _) => format!("poisoned/{}/{}", about.number, about.taken_millis),
            Self::NoneGood { container_id } => format!("none/{container_id}"),
            Self::NotTaken { container_id, kind, .. } => format!("not/{container_id}/{kind}"),
        }
    }
}

fn taken(about: &About) -> String {
    let millis = i64::try_from(about.taken_millis).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(millis).map_or_else(|_| "an unknown time".to_owned(), |at| format!("{at:.0}"))
}

/// Tells it in the log and as an Event on the pod, which nobody waits for.
pub fn tell(context: &Arc<Context>, subject: &Subject, news: &News) {
    let (namespace, sentence) = (subject.pod_namespace.clone(), news.sentence(&subject.container_name));
    info!(namespace, pod = subject.pod_name, "{sentence}");
    let (type_, reason) = news.kind();
    let key = format!("checkpoint/{}/{}/{}", subject.pod_uid, subject.container_name, news.key());
    let on =
        On { namespace: &namespace, pod: &subject.pod_name, uid: &subject.pod_uid, container: &subject.container_name };
    let event = pod_event(&on, &key, (type_, reason, sentence), &context.settings.node_name, Timestamp::now());
    let api: Api<Event> = Api::namespaced(context.client.clone(), &namespace);
    tokio::spawn(async move {
        for _ in 0..TRIES {
            match answer(api.create(&PostParams::default(), &event)).await {
                // It is there, was told before, or will never be.
                Ok(_) | Err(RequestError::Api(kube::Error::Api(_))) => return,
                Err(error) => warn!(error = %chain(&error), "an Event has to wait"),
            }
            tokio::time::sleep(AGAIN).await;
        }
    });
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Whose {
    namespace: String,
    pod: String,
    container: String,
}

impl From<&Subject> for Whose {
    fn from(subject: &Subject) -> Self {
        let Subject { pod_namespace, pod_name, container_name, .. } = subject.clone();
        Self { namespace: pod_namespace, pod: pod_name, container: container_name }
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Counted {
    namespace: String,
    pod: String,
    container: String,
    outcome: Outcome,
}

/// What is counted.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelValue)]
pub enum Outcome {
    /// A checkpoint was stored.
    Stored,
    /// One was to be taken, and was not.
    NotTaken,
    /// A container was restored from one.
    Restored,
    /// One was poisoned.
    Poisoned,
    /// A container gave up and started cold, for want of a good one.
    NoneGood,
}

const OUTCOMES: [Outcome; 5] =
    [Outcome::Stored, Outcome::NotTaken, Outcome::Restored, Outcome::Poisoned, Outcome::NoneGood];

type Seconds = Gauge<f64, AtomicU64>;

/// The metrics. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    outcomes: Family<Counted, Counter>,
    pause: Family<Whose, Seconds>,
    bytes: Family<Whose, Gauge>,
}

impl Figures {
    /// None yet, to be shown in `registry`.
    pub fn in_registry(registry: &mut Registry) -> Self {
        let figures = Self::default();
        registry.register(
            "tideover_checkpoints",
            "What became of checkpoints: stored, not taken, restored from, poisoned, or none good when one was asked for",
            figures.outcomes.clone(),
        );
        registry.register_with_unit(
            "tideover_checkpoint_pause",
            "How long the container stood still for its newest checkpoint",
            Unit::Seconds,
            figures.pause.clone(),
        );
        registry.register_with_unit(
            "tideover_checkpoint_size",
            "What the newest checkpoint of the container takes on the disk",
            Unit::Bytes,
            figures.bytes.clone(),
        );
        figures
    }

    /// Counts one.
    pub fn count(&self, subject: &Subject, outcome: Outcome) {
        let Whose { namespace, pod, container } = subject.into();
        self.outcomes.get_or_create(&Counted { namespace, pod, container, outcome }).inc();
    }

    /// Shows what the newest one took.
    pub fn show(&self, subject: &Subject, paused: Duration, bytes: u64) {
        let whose = subject.into();
        self.pause.get_or_create(&whose).set(paused.as_secs_f64());
        self.bytes.get_or_create(&whose).set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Forgets a container that is gone.
    pub fn forget(&self, subject: &Subject) {
        let whose: Whose = subject.into();
        self.pause.remove(&whose);
        self.bytes.remove(&whose);
        for outcome in OUTCOMES {
            let Whose { namespace, pod, container } = whose.clone();
            self.outcomes.remove(&Counted { namespace, pod, container, outcome });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::about::tests::about;
    use super::*;
    use prometheus_client::encoding::text::encode;

    #[test]
    fn it_is_told_in_words_with_number_and_time() {
        let sentence = News::Restored(about(3, 1)).sentence("app");
        assert_eq!(sentence, "app goes on from checkpoint 3, which was taken at 1970-01-01T00:00:03Z");
        let poisoned = News::Poisoned(about(3, 1), "it crashed".into());
        assert!(poisoned.sentence("app").ends_with("is not used again: it crashed"));
        assert_ne!(poisoned.key(), News::Restored(about(3, 1)).key());
    }

    #[test]
    fn what_is_counted_is_shown_until_the_container_is_gone() {
        let mut registry = Registry::default();
        let figures = Figures::in_registry(&mut registry);
        let subject = Subject {
            pod_namespace: "shop".into(),
            pod_name: "web-0".into(),
            pod_uid: "u".into(),
            container_name: "app".into(),
        };
        let shown = || {
            let mut text = String::new();
            encode(&mut text, &registry).expect("text");
            text
        };
        figures.count(&subject, Outcome::Stored);
        figures.show(&subject, Duration::from_millis(25), 7);
        let text = shown();
        assert!(text.contains(r#"container="app",outcome="Stored"} 1"#), "{text}");
        assert!(text.contains("tideover_checkpoint_pause_seconds{") && text.contains("} 0.025"), "{text}");
        figures.forget(&subject);
        assert!(!shown().contains("web-0"));
    }
}
