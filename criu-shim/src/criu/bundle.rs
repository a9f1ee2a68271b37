//! The part of an OCI bundle that a dump needs to know.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Longest `config.json` that is read, bytes. kubelet's have some 20 KiB; etcd refuses pods above 1.5 MiB.
pub const MAX_CONFIG: u64 = 8 << 20;

/// Why a bundle could not be read.
#[derive(Debug, Error)]
pub enum BundleError {
    /// `config.json` could not be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// `config.json` is longer than any real one.
    #[error("{path} has more than {MAX_CONFIG} bytes")]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// `config.json` is not what the OCI runtime specification says.
    #[error("parse {path}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// A container's bundle, as far as a dump needs it. Source: OCI runtime specification 1.2, `config.md`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// Root file system, in the node's mount namespace.
    pub rootfs: PathBuf,
    /// What the container's specification says.
    pub spec: Spec,
}

/// `config.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    /// Where the root file system is.
    pub root: Root,
    /// The process to start.
    pub process: Process,
    /// What is mounted into it.
    pub mounts: Vec<SpecMount>,
    /// Linux' own section.
    pub linux: Linux,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Programs that the runtime runs at points of the container's life.
    pub hooks: Hooks,
}

/// `hooks`, of which a restore needs those that are run once the container's namespaces are there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hooks {
    /// Deprecated in the specification, and in use.
    pub prestart: Vec<serde_json::Value>,
    /// In its place.
    pub create_runtime: Vec<serde_json::Value>,
}

impl Hooks {
    /// Whether there are any.
    pub fn are_any(&self) -> bool {
        !(self.prestart.is_empty() && self.create_runtime.is_empty())
    }
}

/// `root`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Root {
    /// Absolute, or relative to the bundle.
    pub path: PathBuf,
}

/// `process`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Process {
    /// True if the container has a terminal.
    pub terminal: bool,
}

/// An entry of `mounts`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct SpecMount {
    /// Where, as the author of the specification wrote it: symbolic links are not resolved.
    pub destination: PathBuf,
    /// File system type; `bind` and nothing mean the same where the options say bind.
    #[serde(rename = "type")]
    pub kind: String,
    /// Source.
    pub source: PathBuf,
    /// Options of mount(8).
    pub options: Vec<String>,
}

/// `linux`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Linux {
    /// Namespaces of the container.
    pub namespaces: Vec<Namespace>,
    /// Paths that the container must not see.
    pub masked_paths: Vec<PathBuf>,
    /// Devices beyond the default ones.
    pub devices: Vec<Device>,
}

/// An entry of `linux.devices`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Device {
    /// Where it is in the container.
    pub path: PathBuf,
}

/// An entry of `linux.namespaces`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Namespace {
    /// `pid`, `network`, `mount`, `ipc`, `uts`, `user`, `cgroup`, `time`.
    #[serde(rename = "type")]
    pub kind: String,
    /// An existing one to join; none for a new one.
    pub path: Option<PathBuf>,
}

impl Bundle {
    /// Reads the bundle in `directory`, which is named as the node's mount namespace names it and found below
    /// `node_root`.
    ///
    /// # Errors
    /// [`BundleError`], with the path as it was opened.
    pub fn read(directory: &Path, node_root: &Path) -> Result<Self, BundleError> {
        let path = node_root.join(directory.strip_prefix("/").unwrap_or(directory)).join("config.json");
        let spec: Spec = serde_json::from_slice(&read_config(&path)?)
            .map_err(|source| BundleError::Parse { path: path.clone(), source })?;
        Ok(Self { rootfs: directory.join(&spec.root.path), spec })
    }
}

/// The bytes of a `config.json`, bounded by [`MAX_CONFIG`].
///
/// # Errors
/// [`BundleError::Read`], [`BundleError::TooLong`].
pub fn read_config(path: &Path) -> Result<Vec<u8>, BundleError> {
    let failed = |source| BundleError::Read { path: path.to_owned(), source };
    let mut config = Vec::new();
    File::open(path).map_err(failed)?.take(MAX_CONFIG + 1).read_to_end(&mut config).map_err(failed)?;
    if config.len() as u64 > MAX_CONFIG {
        return Err(BundleError::TooLong { path: path.to_owned() });
    }
    Ok(config)
}

impl SpecMount {
    /// True of a bind mount, by the same rule as runc's: by type, or by an option that makes any type one.
    pub fn is_bind(&self) -> bool {
        self.kind == "bind" || self.options.iter().any(|option| option == "bind" || option == "rbind")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_root_is_below_the_bundle_on_the_node() {
        let node = tempfile::tempdir().unwrap();
        let bundle = node.path().join("run/b");
        std::fs::create_dir_all(&bundle).unwrap();
        std::fs::write(
            bundle.join("config.json"),
            r#"{"ociVersion":"1.2.0","root":{"path":"rootfs","readonly":false},
                "mounts":[{"destination":"/data","source":"/vol","options":["rbind","ro"]}],
                "linux":{"maskedPaths":["/proc/kcore"],"namespaces":[{"type":"ipc","path":"/proc/9/ns/ipc"}]}}"#,
        )
        .unwrap();
        let read = Bundle::read(Path::new("/run/b"), node.path()).unwrap();
        assert_eq!(read.rootfs, Path::new("/run/b/rootfs"));
        assert!(read.spec.mounts[0].is_bind());
        assert_eq!(read.spec.linux.namespaces[0].path.as_deref(), Some(Path::new("/proc/9/ns/ipc")));
        assert_eq!(read.spec.linux.masked_paths, [Path::new("/proc/kcore")]);
    }

    #[test]
    fn a_missing_bundle_is_named() {
        let node = tempfile::tempdir().unwrap();
        let error = Bundle::read(Path::new("/nowhere"), node.path()).unwrap_err();
        assert!(error.to_string().ends_with("/nowhere/config.json"));
    }
}
