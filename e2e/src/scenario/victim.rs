//! Finding Tideover's own processes, and ending them at once and without warning.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::cluster::{Cluster, NAMESPACE};

/// A process that was found and can be ended without looking for it again.
#[derive(Debug)]
pub struct Victim {
    /// Its number on this host.
    pub pid: i32,
    handle: OwnedFd,
}

impl Victim {
    /// Sends SIGKILL.
    ///
    /// # Errors
    /// When the process has ended by itself.
    pub fn kill(&self) -> Result<()> {
        pidfd_send_signal(&self.handle, Signal::KILL).context("kill the victim")
    }
}

impl Cluster {
    /// The agent on `node`.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn agent(&self, node: &str) -> Result<Victim> {
        let first = self.node(node)?.first_process()?.with_context(|| format!("{node} is down"))?;
        let machine = pid_namespace(first.pid)?;
        the_one("tideover-agent", |pid| Ok(pid_namespace(pid)? == machine))
    }

    /// The replica of the operator that holds the lease.
    ///
    /// # Errors
    /// When there is none.
    pub fn leading_operator(&self) -> Result<Victim> {
        let lease = self.kube().get(&["lease", "tideover-operator", "--namespace", NAMESPACE])?.context("no lease")?;
        let holder = lease["spec"]["holderIdentity"].as_str().context("nobody holds the lease")?.to_owned();
        the_one("tideover-operator", |pid| Ok(pod_name(pid)? == holder))
    }
}

/// The one process called `name` that `is_it`. A process that vanishes while it is looked at is not it.
fn the_one(name: &str, is_it: impl Fn(i32) -> Result<bool>) -> Result<Victim> {
    // The kernel keeps 15 characters of a name.
    let comm = &name[..name.len().min(15)];
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("list processes")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|text| text.parse::<i32>().ok()) else { continue };
        let of = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("comm")).unwrap_or_default();
        if of.trim() == comm && is_it(pid).unwrap_or(false) {
            let process = Pid::from_raw(pid).context("process 0")?;
            let handle = pidfd_open(process, PidfdFlags::empty()).context("open the victim")?;
            found.push(Victim { pid, handle });
        }
    }
    ensure!(found.len() == 1, "{} processes are the {name} to kill", found.len());
    Ok(found.remove(0))
}

fn pid_namespace(pid: i32) -> Result<String> {
    let link = fs::read_link(format!("/proc/{pid}/ns/pid")).with_context(|| format!("read the namespace of {pid}"))?;
    Ok(link.to_string_lossy().into_owned())
}

/// `POD_NAME` in the environment of a container's process.
fn pod_name(pid: i32) -> Result<String> {
    let environment =
        fs::read(format!("/proc/{pid}/environ")).with_context(|| format!("read the environment of {pid}"))?;
    let text = String::from_utf8_lossy(&environment);
    let name = text.split('\0').find_map(|variable| variable.strip_prefix("POD_NAME="));
    Ok(name.context("no POD_NAME")?.to_owned())
}
