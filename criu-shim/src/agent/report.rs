//! Reports of one side of a Migration: `status.source` and `status.target`, written beside the work, never in its way.
//!
//! A task of its own writes the newest report, as often as it takes. It replaces its own field as a whole, pinned by
//! the object's UID and attempt, and never touches another.

use crate::agent::context::{RequestError, answer};
use crate::causes::chain;
use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch as JsonPatch, PatchOperation, TestOperation};
use kube::api::{Api, Patch, PatchParams};
use kube::core::Status;
use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tideover_crds::{Migration, SourceReport, TargetReport};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, error, warn};

/// First and longest pause between two tries.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// How long a report from inside the freeze is held back. Writing one costs this node, the API server and everybody who
/// watches it processor time that the move needs now; a freeze that is over sooner is reported once.
const HOLD_BACK: Duration = Duration::from_millis(700);

/// A report, and the field of the status that it belongs in.
pub trait Report: Clone + Serialize + Send + Sync + 'static {
    /// Name of the field.
    const FIELD: &'static str;
    /// Attempt that it speaks of.
    fn attempt(&self) -> u32;
}

impl Report for SourceReport {
    const FIELD: &'static str = "source";
    fn attempt(&self) -> u32 {
        self.attempt
    }
}

impl Report for TargetReport {
    const FIELD: &'static str = "target";
    fn attempt(&self) -> u32 {
        self.attempt
    }
}

/// Writes the reports that it is given. When it is dropped, the last one is still delivered.
#[derive(Debug)]
pub struct Reporter<R> {
    newest: watch::Sender<Option<Due<R>>>,
    written: watch::Receiver<u64>,
    number: AtomicU64,
}

/// A report and when it is to be written.
#[derive(Clone, Debug)]
struct Due<R> {
    report: R,
    number: u64,
    at: Instant,
}

impl<R: Report> Reporter<R> {
    /// For the Migration `namespace/name` with this UID. Must be called inside a tokio runtime.
    pub fn start(client: kube::Client, namespace: &str, name: &str, uid: &str) -> Self {
        let (newest, reports) = watch::channel(None);
        let api = Api::namespaced(client, namespace);
        let (written_sender, written) = watch::channel(0);
        tokio::spawn(deliver(api, name.to_owned(), uid.to_owned(), reports, written_sender));
        Self { newest, written, number: AtomicU64::new(0) }
    }

    /// Has `report` written. One that is not written yet is replaced by it.
    pub fn report(&self, report: R) {
        self.send(report, Instant::now());
    }

    /// Has `report` written and waits for that, but no longer than `limit`: for what others should know before they see what
    /// comes next.
    pub async fn report_first(&self, report: R, limit: Duration) {
        let number = self.send(report, Instant::now());
        let mut written = self.written.clone();
        // Late or never, the report is written all the same.
        tokio::time::timeout(limit, written.wait_for(|written| *written >= number)).await.ok();
    }

    fn send(&self, report: R, at: Instant) -> u64 {
        let number = self.number.fetch_add(1, Ordering::Relaxed) + 1;
        self.newest.send_replace(Some(Due { report, number, at }));
        number
    }

    /// Has `report` written a little later, unless another comes first: for steps inside the freeze.
    pub fn report_later(&self, report: R) {
        // A series of these does not put the first one off.
        let held = self.newest.borrow().as_ref().map(|due| due.at).filter(|at| *at > Instant::now());
        let at = held.unwrap_or_else(|| Instant::now() + HOLD_BACK);
        self.send(report, at);
    }
}

async fn deliver<R: Report>(
    api: Api<Migration>,
    name: String,
    uid: String,
    mut reports: watch::Receiver<Option<Due<R>>>,
    written: watch::Sender<u64>,
) {
    let mut pause = PAUSES.0;
    loop {
        let due = reports.borrow_and_update().clone();
        if let Some(Due { report, number, at }) = due {
            tokio::select! {
                () = tokio::time::sleep_until(at) => {}
                Ok(()) = reports.changed() => continue,
            }
            match write(&api, &name, &uid, &report).await {
                Ok(()) => pause = PAUSES.0,
                Err(RequestError::Api(kube::Error::Api(status))) if is_moot(&status) => {
                    debug!(name, field = R::FIELD, attempt = report.attempt(), %status, "report dropped");
                }
                Err(RequestError::Api(kube::Error::Api(status))) if status.code == 422 => {
                    // The same report would be refused for ever.
                    error!(name, field = R::FIELD, attempt = report.attempt(), %status, "report not valid, dropped");
                }
                Err(error) => {
                    warn!(name, field = R::FIELD, error = %chain(&error), "report not written, trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSES.1);
                    continue;
                }
            }
            written.send_replace(number);
        }
        if reports.changed().await.is_err() {
            return;
        }
    }
}

async fn write<R: Report>(api: &Api<Migration>, name: &str, uid: &str, report: &R) -> Result<(), RequestError> {
    let value = serde_json::to_value(report).map_err(kube::Error::SerdeError)?;
    let patch = Patch::Json::<()>(patch(R::FIELD, uid, report.attempt(), value));
    answer(api.patch_status(name, &PatchParams::default(), &patch)).await.map(|_| ())
}

/// Whether nobody is waiting for the report any more: the object is gone, or is another, or its attempt has moved on. The
/// API server answers 422 both to a patch whose test fails and to a value that the schema refuses; only the latter has
/// causes.
fn is_moot(status: &Status) -> bool {
    let caused = status.details.as_ref().is_some_and(|details| !details.causes.is_empty());
    status.code == 404 || (status.code == 422 && !caused)
}

/// Replaces one side's report of exactly this object and attempt.
fn patch(field: &str, uid: &str, attempt: u32, value: serde_json::Value) -> JsonPatch {
    let pointer = |path: [&str; 2]| PointerBuf::from_tokens(path);
    JsonPatch(vec![
        PatchOperation::Test(TestOperation { path: pointer(["metadata", "uid"]), value: uid.into() }),
        PatchOperation::Test(TestOperation { path: pointer(["status", "attempt"]), value: attempt.into() }),
        PatchOperation::Add(AddOperation { path: pointer(["status", field]), value }),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_by_the_schema_is_not_taken_for_a_later_attempt() {
        let status = |value| serde_json::from_value::<Status>(value).expect("status");
        assert!(is_moot(&status(serde_json::json!({ "code": 404, "reason": "NotFound" }))));
        // As the API server answers a JSON patch whose test fails.
        assert!(is_moot(&status(serde_json::json!({ "code": 422, "reason": "Invalid", "details": {} }))));
        assert!(is_moot(&status(serde_json::json!({ "code": 422, "reason": "Invalid" }))));
        let causes = serde_json::json!([{ "reason": "FieldValueNotSupported", "field": "status.source.step" }]);
        let refused = serde_json::json!({ "code": 422, "reason": "Invalid", "details": { "causes": causes } });
        assert!(!is_moot(&status(refused)));
        assert!(!is_moot(&status(serde_json::json!({ "code": 500 }))));
    }

    #[test]
    fn a_report_replaces_its_own_field_of_its_own_attempt() {
        let object = |attempt: u32| {
            serde_json::json!({
                "metadata": { "uid": "u" },
                "status": { "attempt": attempt, "source": { "step": "Ready" },
                            "target": { "attempt": 1, "failure": { "reason": "Corrupted" } } },
            })
        };
        let patch = patch("target", "u", 2, serde_json::json!({ "attempt": 2 }));
        let mut second = object(2);
        json_patch::patch(&mut second, &patch).expect("applies");
        assert_eq!(second["status"]["target"], serde_json::json!({ "attempt": 2 }), "nothing of attempt 1 is left");
        assert_eq!(second["status"]["source"]["step"], "Ready");
        assert!(json_patch::patch(&mut object(3), &patch).is_err(), "a later attempt");
    }
}
