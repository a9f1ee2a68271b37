//! Policies that can't be met: named before any maintenance, and the pod is never frozen.

use anyhow::{Result, ensure};
use e2e::scenario::drain::Drain;
use e2e::scenario::{Cluster, LIMIT, Sandbox, manifests, migration, until};

fn pod(spec: &str, container: &str) -> String {
    format!(
        "\
apiVersion: v1
kind: Pod
metadata: {{name: odd, labels: {{app: odd}}}}
spec:
  terminationGracePeriodSeconds: 1
{spec}  containers:
    - name: probe
      image: lab/probe:1
      imagePullPolicy: IfNotPresent
      args: [tick]
{container}"
    )
}

fn refused_with(name: &str, manifest: &str, reason: &str, words: &str) -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::new(cluster.kube(), name)?;
    sandbox.apply(&manifests::policy("odd", "odd", ""))?;
    sandbox.apply(manifest)?;
    let pod = sandbox.ready_pod("odd")?;
    let (condition, obstacle) = until("the policy to name the obstacle", LIMIT, || {
        let policy = sandbox.get(&["protectedworkload", "odd"])?.unwrap_or_default();
        let conditions = policy["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let condition = conditions.into_iter().find(|it| it["type"] == "Protected" && it["status"] == "False");
        let obstacle = policy["status"]["pods"][0]["obstacles"][0].clone();
        Ok(condition.filter(|_| obstacle.is_object()).map(|condition| (condition, obstacle)))
    })?;
    ensure!(obstacle["reason"] == reason, "the obstacle is {obstacle}");
    let message = obstacle["message"].as_str().unwrap_or_default();
    ensure!(message.contains(words), "{message:?} does not name {words:?}");
    ensure!(condition["message"].as_str().is_some_and(|it| !it.is_empty()), "the condition says why: {condition}");

    // A person who asks all the same gets the same sentence, and the pod is left alone.
    sandbox.create(&migration::manifest("asked", "odd"))?;
    let ended = migration::ended(&sandbox, "odd", LIMIT)?;
    ensure!(ended["status"]["phase"] == "Failed", "the move is {}", ended["status"]["phase"]);
    ensure!(ended["status"]["failures"][0]["reason"] == "NotMovable", "{}", ended["status"]);
    ensure!(ended["status"]["source"].is_null(), "the pod was touched: {}", ended["status"]["source"]);
    ensure!(sandbox.ready_pod("odd")?.uid == pod.uid, "the pod runs on");

    let drained = Drain::start(sandbox.kube(), &pod.node, "app=odd")?.finish(LIMIT)?;
    ensure!(drained.code == Some(0), "the drain goes on as without Tideover: {}", drained.said);
    sandbox.passed()
}

#[test]
fn a_terminal_is_refused() -> Result<()> {
    refused_with("tty", &pod("", "      tty: true\n      stdin: true\n"), "Terminal", "probe")
}

#[test]
fn the_nodes_network_is_refused() -> Result<()> {
    refused_with("host-network", &pod("  hostNetwork: true\n", ""), "HostNetwork", "hostNetwork")
}

#[test]
fn an_unknown_kind_of_volume_is_refused_by_its_name() -> Result<()> {
    let volumes = "  volumes: [{name: of-the-node, hostPath: {path: /tmp}}]\n";
    let mounts = "      volumeMounts: [{name: of-the-node, mountPath: /node}]\n";
    refused_with("volume", &pod(volumes, mounts), "UnsupportedVolume", "of-the-node")
}
