//! The containerd daemon of the node: found by its socket, asked for its configuration, restarted by its supervisor.

use crate::agent::host::NodeRoot;
use rustix::process::{Pid, Signal, kill_process};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use thiserror::Error;

/// Socket on the node.
const SOCKET: &str = "/run/containerd/containerd.sock";
/// Configuration where the command line names no other.
const CONFIG: &str = "/etc/containerd/config.toml";
/// How long a restart may take.
const RESTART_LIMIT: Duration = Duration::from_secs(60);
/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(100);

/// Why containerd could not be found, asked or restarted.
#[derive(Debug, Error)]
pub enum ContainerdError {
    /// Nobody listens.
    #[error("no containerd listens at {SOCKET} on this node")]
    NotFound,
    /// A file of the kernel can't be read.
    #[error("read {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A program of the node can't be run.
    #[error("run {program} on the node")]
    Run {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It ran and failed.
    #[error("{program} on the node failed: {message}")]
    Failed {
        /// The program.
        program: String,
        /// Its last words.
        message: String,
    },
    /// It can't be told to end.
    #[error("end containerd, process {pid}")]
    End {
        /// Its process.
        pid: i32,
        /// Why.
        #[source]
        source: rustix::io::Errno,
    },
    /// It did not come back.
    #[error("containerd did not come back within {} s", RESTART_LIMIT.as_secs())]
    NotBack,
}

/// The daemon that serves the socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Containerd {
    /// Its process.
    pub pid: i32,
    /// Its program, as a path on the node.
    pub program: PathBuf,
    /// Its configuration, as a path on the node.
    pub config: PathBuf,
    /// Its unit, where systemd supervises it.
    pub unit: Option<String>,
}

impl Containerd {
    /// Finds the process that listens at containerd's socket.
    ///
    /// # Errors
    /// [`ContainerdError::NotFound`].
    pub fn find(node: &NodeRoot) -> Result<Self, ContainerdError> {
        let path = Path::new("/proc/1/net/unix");
        let sockets = std::fs::read_to_string(path).map_err(read_failed(path))?;
        let inodes = listening_inodes(&sockets);
        let pid = owner(&inodes).ok_or(ContainerdError::NotFound)?;
        let process = PathBuf::from(format!("/proc/{pid}"));
        let program = process.join("exe").read_link().map_err(read_failed(&process.join("exe")))?;
        let arguments = std::fs::read(process.join("cmdline")).map_err(read_failed(&process.join("cmdline")))?;
        let config = config_argument(&arguments).unwrap_or_else(|| PathBuf::from(CONFIG));
        let under_systemd = node.path(Path::new("/run/systemd/system")).is_dir();
        let cgroup = std::fs::read_to_string(process.join("cgroup")).unwrap_or_default();
        let unit = if under_systemd { unit_in(&cgroup) } else { None };
        Ok(Self { pid, program, config, unit })
    }

    /// The configuration as it reads it now, drop-ins and defaults included.
    ///
    /// # Errors
    /// Where it can't be run or does not take the configuration.
    pub fn config_dump(&self, node: &NodeRoot) -> Result<String, ContainerdError> {
        let mut command = node_command(node, &self.program);
        command.arg("--config").arg(&self.config).args(["config", "dump"]);
        run(command, &self.program.to_string_lossy())
    }

    /// Restarts it and waits until the one that comes next answers.
    ///
    /// # Errors
    /// Where it can't be ended or does not come back.
    pub fn restart(&self, node: &NodeRoot) -> Result<(), ContainerdError> {
        match &self.unit {
            Some(unit) => {
                let mut command = node_command(node, Path::new("systemctl"));
                command.args(["restart", unit]);
                run(command, "systemctl")?;
            }
            None => {
                let ended = Pid::from_raw(self.pid).map_or(Ok(()), |pid| kill_process(pid, Signal::TERM));
                ended.map_err(|source| ContainerdError::End { pid: self.pid, source })?;
            }
        }
        let deadline = Instant::now() + RESTART_LIMIT;
        while Instant::now() < deadline {
            std::thread::sleep(LOOK);
            let back = Self::find(node).is_ok_and(|now| now.pid != self.pid);
            if back && UnixStream::connect(node.path(Path::new(SOCKET))).is_ok() {
                return Ok(());
            }
        }
        Err(ContainerdError::NotBack)
    }
}

fn read_failed(path: &Path) -> impl FnOnce(std::io::Error) -> ContainerdError + use<> {
    let path = path.to_owned();
    move |source| ContainerdError::Read { path, source }
}

/// Inodes of the sockets that listen at containerd's path. Source: proc_pid_net(5), `unix`: flags 00010000 is a
/// listening socket.
fn listening_inodes(sockets: &str) -> Vec<String> {
    let fields = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let listening = fields.filter(|fields| {
        fields.get(3) == Some(&"00010000")
            && fields.get(7).is_some_and(|path| path.strip_prefix("/var").unwrap_or(path) == SOCKET)
    });
    listening.filter_map(|fields| fields.get(6).map(|inode| (*inode).to_owned())).collect()
}

/// The process that has one of the sockets open.
fn owner(inodes: &[String]) -> Option<i32> {
    let wanted: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let processes = Path::new("/proc").read_dir().ok()?.flatten();
    let mut pids: Vec<i32> = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids.into_iter().find(|pid| {
        let descriptors = Path::new("/proc").join(pid.to_string()).join("fd").read_dir();
        let links = descriptors.into_iter().flatten().flatten().filter_map(|entry| entry.path().read_link().ok());
        links.into_iter().any(|link| wanted.iter().any(|wanted| link.as_os_str() == wanted.as_str()))
    })
}

/// The value of `--config` or `-c` in a command line with NULs between its arguments.
fn config_argument(arguments: &[u8]) -> Option<PathBuf> {
    let mut arguments = arguments.split(|byte| *byte == 0);
    while let Some(argument) = arguments.next() {
        let value = match argument {
            b"--config" | b"-config" | b"-c" => arguments.next().map(<[u8]>::to_vec),
            _ => argument.strip_prefix(b"--config=").or_else(|| argument.strip_prefix(b"-c=")).map(<[u8]>::to_vec),
        };
        if let Some(value) = value {
            return Some(PathBuf::from(std::ffi::OsString::from_vec(value)));
        }
    }
    None
}

/// The unit in the text of `/proc/<pid>/cgroup`.
fn unit_in(cgroup: &str) -> Option<String> {
    cgroup.lines().find_map(|line| {
        let path = line.rsplit(':').next()?;
        path.split('/').find(|part| part.ends_with(".service")).map(str::to_owned)
    })
}

/// A command that sees the node's file system as its own: this program again, which enters it and executes the other.
fn node_command(node: &NodeRoot, program: &Path) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg("on-node").arg("--root").arg(node.root()).arg("--").arg(program);
    command
}

fn run(mut command: Command, program: &str) -> Result<String, ContainerdError> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| ContainerdError::Run { program: program.to_owned(), source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().chars().take(500).collect();
    Err(ContainerdError::Failed { program: program.to_owned(), message })
}

/// Body of that: takes `root` as root directory and becomes `program`. Returns only with an error.
pub fn become_on_node(root: &Path, program: &[String]) -> std::io::Error {
    use std::os::unix::process::CommandExt;
    let Some((name, arguments)) = program.split_first() else { return ErrorKind::InvalidInput.into() };
    let entered = std::os::unix::fs::chroot(root).and_then(|()| std::env::set_current_dir("/"));
    if let Err(error) = entered {
        return error;
    }
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    Command::new(name).args(arguments).env("PATH", path).exec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_listening_socket_is_told_from_its_connections() {
        let sockets = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000: 00000002 00000000 00010000 0001 01 111 /run/containerd/containerd.sock\n\
            0000: 00000003 00000000 00000000 0001 03 222 /run/containerd/containerd.sock\n\
            0000: 00000002 00000000 00010000 0001 01 333 /run/containerd/containerd.sock.ttrpc\n";
        assert_eq!(listening_inodes(sockets), ["111"]);
    }

    #[test]
    fn the_configuration_is_where_the_command_line_says() {
        assert_eq!(config_argument(b"/usr/bin/containerd\0"), None);
        assert_eq!(config_argument(b"containerd\0--config\0/a.toml\0"), Some("/a.toml".into()));
        assert_eq!(config_argument(b"containerd\0-c=/b.toml\0--log-level\0info\0"), Some("/b.toml".into()));
    }

    #[test]
    fn the_unit_is_in_the_cgroup() {
        assert_eq!(unit_in("0::/system.slice/containerd.service\n"), Some("containerd.service".to_owned()));
        assert_eq!(unit_in("12:freezer:/\n0::/lab/node\n"), None);
    }
}
