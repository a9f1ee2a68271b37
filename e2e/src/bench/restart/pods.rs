//! Restarts of the same container in pods: by kubelet alone, and by Tideover.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::stamps::Stamps;
use super::{LIFE, environment};
use crate::scenario::{Cluster, Sandbox, manifests, until};

/// How long a pod may take to start and for its restarts, beyond the runs between them.
const LIMIT: Duration = Duration::from_secs(120);
/// Name of the container, which the rules of [`super::start_up`] are for too.
pub const CONTAINER: &str = "crasher";
/// Annotation with the rules for restarts that admission has resolved.
pub const SUPERVISION: &str = "tideover.dev/supervision";
/// What the policy of supervised pods selects.
const SUPERVISED: &str = "supervised";
/// Restarts of each supervised pod.
const RESTARTS: usize = 3;

/// What was seen, milliseconds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    /// kubelet's first restart of each pod: it delays those that follow by 10 s and more.
    pub kubelet: Vec<f64>,
    /// Tideover's restarts.
    pub tideover: Vec<f64>,
    /// The rules of the supervised pods, as admission has resolved them.
    pub rules: String,
}

/// Has `pods` fresh pods of each kind crash, one after the other.
///
/// # Errors
/// When a container is not started again.
pub fn restarts(cluster: &Cluster, pods: usize) -> Result<Seen> {
    let sandbox = Sandbox::new(cluster.kube(), "bench-restart")?;
    let rules = "  restart: {policy: Always, delay: 0s, startLimit: {interval: 0s}}\n";
    sandbox.apply(&manifests::policy(SUPERVISED, SUPERVISED, rules))?;
    let mut seen = Seen::default();
    for number in 1..=pods {
        let pod = format!("tideover-{number}");
        seen.tideover.extend(crash(cluster, &sandbox, &pod, SUPERVISED, RESTARTS)?);
        seen.rules = rules_of(&sandbox, &pod)?;
        remove(&sandbox, &pod)?;
        let pod = format!("kubelet-{number}");
        seen.kubelet.extend(crash(cluster, &sandbox, &pod, "alone", 1)?);
        remove(&sandbox, &pod)?;
        eprintln!("pods {number}/{pods}");
    }
    sandbox.passed()?;
    Ok(seen)
}

/// Makes a pod that crashes `crashes` times, and waits until it runs again after the last one. How long each restart took,
/// milliseconds.
fn crash(cluster: &Cluster, sandbox: &Sandbox, name: &str, app: &str, crashes: usize) -> Result<Vec<f64>> {
    sandbox.create(&manifest(name, app, crashes))?;
    let all = until(format!("{crashes} restarts of {name}"), LIMIT + LIFE * crashes as u32, || {
        let pods = sandbox.pods(app)?;
        let Some(pod) = pods.iter().find(|pod| pod.name == name && !pod.node.is_empty()) else { return Ok(None) };
        let stamps = Stamps::read(&cluster.node(&pod.node)?.path(on_node(&pod.uid))?)?;
        Ok((stamps.starts.len() > crashes).then_some(stamps))
    })?;
    all.restarts()
}

/// The rules for restarts of a supervised pod.
fn rules_of(sandbox: &Sandbox, pod: &str) -> Result<String> {
    let object = sandbox.get(&["pod", pod])?.context("the pod is gone")?;
    let rules = object["metadata"]["annotations"][SUPERVISION].as_str().context("the pod is not supervised")?;
    Ok(rules.to_owned())
}

/// Waits until the pod is gone: its processes would be there while the next one is measured.
fn remove(sandbox: &Sandbox, pod: &str) -> Result<()> {
    sandbox.run(&["delete", "pod", pod, "--wait=true"]).map(drop)
}

/// A pod whose runs note what they do in a volume that outlives its container.
fn manifest(name: &str, app: &str, crashes: usize) -> String {
    let variables = environment(Path::new("/stamps/stamps"), crashes);
    let variables = variables.map(|(name, value)| format!("{{name: {name}, value: '{value}'}}")).join(", ");
    format!(
        "\
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {app}}}}}
spec:
  restartPolicy: Always
  terminationGracePeriodSeconds: 1
  containers:
    - name: {CONTAINER}
      image: lab/probe:1
      imagePullPolicy: IfNotPresent
      command: [/crasher]
      env: [{variables}]
      volumeMounts: [{{name: stamps, mountPath: /stamps}}]
  volumes: [{{name: stamps, emptyDir: {{medium: Memory}}}}]
---
"
    )
}

/// The file of the stamps on the pod's node.
fn on_node(uid: &str) -> PathBuf {
    PathBuf::from(format!("/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~empty-dir/stamps/stamps"))
}
