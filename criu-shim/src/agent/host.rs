//! The node as the agent sees it: its file system, and the facts on which it depends whether an image can run here.

use crate::agent::transfer::message::VERSION;
use crate::criu::CriuProgram;
use crate::criu::version::Version;
use std::path::{Path, PathBuf};
use thiserror::Error;
use tideover_crds::HostFacts;

/// The node's file system. The agent shares the node's PID namespace, so process 1 is the node's first process.
#[derive(Clone, Debug)]
pub struct NodeRoot(PathBuf);

impl Default for NodeRoot {
    fn default() -> Self {
        Self(PathBuf::from("/proc/1/root"))
    }
}

impl NodeRoot {
    /// The node's file system, seen at `root`.
    pub fn at(root: &Path) -> Self {
        Self(root.to_owned())
    }

    /// Where this process sees the node's `path`.
    pub fn path(&self, path: &Path) -> PathBuf {
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The root itself.
    pub fn root(&self) -> &Path {
        &self.0
    }
}

/// Whether the node has something mounted at `path`. Where that can't be told, it counts as mounted.
pub fn is_mount_point(path: &Path) -> bool {
    let Ok(mounts) = std::fs::read_to_string("/proc/1/mountinfo") else { return true };
    mounts.lines().filter_map(|line| line.split(' ').nth(4)).any(|mounted| Path::new(mounted) == path)
}

/// Why facts can't be told.
#[derive(Debug, Error)]
pub enum FactsError {
    /// A file of the kernel can't be read.
    #[error("read {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// CRIU can't be run.
    #[error("ask CRIU for its version")]
    Criu(#[source] crate::criu::CriuError),
    /// CRIU is too old.
    #[error("use this CRIU")]
    Version(#[source] crate::criu::version::VersionError),
}

/// Version of this node's CRIU.
///
/// # Errors
/// [`FactsError::Criu`] where it can't be run, [`FactsError::Version`] where it is too old.
pub fn criu_version(criu: &CriuProgram) -> Result<Version, FactsError> {
    let version = crate::criu::version::version(criu).map_err(FactsError::Criu)?;
    version.supported().map_err(FactsError::Version)?;
    Ok(version)
}

/// Facts of this node as they are now: CPU features from the *node's* `/proc/cpuinfo`, kernel release, CRIU's version.
///
/// # Errors
/// Where a file can't be read.
pub fn facts(node: &NodeRoot, criu_version: Version) -> Result<HostFacts, FactsError> {
    let read = |path: &str| {
        let path = node.path(Path::new(path));
        std::fs::read_to_string(&path).map_err(|source| FactsError::Read { path, source })
    };
    Ok(HostFacts {
        architecture: std::env::consts::ARCH.to_owned(),
        cpu_features: cpu_features(&read("/proc/cpuinfo")?),
        kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        criu: criu_version.to_string(),
        protocol: VERSION,
    })
}

/// The features that every processor of a cpuinfo file has (`flags` on x86, `Features` on ARM), sorted.
fn cpu_features(cpuinfo: &str) -> String {
    let lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    let sets = lines.filter(|(key, _)| matches!(key.trim(), "flags" | "Features"));
    let mut common: Option<Vec<&str>> = None;
    for (_, features) in sets {
        let mut features: Vec<&str> = features.split_whitespace().collect();
        features.sort_unstable();
        features.dedup();
        match &mut common {
            None => common = Some(features),
            Some(common) => common.retain(|feature| features.binary_search(feature).is_ok()),
        }
    }
    common.unwrap_or_default().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_those_of_every_processor() {
        let text = "processor : 0\nflags\t\t: sse fpu avx2\nvmx flags : x\n\nprocessor : 1\nflags\t\t: avx2 fpu fpu\n";
        assert_eq!(cpu_features(text), "avx2 fpu");
        assert_eq!(cpu_features("Features : fp asimd\n"), "asimd fp");
        assert_eq!(cpu_features(""), "");
    }

    #[test]
    fn paths_of_the_node_are_seen_below_its_root() {
        let node = NodeRoot::at(Path::new("/proc/1/root"));
        assert_eq!(node.path(Path::new("/etc/hosts")), Path::new("/proc/1/root/etc/hosts"));
    }
}
