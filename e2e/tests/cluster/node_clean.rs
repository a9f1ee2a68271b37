//! What `helm uninstall` leaves on a node: running pods, and nothing else.

use anyhow::{Context, Result, ensure};
use e2e::scenario::cluster::NAMESPACE;
use e2e::scenario::manifests::{self, Ticker};
use e2e::scenario::{Cluster, Collector, LIMIT, Sandbox, until};

#[test]
fn uninstall_leaves_pods_running_and_nodes_clean() -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::new(cluster.kube(), "uninstall")?;
    let collector = Collector::listen(cluster.host_address())?;
    sandbox.apply(&manifests::policy("ticker", "ticker", "  restart: {policy: Always}\n"))?;
    sandbox.apply(&Ticker { mib: 1, collector: collector.address() }.deployment("ticker"))?;
    let pod = sandbox.ready_pod("ticker")?;
    until("ticks", LIMIT, || Ok(Some(()).filter(|()| collector.account().newest > 100)))?;

    cluster.helm(&["uninstall", "tideover", "--namespace", NAMESPACE, "--wait", "--timeout=180s"])?;
    let checked = still_running_and_clean(cluster, &sandbox, &collector, &pod);
    sandbox.run(&["delete", "deployment", "ticker", "--wait=true"])?;
    let nothing_left = until("the last container under the shim to take the programs with it", LIMIT, || {
        Ok(Some(()).filter(|()| {
            let gone = "test ! -e /opt/tideover && test ! -e /run/tideover-init";
            cluster.node(&pod.node).is_ok_and(|node| node.exec(["/bin/sh", "-c", gone]).is_ok())
        }))
    });
    // The tests that follow need it again, also when this one has failed.
    cluster.helm_install()?;
    checked.and(nothing_left)?;
    sandbox.passed()
}

fn still_running_and_clean(
    cluster: &Cluster,
    sandbox: &Sandbox,
    collector: &Collector,
    pod: &e2e::scenario::sandbox::Pod,
) -> Result<()> {
    for node in cluster.workers() {
        until(format!("{node} to be clean"), LIMIT, || {
            let drop_in = cluster.node(&node)?.exec(["test", "!", "-e", "/etc/containerd/conf.d/tideover.toml"]);
            Ok(drop_in.is_ok().then_some(()))
        })?;
        until(format!("{node} to keep no file"), LIMIT, || {
            let find = "find /var/lib/tideover -type f 2>/dev/null || true";
            let left = cluster.node(&node)?.exec(["/bin/sh", "-c", find])?.stdout;
            Ok(left.is_empty().then_some(()))
        })?;
    }
    let after = sandbox.ready_pod("ticker")?;
    ensure!(after.uid == pod.uid && after.restarts == 0, "the pod did not run on");
    let newest = collector.account().newest;
    until("the ticker to go on", LIMIT, || Ok(Some(()).filter(|()| collector.account().newest > newest + 500)))?;
    sandbox.run(&["exec", &after.name, "--", "/probe", "--help"]).context("exec under the shim")?;
    Ok(())
}
