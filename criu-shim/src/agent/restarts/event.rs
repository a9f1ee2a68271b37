//! The end of a run in words, and as an Event on the pod. Pure.

use super::news::Item;
use crate::supervised::Identity;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use std::time::Duration;
use tideover_init::decide::Rule;
use tideover_init::exit::Cause;
use tideover_init::record::{Line, Outcome};
use tideover_init::signal;

/// Who reports.
const COMPONENT: &str = "tideover-agent";
/// Most characters of the pod's name in that of an Event, which may have 253.
const NAME_MAX: usize = 200;

/// The Event for `item`, of the container `id` on `node`. Its name is the same whenever it is made, so that the API server
/// itself sees to it that there is one.
pub fn event(identity: &Identity, id: &str, item: &Item, node: &str, now: Timestamp) -> Event {
    let Identity { pod_namespace, pod_name, pod_uid, container_name, .. } = identity;
    let on = About { namespace: pod_namespace, pod: pod_name, uid: pod_uid, container: container_name };
    let (type_, reason) = kind(&item.line);
    let key = format!("{id}/{}", item.line.sequence);
    pod_event(&on, &key, (type_, reason, sentence(container_name, item)), node, now)
}

/// The container of a pod that an Event is about.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    /// Namespace of the pod.
    pub namespace: &'a str,
    /// Its name.
    pub pod: &'a str,
    /// Its UID.
    pub uid: &'a str,
    /// Name of the container.
    pub container: &'a str,
}

/// An Event of this node about a container: type, reason and message are `said`. Its name follows from the pod's and from `key`
/// alone.
pub fn pod_event(about: &About<'_>, key: &str, said: (&str, &str, String), node: &str, now: Timestamp) -> Event {
    let About { namespace, pod, uid, container } = *about;
    let digest = blake3::hash(key.as_bytes()).to_hex();
    let name: String = pod.chars().take(NAME_MAX).collect();
    let name = name.trim_end_matches(['-', '.']);
    let (type_, reason, message) = said;
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{}", &digest[..16])),
            namespace: Some(namespace.to_owned()),
            ..Default::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(namespace.to_owned()),
            name: Some(pod.to_owned()),
            uid: Some(uid.to_owned()),
            field_path: Some(format!("spec.containers{{{container}}}")),
            ..Default::default()
        },
        type_: Some(type_.to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(message),
        // The node's clock: what the container says of the time is its own affair.
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        source: Some(EventSource { component: Some(COMPONENT.to_owned()), host: Some(node.to_owned()) }),
        reporting_component: Some(COMPONENT.to_owned()),
        reporting_instance: Some(node.to_owned()),
        ..Default::default()
    }
}

fn kind(line: &Line) -> (&'static str, &'static str) {
    match (line.outcome, line.cause, line.rule) {
        (Outcome::Restart { .. }, Cause::Clean, _) => ("Normal", "RestartedInPlace"),
        (Outcome::Restart { .. }, ..) => ("Warning", "RestartedInPlace"),
        (Outcome::Migrate { .. } | Outcome::RestoreCheckpoint, ..) | (Outcome::Exit, _, Rule::StartLimit) => {
            ("Warning", "RestartsGivenUp")
        }
        (Outcome::Exit, ..) => ("Normal", "NotRestarted"),
    }
}

/// What has happened, in one sentence.
pub fn sentence(container: &str, item: &Item) -> String {
    let Item { line, untold } = item;
    let how = match (line.code, line.signal) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(number)) if line.core => format!("{} with a core dump", signal::name(number.into())),
        (None, Some(number)) => signal::name(number.into()),
        (None, None) => "status unknown".to_owned(),
    };
    let what = match line.cause {
        Cause::Clean | Cause::UncleanExitCode | Cause::UncleanSignal => "ended",
        Cause::Timeout => "exceeded a time limit",
        Cause::Watchdog => "did not answer the watchdog",
        Cause::OomKill => "was killed for want of memory",
        Cause::Protocol => "ended before it said READY=1",
    };
    let ran = seconds(line.ran_millis);
    let rule = match line.rule {
        Rule::StopAsked => "a stop was asked for",
        Rule::PreventExitStatus => "restartPreventExitStatus",
        Rule::ForceExitStatus => "restartForceExitStatus",
        Rule::Policy => "policy",
        Rule::StartLimit => "startLimit",
    };
    let outcome = match line.outcome {
        Outcome::Restart { delay_millis, .. } => {
            // Each end before this one was followed by a run too.
            format!("started again in place after {} (restart {}, by {rule})", seconds(delay_millis), line.sequence)
        }
        Outcome::Migrate { hold_millis } => {
            format!("the container waits to be moved, for {} at most ({rule})", seconds(hold_millis))
        }
        Outcome::RestoreCheckpoint => format!("the container ends, to come back from a checkpoint ({rule})"),
        Outcome::Exit => format!("the container ends ({rule})"),
    };
    let mut sentence = format!("{container} {what} ({how}) after {ran}: {outcome}");
    if let Some(status) = &line.status {
        sentence.push_str(&format!("; it said {status:?}"));
    }
    if *untold > 0 {
        sentence.push_str(&format!("; {untold} ends before this one are not told one by one"));
    }
    sentence
}

fn seconds(millis: u64) -> String {
    format!("{:?}", Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::restarts::fixture::identity;

    fn line(json: &str) -> Line {
        let rest = r#""version":1,"sequence":3,"atMillis":1,"ranMillis":1500"#;
        serde_json::from_str(&format!("{{{rest},{json}}}")).unwrap()
    }

    #[track_caller]
    fn check(json: &str, reason: &str, expected: &str) {
        let line = line(json);
        assert_eq!(kind(&line).1, reason);
        assert_eq!(sentence("app", &Item { line, untold: 0 }), expected);
    }

    #[test]
    fn an_end_is_told_with_cause_run_time_delay_and_rule() {
        let again = r#""outcome":{"restart":{"delayMillis":100,"attempt":2}},"rule":"policy""#;
        check(
            &format!(r#""cause":"uncleanSignal","signal":11,"core":true,{again}"#),
            "RestartedInPlace",
            "app ended (SIGSEGV with a core dump) after 1.5s: started again in place after 100ms (restart 3, by policy)",
        );
        check(
            &format!(r#""cause":"watchdog","signal":6,{again},"status":"at work""#),
            "RestartedInPlace",
            "app did not answer the watchdog (SIGABRT) after 1.5s: started again in place after 100ms \
             (restart 3, by policy); it said \"at work\"",
        );
        check(
            r#""cause":"uncleanExitCode","code":7,"outcome":"exit","rule":"startLimit""#,
            "RestartsGivenUp",
            "app ended (exit code 7) after 1.5s: the container ends (startLimit)",
        );
        check(
            r#""cause":"uncleanExitCode","code":7,"outcome":{"migrate":{"holdMillis":180000}},"rule":"startLimit""#,
            "RestartsGivenUp",
            "app ended (exit code 7) after 1.5s: the container waits to be moved, for 180s at most (startLimit)",
        );
        check(
            r#""cause":"clean","code":0,"outcome":"exit","rule":"stopAsked""#,
            "NotRestarted",
            "app ended (exit code 0) after 1.5s: the container ends (a stop was asked for)",
        );
    }

    #[test]
    fn the_same_end_has_the_same_event_whoever_tells_it_and_when() {
        let identity = identity();
        let item = |sequence| {
            let mut line = line(r#""cause":"clean","code":0,"outcome":"exit","rule":"policy""#);
            line.sequence = sequence;
            Item { line, untold: sequence }
        };
        let name = |id: &str, sequence: u64, second: i64| {
            let now = Timestamp::from_second(second).unwrap();
            event(&identity, id, &item(sequence), "n", now).metadata.name.unwrap()
        };
        assert_eq!(name("c", 1, 0), name("c", 1, 99));
        assert!(name("c", 1, 0) != name("c", 2, 0) && name("c", 1, 0) != name("d", 1, 0));
        let event = event(&identity, "c", &item(1), "n", Timestamp::UNIX_EPOCH);
        assert_eq!(event.involved_object.uid.as_deref(), Some("u"));
        assert_eq!(event.involved_object.field_path.as_deref(), Some("spec.containers{app}"));
    }
}
