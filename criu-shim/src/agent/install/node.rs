//! Installing and uninstalling, in order.

use crate::agent::host::{self, NodeRoot};
use crate::agent::install::config::{self, ConfigError};
use crate::agent::install::containerd::{Containerd, ContainerdError};
use crate::agent::install::payload::{self, PayloadError, ProgramsInUse};
use crate::local::{INSTALL_ROOT, RESTORED};
use crate::supervised::program::PROGRAMS;
use crate::supervised::{PLACES, PlaceError};
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use thiserror::Error;
use tracing::{info, warn};

/// The drop-in, on the node.
const DROP_IN: &str = "/etc/containerd/conf.d/tideover.toml";
/// What a configuration is kept under before it is changed.
const BACKUP_SUFFIX: &str = ".before-tideover";
/// Bundles of containers, on the node.
const BUNDLES: &str = "/run/containerd/io.containerd.runtime.v2.task/k8s.io";
/// The shim, by which a bundle's options name the handler.
const SHIM: &str = "/opt/tideover/bin/criu-shim";
/// Says that Tideover was taken off and that the last container under the shim takes the shim with it.
const UNINSTALLED: &str = "uninstalled";
/// Where the payload has the program that supervises containers.
const INIT: &str = "bin/tideover-init";
/// Images of moves that are under way.
const ATTEMPTS: &str = "/var/lib/tideover/images";
/// What else is on the node, and goes.
const STATE: [&str; 2] = ["/var/lib/tideover", "/run/tideover"];

/// Why a node could not be prepared or cleaned.
#[derive(Debug, Error)]
pub enum InstallError {
    /// The programs.
    #[error("put Tideover's programs on the node")]
    Payload(#[from] PayloadError),
    /// What containers have of ours.
    #[error("see which containers are supervised")]
    Places(#[from] PlaceError),
    /// The daemon.
    #[error("set up containerd")]
    Containerd(#[from] ContainerdError),
    /// Its configuration.
    #[error("change containerd's configuration")]
    Config(#[from] ConfigError),
    /// A file of it.
    #[error("write {path:?} on the node")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file of it.
    #[error("read {path:?} on the node")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// containerd reads the configuration and does not know the handler.
    #[error("containerd reads its configuration and does not know the handler")]
    NoHandler,
}

/// Puts the payload on the node and registers the runtime handler. containerd is restarted only where its configuration
/// changed. Doing it again changes nothing.
///
/// # Errors
/// The configuration is as it was then, or as good: containerd was not restarted with one that it does not read.
pub fn install(node: &NodeRoot, source: &Path) -> Result<(), InstallError> {
    let root = node.path(Path::new(INSTALL_ROOT));
    std::fs::create_dir_all(&root).map_err(|source| InstallError::Write { path: root.clone(), source })?;
    let version = payload::put(source, &root)?;
    payload::remove_tree(&root.join(UNINSTALLED))?;
    payload::remove_unused(&root, &version, &payload::running_programs())?;
    let programs = root.join(PROGRAMS);
    let program = payload::put_program(&source.join(INIT), &programs)?;
    let used = ProgramsInUse::of_node(&node.path(Path::new(PLACES)), &node.path(Path::new(ATTEMPTS)))?;
    payload::remove_unused_programs(&programs, &program, &used)?;
    info!(version, init = program.hash(), "programs in place");
    let containerd = Containerd::find(node)?;
    if register(node, &containerd)? {
        info!(pid = containerd.pid, "restarting containerd");
        containerd.restart(node)?;
    }
    info!("the runtime handler is registered");
    Ok(())
}

/// Makes the configuration register the handler; true where that changed it.
fn register(node: &NodeRoot, containerd: &Containerd) -> Result<bool, InstallError> {
    let main = node.path(&containerd.config);
    let text = read_or_empty(&main)?;
    let before = containerd.config_dump(node)?;
    let (text, version) = if text.trim().is_empty() {
        // No configuration: the one that containerd has by default says its version.
        let version = config::top(&before)?.version;
        (format!("version = {version}\n"), version)
    } else {
        let version = config::top(&text)?.version;
        (text, version)
    };
    let systemd = config::systemd_cgroup(&before);
    let drop_in = node.path(Path::new(DROP_IN));
    let wanted = config::drop_in(version, systemd);
    if config::has_handler(&before) && (read_or_empty(&drop_in)? == wanted || config::without_block(&text) != text) {
        return Ok(false);
    }
    let imported = if config::top(&text)?.imports { text.clone() } else { config::with_import(&text)? };
    let undo = Undo { main: main.clone(), text: read_or_empty(&main)?, drop_in: drop_in.clone() };
    if imported != undo.text {
        keep_backup(&main)?;
        write_whole(&main, &imported)?;
    }
    write_whole(&drop_in, &wanted)?;
    let after = containerd.config_dump(node);
    match after {
        Ok(after) if config::has_handler(&after) && config::displaced(&before, &after).is_empty() => Ok(true),
        Ok(after) => {
            let lost = config::displaced(&before, &after);
            warn!(
                ?lost,
                "this containerd's drop-ins displace what is configured elsewhere, writing into the main file"
            );
            undo.apply()?;
            keep_backup(&main)?;
            write_whole(&main, &config::with_block(&text, version, systemd))?;
            match containerd.config_dump(node) {
                Ok(after) if config::has_handler(&after) && config::displaced(&before, &after).is_empty() => Ok(true),
                Ok(_) => undo.apply().and(Err(InstallError::NoHandler)),
                Err(error) => undo.apply().and(Err(error.into())),
            }
        }
        Err(error) => undo.apply().and(Err(error.into())),
    }
}

/// The configuration as it was.
struct Undo {
    main: PathBuf,
    text: String,
    drop_in: PathBuf,
}

impl Undo {
    fn apply(&self) -> Result<(), InstallError> {
        payload::remove_tree(&self.drop_in)?;
        if self.text.is_empty() { Ok(payload::remove_tree(&self.main)?) } else { write_whole(&self.main, &self.text) }
    }
}

/// Takes Tideover off the node. Running pods go on: the shim stays until the last container under it is gone, and containerd
/// is not restarted before then, because one that has forgotten the handler refuses `exec` into its pods. It forgets it
/// with its next restart, whatever that is for.
///
/// # Errors
/// Where something can't be removed; doing it again goes on.
pub fn uninstall(node: &NodeRoot) -> Result<(), InstallError> {
    let in_use = containers_under_shim(node, None) > 0;
    match Containerd::find(node) {
        Ok(containerd) => {
            if unregister(node, &containerd)? && !in_use {
                info!(pid = containerd.pid, "restarting containerd");
                containerd.restart(node)?;
            }
        }
        // Its configuration is cleaned all the same, for when it comes back.
        Err(ContainerdError::NotFound) => payload::remove_tree(&node.path(Path::new(DROP_IN)))?,
        Err(error) => return Err(error.into()),
    }
    for path in STATE {
        // The shim, where it stays, must know which processes stand for which container.
        empty(node, Path::new(path), in_use.then_some(Path::new(RESTORED)))?;
    }
    if !in_use {
        empty(node, Path::new(PLACES), None)?;
        return empty(node, Path::new(INSTALL_ROOT), None);
    }
    info!("containers still run under the shim: it stays until the last of them is gone");
    write_whole(&node.path(Path::new(INSTALL_ROOT)).join(UNINSTALLED), "")
}

fn unregister(node: &NodeRoot, containerd: &Containerd) -> Result<bool, InstallError> {
    let main = node.path(&containerd.config);
    let text = read_or_empty(&main)?;
    let registered = node.path(Path::new(DROP_IN)).exists() || config::without_block(&text) != text;
    payload::remove_tree(&node.path(Path::new(DROP_IN)))?;
    let cleaned = config::without_import(&config::without_block(&text));
    if cleaned != text {
        write_whole(&main, &cleaned)?;
    }
    payload::remove_tree(&with_suffix(&main, BACKUP_SUFFIX))?;
    Ok(registered)
}

/// Called by the shim after it has deleted the container `deleted`, whose bundle is still there: where Tideover was taken
/// off the node and this was the last container under the shim, the shim goes too.
///
/// # Errors
/// Where something can't be removed.
pub fn remove_if_last(deleted: &str) -> Result<(), InstallError> {
    let node = NodeRoot::at(Path::new("/"));
    let root = Path::new(INSTALL_ROOT);
    if root.join(UNINSTALLED).exists() && containers_under_shim(&node, Some(deleted)) == 0 {
        for path in STATE.into_iter().chain([PLACES]) {
            empty(&node, Path::new(path), None)?;
        }
        empty(&node, root, None)
    } else {
        Ok(())
    }
}

/// Number of containers (and sandboxes) whose bundle names the shim as its runtime, other than `deleted`.
fn containers_under_shim(node: &NodeRoot, deleted: Option<&str>) -> usize {
    let bundles = node.path(Path::new(BUNDLES)).read_dir().into_iter().flatten().flatten();
    let bundles = bundles.filter(|bundle| deleted.is_none_or(|deleted| bundle.file_name() != deleted));
    let options = bundles.filter_map(|bundle| std::fs::read(bundle.path().join("options.json")).ok());
    options.filter(|options| options.windows(SHIM.len()).any(|window| window == SHIM.as_bytes())).count()
}

/// Removes what is in a directory of the node, and the directory itself where the node has nothing mounted there; all but what is
/// to be kept.
fn empty(node: &NodeRoot, path: &Path, keep: Option<&Path>) -> Result<(), InstallError> {
    let keep = keep.map(|keep| node.path(keep)).filter(|keep| keep.exists());
    let directory = node.path(path);
    let entries = match directory.read_dir() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|source| InstallError::Read { path: directory.clone(), source })?,
    };
    for entry in entries {
        let entry = entry.map_err(|source| InstallError::Read { path: directory.clone(), source })?;
        if keep.as_ref() != Some(&entry.path()) {
            payload::remove_tree(&entry.path())?;
        }
    }
    if keep.is_some_and(|keep| keep.starts_with(&directory)) {
        return Ok(());
    }
    // The kernel would detach the node's mount, because it is none in the agent's own mount namespace.
    if host::is_mount_point(path) { Ok(()) } else { Ok(payload::remove_tree(&directory)?) }
}

fn read_or_empty(path: &Path) -> Result<String, InstallError> {
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        text => text.map_err(|source| InstallError::Read { path: path.to_owned(), source }),
    }
}

/// Keeps the first state of a file that is not ours.
fn keep_backup(path: &Path) -> Result<(), InstallError> {
    let backup = with_suffix(path, BACKUP_SUFFIX);
    if backup.exists() || !path.exists() {
        return Ok(());
    }
    std::fs::copy(path, &backup).map(|_| ()).map_err(|source| InstallError::Write { path: backup, source })
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Replaces a file in one step.
fn write_whole(path: &Path, text: &str) -> Result<(), InstallError> {
    let temporary = with_suffix(path, ".tideover-new");
    let write = || -> std::io::Result<()> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        if let Ok(metadata) = path.metadata() {
            std::fs::set_permissions(&temporary, metadata.permissions())?;
        }
        std::fs::rename(&temporary, path)
    };
    write().map_err(|source| InstallError::Write { path: path.to_owned(), source })
}
