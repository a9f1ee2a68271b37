//! Finding Tideover's own processes, and ending them at once and without warning.

use std::fs;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, bail, ensure};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::cluster::{Cluster, NAMESPACE};

/// A process that was found and can be ended without looking for it again.
#[derive(Debug)]
pub struct Victim {
    /// Its number on this host.
    pub pid: i32,
    handle: OwnedFd,
}

/// A process that is stopped, and goes on when this is dropped.
#[derive(Debug)]
pub struct Stopped(Victim);

impl Stopped {
    /// Stops it.
    ///
    /// # Errors
    /// When it is gone, or the kernel refuses.
    pub fn new(victim: Victim) -> Result<Self> {
        pidfd_send_signal(&victim.handle, Signal::STOP).context("stop the process")?;
        Ok(Self(victim))
    }

    /// Stops process `pid`.
    ///
    /// # Errors
    /// As [`Stopped::new`].
    pub fn process(pid: i32) -> Result<Self> {
        Self::new(Victim::open(pid)?)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        match pidfd_send_signal(&self.0.handle, Signal::CONT) {
            // One that is gone needs no word.
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => eprintln!("process {} stays stopped: {error}", self.0.pid),
        }
    }
}

impl Victim {
    fn open(pid: i32) -> Result<Self> {
        let process = Pid::from_raw(pid).context("process 0")?;
        let handle = pidfd_open(process, PidfdFlags::empty()).with_context(|| format!("open process {pid}"))?;
        Ok(Self { pid, handle })
    }

    /// Whether it would live on if the container of `other` were ended: in no cgroup of a pod are both.
    ///
    /// # Errors
    /// When one of them is gone.
    pub fn is_apart_from(&self, other: &Self) -> Result<bool> {
        let cgroups = |pid: i32| {
            let path = format!("/proc/{pid}/cgroup");
            fs::read_to_string(&path).with_context(|| format!("read {path}"))
        };
        let (ours, theirs) = (cgroups(self.pid)?, cgroups(other.pid)?);
        let mut of_a_pod = theirs.lines().filter(|line| line.contains("kubepods")).peekable();
        ensure!(of_a_pod.peek().is_some(), "the other is in no pod: {theirs}");
        Ok(of_a_pod.all(|line| !ours.lines().any(|own| own == line)))
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        !fs::exists(format!("/proc/{}", self.pid)).unwrap_or(true)
    }

    /// Sends SIGKILL. Says whether the process was still there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(&self) -> Result<bool> {
        match pidfd_send_signal(&self.handle, Signal::KILL) {
            Err(Errno::SRCH) => Ok(false),
            sent => sent.map(|()| true).context("kill the victim"),
        }
    }
}

impl Cluster {
    /// The agent on `node`.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn agent(&self, node: &str) -> Result<Victim> {
        let machine = self.pid_namespace_of(node)?;
        // What it has forked bears its name until it is another program.
        let is_forked = |pid| Ok::<_, anyhow::Error>(name_of(parent_of(pid)?) == "tideover-agent");
        the_one("tideover-agent", |pid| Ok(pid_namespace(pid)? == machine && !is_forked(pid)?))
    }

    /// Who starts the agent on `node` again when it has ended.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn keeper(&self, node: &str) -> Result<Victim> {
        let machine = self.pid_namespace_of(node)?;
        the_one("agent-keeper", |pid| Ok(pid_namespace(pid)? == machine))
    }

    /// Who makes processes on `node` run system calls for the agent there.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn injector(&self, node: &str) -> Result<Victim> {
        let machine = self.pid_namespace_of(node)?;
        the_one("tideover-inject", |pid| Ok(pid_namespace(pid)? == machine))
    }

    /// The page daemon of the restore on `node`, without the guard beside it.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn page_daemon(&self, node: &str) -> Result<Victim> {
        let machine = self.pid_namespace_of(node)?;
        // The guard is a copy of the daemon, and its child.
        let is_guard = |pid| Ok::<_, anyhow::Error>(name_of(parent_of(pid)?) == "criu-pages");
        the_one("criu-pages", |pid| Ok(pid_namespace(pid)? == machine && !is_guard(pid)?))
    }

    /// The CRIU that is started on `node` and waits for its request, or is at work on it. What it restores has a namespace of
    /// its own.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn criu(&self, node: &str) -> Result<Victim> {
        self.the_criu(node, is_criu)
    }

    /// That one, once it has the request to restore.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn criu_with_request(&self, node: &str) -> Result<Victim> {
        self.the_criu(node, restores)
    }

    fn the_criu(&self, node: &str, is_one: impl Fn(&[String]) -> bool) -> Result<Victim> {
        let machine = self.pid_namespace_of(node)?;
        // Its children have its arguments until they are something else.
        let is_forked = |pid| Ok::<_, anyhow::Error>(is_criu(&arguments_of(parent_of(pid)?)?));
        let is_it = |pid| Ok(is_one(&arguments_of(pid)?) && pid_namespace(pid)? == machine && !is_forked(pid)?);
        the_only("CRIU", is_it)
    }

    fn pid_namespace_of(&self, node: &str) -> Result<String> {
        let first = self.node(node)?.first_process()?.with_context(|| format!("{node} is down"))?;
        pid_namespace(first.pid)
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

/// The one process called `name` that `is_it`.
fn the_one(name: &str, is_it: impl Fn(i32) -> Result<bool>) -> Result<Victim> {
    // The kernel keeps 15 characters of a name.
    let comm = &name[..name.len().min(15)];
    the_only(name, |pid| Ok(name_of(pid) == comm && is_it(pid)?))
}

/// The one process that `is_it`, for people `what`. One that vanishes while it is looked at is not it, nor one that was it for the
/// moment until it was another program.
fn the_only(what: &str, is_it: impl Fn(i32) -> Result<bool>) -> Result<Victim> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("list processes")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|text| text.parse::<i32>().ok()) else { continue };
        if is_it(pid).unwrap_or(false) {
            found.push(pid);
        }
    }
    if found.len() > 1 {
        found.retain(|pid| is_it(*pid).unwrap_or(false));
    }
    let [pid] = *found else { bail!("{} processes are the {what} to kill", found.len()) };
    Victim::open(pid)
}

/// As the kernel knows it, or nothing where it is gone.
fn name_of(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

fn parent_of(pid: i32) -> Result<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("look at process {pid}"))?;
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).context("a process without a parent")?;
    parent.trim().parse().with_context(|| format!("understand the parent of {pid}"))
}

fn arguments_of(pid: i32) -> Result<Vec<String>> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).with_context(|| format!("read the arguments of {pid}"))?;
    Ok(String::from_utf8_lossy(&line).split_terminator('\0').map(str::to_owned).collect())
}

/// The real CRIU as a server on a socket, whatever starts it. The relay has other arguments.
fn is_criu(arguments: &[String]) -> bool {
    let is_one_of = |name: &str| arguments.iter().any(|argument| argument == name);
    restores(arguments) || is_one_of("/opt/tideover/criu/criu") && is_one_of("swrk")
}

/// CRIU says in place of its arguments what it is asked for once it knows: `setproctitle` in its `criu/cr-service.c`.
fn restores(arguments: &[String]) -> bool {
    arguments.iter().any(|argument| argument.ends_with("restore --rpc"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_is_no_criu() {
        let is_criu = |line: &str| is_criu(&line.split(' ').map(str::to_owned).collect::<Vec<_>>());
        let loader = "/opt/tideover/criu/lib/ld-linux-x86-64.so.2 --library-path /opt/tideover/criu/lib";
        assert!(is_criu(&format!("{loader} /opt/tideover/criu/criu --no-default-config swrk 9")));
        assert!(!is_criu(&format!("{loader} /opt/tideover/criu/criu check")));
        let asked = [loader, "criu: restore --rpc", "", "."].map(str::to_owned);
        assert!(super::is_criu(&asked), "it has its request");
        assert!(!is_criu("criu swrk 9") && !is_criu("/opt/tideover/relay/criu swrk 9"));
    }
}
