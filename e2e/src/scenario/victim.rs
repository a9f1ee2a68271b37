//! Finding and ending one of Tideover's own processes, at once and without warning.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::cluster::{Cluster, NAMESPACE};

/// Who is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// The leading replica of the operator.
    Operator,
    /// The agent on the source.
    SourceAgent,
    /// The agent on the target.
    TargetAgent,
}

impl Cluster {
    /// Sends SIGKILL to the agent on `node`.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn kill_agent(&self, node: &str) -> Result<()> {
        let first = self.node(node)?.first_process()?.with_context(|| format!("{node} is down"))?;
        let machine = pid_namespace(first.pid)?;
        kill_one("tideover-agent", |pid| Ok(pid_namespace(pid)? == machine))
    }

    /// Sends SIGKILL to the replica of the operator that holds the lease.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill_operator(&self) -> Result<()> {
        let lease = self.kube().get(&["lease", "tideover-operator", "--namespace", NAMESPACE])?.context("no lease")?;
        let holder = lease["spec"]["holderIdentity"].as_str().context("nobody holds the lease")?.to_owned();
        kill_one("tideover-operator", |pid| Ok(host_name(pid)? == holder))
    }
}

/// Sends SIGKILL to the one process called `name` that `is_it`. A process that vanishes while it is looked at is not it.
fn kill_one(name: &str, is_it: impl Fn(i32) -> Result<bool>) -> Result<()> {
    // The kernel keeps 15 characters of a name.
    let name = &name[..name.len().min(15)];
    for entry in fs::read_dir("/proc").context("list processes")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|text| text.parse::<i32>().ok()) else { continue };
        let comm = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("comm")).unwrap_or_default();
        if comm.trim() == name && is_it(pid).unwrap_or(false) {
            let process = Pid::from_raw(pid).context("process 0")?;
            let handle = pidfd_open(process, PidfdFlags::empty()).context("open the victim")?;
            return pidfd_send_signal(&handle, Signal::KILL).context("kill the victim");
        }
    }
    bail!("no process {name} to kill")
}

fn pid_namespace(pid: i32) -> Result<String> {
    let link = fs::read_link(format!("/proc/{pid}/ns/pid")).with_context(|| format!("read the namespace of {pid}"))?;
    Ok(link.to_string_lossy().into_owned())
}

/// `POD_NAME` in the environment of a container's process: the pod's name.
fn host_name(pid: i32) -> Result<String> {
    let environment =
        fs::read(format!("/proc/{pid}/environ")).with_context(|| format!("read the environment of {pid}"))?;
    let text = String::from_utf8_lossy(&environment);
    let name = text.split('\0').find_map(|variable| variable.strip_prefix("POD_NAME="));
    Ok(name.context("no POD_NAME")?.to_owned())
}
