//! The directory of one supervised container on its node.
//!
//! ```text
//! /run/tideover-init/<container id>/
//!   inside/         a tmpfs of its own, which the container sees: notify socket, record, init's configuration
//!   identity.json   whose it is
//!   ended.json      what the record said when the container was deleted
//!   told.json       how much of it the agent has told
//! ```
//!
//! Only `inside` is the container's to write, and its size bounds what that can be. The source of that mount is named after the
//! container and so is another one in each place: by that, which it can't change, init knows that it was moved.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::{OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use thiserror::Error;
use tideover_init::config::Config;
use tideover_init::record::{self, Line, ReadError};

/// What the source of the mount begins with; the container's id follows.
const SOURCE: &str = "tideover-init:";

const INSIDE: &str = "inside";
const IDENTITY: &str = "identity.json";
const ENDED: &str = "ended.json";
const TOLD: &str = "told.json";

/// What the container may fill: the record's two files, the configuration, and as much again. Sticky, so that another user in
/// the container can't take away what init has made.
const TMPFS: &str = "mode=1777,size=256k,nr_inodes=64";

/// Most bytes of a file beside `inside`: a whole record takes less.
const MAX_FILE: u64 = 256 << 10;

/// Most places of ended containers that wait for an agent, so that a node without one is not filled.
const MAX_ENDED: usize = 256;

/// Why a place can't be made, read or taken away.
#[derive(Debug, Error)]
pub enum PlaceError {
    /// A directory or file can't be made.
    #[error("make {path:?}")]
    Make {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The container's own file system can't be mounted.
    #[error("mount a tmpfs at {path:?}")]
    Mount {
        /// The mount point.
        path: PathBuf,
        /// Why.
        #[source]
        source: nix::errno::Errno,
    },
    /// Or not be unmounted.
    #[error("unmount {path:?}")]
    Unmount {
        /// The mount point.
        path: PathBuf,
        /// Why.
        #[source]
        source: nix::errno::Errno,
    },
    /// Something can't be removed.
    #[error("remove {path:?}")]
    Remove {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Something can't be read.
    #[error("read {path:?}")]
    Read {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is not what was written.
    #[error("parse {path:?}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The container's record.
    #[error(transparent)]
    Record(#[from] ReadError),
}

/// Whose a place is, as containerd's annotations say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// Namespace of the pod.
    pub pod_namespace: String,
    /// Name of the pod.
    pub pod_name: String,
    /// UID of the pod.
    pub pod_uid: String,
    /// Name of the container in the pod.
    pub container_name: String,
    /// Hash of the `tideover-init` that it runs, which stays on the node for as long.
    pub program: String,
    /// How often its state is stored; not at all where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoints: Option<Checkpoints>,
}

/// How often a container's state is stored on its node, and what of that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Checkpoints {
    /// Pause between two, milliseconds.
    pub interval_millis: u64,
    /// How many good ones are kept.
    pub keep: u32,
    /// After so many milliseconds without an end, a run has shown that it lasts.
    pub proven_millis: u64,
}

/// How much of a record was told, and how much of it was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Told {
    /// Sequence of the last line that was told; 0 before the first.
    pub sequence: u64,
    /// Sequence of the last line that the metrics have; 0 before the first.
    #[serde(default)]
    pub counted: u64,
}

/// What there is to tell of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// The lines of its record, oldest first.
    pub lines: Vec<Line>,
    /// Whether the container is gone, so that nothing will follow.
    pub ended: bool,
}

/// By which two looks at a record are told apart. A container can make it change or stay, and miss nothing by that but its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    inode: u64,
    length: u64,
    changed: (i64, i64),
}

/// The place of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    directory: PathBuf,
}

impl Place {
    /// The place of the container `id`, below `places`.
    pub fn of(places: &Path, id: &str) -> Self {
        Self { directory: places.join(Path::new(id).file_name().unwrap_or_default()) }
    }

    /// All places below `places`, with the ids of their containers.
    ///
    /// # Errors
    /// [`PlaceError::Read`].
    pub fn all(places: &Path) -> Result<Vec<(String, Self)>, PlaceError> {
        let failed = |source| PlaceError::Read { path: places.to_owned(), source };
        let entries = match places.read_dir() {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut all = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            all.push((entry.file_name().to_string_lossy().into_owned(), Self { directory: entry.path() }));
        }
        Ok(all)
    }

    /// The directory that the container sees.
    pub fn inside(&self) -> PathBuf {
        self.directory.join(INSIDE)
    }

    /// Makes it, in this mount namespace, with init's configuration in it where init is still to read one.
    ///
    /// # Errors
    /// Nothing is left behind then.
    pub fn make(&self, identity: &Identity, config: Option<&Config>) -> Result<(), PlaceError> {
        let made = self.fill(identity, config);
        if made.is_err() {
            // What could not be made is what is reported.
            self.unmount().and_then(|()| self.remove()).ok();
        }
        made
    }

    fn fill(&self, identity: &Identity, config: Option<&Config>) -> Result<(), PlaceError> {
        let inside = self.inside();
        let make = |path: &Path| {
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
            made.map_err(|source| PlaceError::Make { path: path.to_owned(), source })
        };
        make(&inside)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some(self.source().as_os_str()), &inside, Some("tmpfs"), flags, Some(TMPFS))
            .map_err(|source| PlaceError::Mount { path: inside.clone(), source })?;
        if let Some(config) = config {
            // Whoever the container runs as reads it.
            write(&inside.join(super::CONFIG), config, 0o644)?;
        }
        write(&self.directory.join(IDENTITY), identity, 0o600)
    }

    fn source(&self) -> OsString {
        let mut source = OsString::from(SOURCE);
        source.push(self.directory.file_name().unwrap_or_default());
        source
    }

    /// Whose it is.
    ///
    /// # Errors
    /// Where that can't be read.
    pub fn identity(&self) -> Result<Identity, PlaceError> {
        let path = self.directory.join(IDENTITY);
        read(&path)?.ok_or_else(|| PlaceError::Read { path, source: ErrorKind::NotFound.into() })
    }

    /// When it was made: just before its container. None where that can't be told.
    pub fn made(&self) -> Option<SystemTime> {
        self.directory.join(IDENTITY).metadata().and_then(|metadata| metadata.modified()).ok()
    }

    /// Changes with the record of a container that is there; none before there is one.
    pub fn stamp(&self) -> Option<Stamp> {
        let metadata = self.inside().join(record::NEW).symlink_metadata().ok()?;
        Some(Stamp {
            inode: metadata.ino(),
            length: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    /// What there is to tell.
    ///
    /// # Errors
    /// Where it can't be read.
    pub fn contents(&self) -> Result<Contents, PlaceError> {
        match read(&self.directory.join(ENDED))? {
            Some(lines) => Ok(Contents { lines, ended: true }),
            None => Ok(Contents { lines: record::read(&self.inside())?.lines, ended: false }),
        }
    }

    /// How much of it was told.
    ///
    /// # Errors
    /// Where that can't be read.
    pub fn told(&self) -> Result<Told, PlaceError> {
        Ok(read(&self.directory.join(TOLD))?.unwrap_or_default())
    }

    /// Writes down how much was told.
    ///
    /// # Errors
    /// Where that can't be written; what was written down before still is.
    pub fn set_told(&self, told: Told) -> Result<(), PlaceError> {
        write(&self.directory.join(TOLD), &told, 0o600)
    }

    /// The container is being deleted: keeps what its record says for the agent, and takes the rest away. There may be none.
    ///
    /// # Errors
    /// Where something can't be taken away; doing it again goes on.
    pub fn end(&self) -> Result<(), PlaceError> {
        if !self.directory.exists() {
            return Ok(());
        }
        let ended = self.directory.join(ENDED);
        // A record that can't be read is the container's own doing, and no reason to keep its place.
        let lines = record::read(&self.inside()).map(|reading| reading.lines).unwrap_or_default();
        // First: the agent takes away what it has told.
        self.unmount()?;
        let others = self.directory.parent().and_then(|places| places.read_dir().ok()).into_iter().flatten().flatten();
        let waiting = others.filter(|other| other.path().join(ENDED).exists()).count();
        if !ended.exists() && (lines.is_empty() || waiting >= MAX_ENDED) {
            return self.remove();
        }
        if ended.exists() { Ok(()) } else { write(&ended, &lines, 0o600) }
    }

    /// Takes the place of an ended container away.
    ///
    /// # Errors
    /// [`PlaceError::Remove`].
    pub fn remove(&self) -> Result<(), PlaceError> {
        match std::fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(PlaceError::Remove { path: self.directory.clone(), source: error })
            }
            _ => Ok(()),
        }
    }

    /// Takes `inside` away. A container that still runs keeps what it sees.
    fn unmount(&self) -> Result<(), PlaceError> {
        let inside = self.inside();
        match umount2(&inside, MntFlags::MNT_DETACH) {
            // Not mounted, or not even there.
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
            Err(source) => return Err(PlaceError::Unmount { path: inside, source }),
        }
        match std::fs::remove_dir(&inside) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(PlaceError::Remove { path: inside, source: error })
            }
            _ => Ok(()),
        }
    }
}

/// Puts a file in place in one step.
fn write(path: &Path, value: &impl Serialize, mode: u32) -> Result<(), PlaceError> {
    let text = serde_json::to_vec(value).map_err(|source| PlaceError::Parse { path: path.to_owned(), source })?;
    let temporary = path.with_extension("new");
    let put = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
        // Whatever this process' umask is.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(&text)?;
        std::fs::rename(&temporary, path)
    };
    put().map_err(|source| PlaceError::Make { path: path.to_owned(), source })
}

/// Reads a file that only Tideover writes; none where there is none.
fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, PlaceError> {
    let failed = |source| PlaceError::Read { path: path.to_owned(), source };
    let file = match std::fs::File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file.map_err(failed)?,
    };
    let mut text = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut text).map_err(failed)?;
    serde_json::from_slice(&text).map(Some).map_err(|source| PlaceError::Parse { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests;
