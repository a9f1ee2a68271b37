//! Where a pod's files are on a node.

use crate::agent::host::NodeRoot;
use k8s_openapi::api::core::v1::Pod;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why a place can't be told.
#[derive(Debug, Error)]
pub enum PlaceError {
    /// A file of the kernel or of containerd can't be read.
    #[error("read {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The container's root is no overlay, so its writable layer can't be told from the image.
    #[error("the root of process {pid} is not an overlay with an upper directory")]
    NoOverlay {
        /// First process of the container.
        pid: i32,
    },
    /// The bundle's `config.json` can't be parsed.
    #[error("parse {path:?}")]
    Bundle {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// The upper directory of the overlay that is the root of process `pid`, as a path on the node.
///
/// # Errors
/// [`PlaceError::NoOverlay`] for other snapshotters than overlayfs.
pub fn upper_directory(pid: i32) -> Result<PathBuf, PlaceError> {
    let path = PathBuf::from(format!("/proc/{pid}/mountinfo"));
    let mounts = std::fs::read(&path).map_err(|source| PlaceError::Read { path, source })?;
    upper_in(&mounts).ok_or(PlaceError::NoOverlay { pid })
}

/// Finds `upperdir=` of the last overlay on `/` in the text of a mountinfo file (proc_pid_mountinfo(5)).
fn upper_in(mounts: &[u8]) -> Option<PathBuf> {
    mounts.split(|byte| *byte == b'\n').rev().find_map(|line| {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        if *fields.get(4)? != b"/" {
            return None;
        }
        let separator = fields.iter().position(|field| *field == b"-")?;
        if *fields.get(separator + 1)? != b"overlay" {
            return None;
        }
        let options = fields.get(separator + 3)?;
        let upper = split_options(options)
            .into_iter()
            .find_map(|option| option.strip_prefix(b"upperdir=").map(<[u8]>::to_vec))?;
        Some(PathBuf::from(std::ffi::OsString::from_vec(unescape(&upper))))
    })
}

/// Splits at commas that have no backslash before them, which is how overlayfs escapes them.
fn split_options(options: &[u8]) -> Vec<Vec<u8>> {
    let mut split = vec![Vec::new()];
    let mut escaped = false;
    for byte in options {
        match byte {
            b',' if !escaped => split.push(Vec::new()),
            _ => split.last_mut().into_iter().for_each(|option| option.push(*byte)),
        }
        escaped = *byte == b'\\' && !escaped;
    }
    split
}

/// Undoes the octal escapes of the kernel (`\040`) and the backslashes of overlayfs.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|digits| digits.iter().all(|digit| (b'0'..=b'7').contains(digit)));
        match (first, octal) {
            (b'\\', Some(digits)) => {
                plain.push(digits.iter().fold(0_u8, |value, digit| value.wrapping_mul(8).wrapping_add(digit - b'0')));
                rest = &tail[3..];
            }
            (b'\\', None) => rest = tail,
            _ => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}

/// Names of the pod's emptyDir volumes.
pub fn empty_dirs(pod: &Pod) -> Vec<String> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter(|volume| volume.empty_dir.is_some()).map(|volume| volume.name.clone()).collect()
}

/// Where kubelet keeps the emptyDir volume `name` of the pod with this UID, as a path on the node.
pub fn empty_dir(kubelet_root: &Path, pod_uid: &str, name: &str) -> PathBuf {
    kubelet_root.join("pods").join(pod_uid).join("volumes/kubernetes.io~empty-dir").join(name)
}

/// Where the bundle's container gets its `/dev/shm` from, as a path on the node; `None` where it is made afresh.
///
/// # Errors
/// Where `config.json` can't be read.
pub fn shared_memory(node: &NodeRoot, bundle: &Path) -> Result<Option<PathBuf>, PlaceError> {
    let path = node.path(&bundle.join("config.json"));
    let text = std::fs::read(&path).map_err(|source| PlaceError::Read { path: path.clone(), source })?;
    let spec: BundleMounts = serde_json::from_slice(&text).map_err(|source| PlaceError::Bundle { path, source })?;
    let mount = spec.mounts.into_iter().rfind(|mount| mount.destination == "/dev/shm" && mount.kind == "bind");
    Ok(mount.and_then(|mount| mount.source))
}

/// Whether two paths name the same directory.
pub fn same_directory(one: &Path, other: &Path) -> bool {
    match (one.metadata(), other.metadata()) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}

#[derive(serde::Deserialize)]
struct BundleMounts {
    #[serde(default)]
    mounts: Vec<BundleMount>,
}

#[derive(serde::Deserialize)]
struct BundleMount {
    destination: String,
    #[serde(rename = "type", default)]
    kind: String,
    source: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_upper_directory_is_that_of_the_overlay_on_the_root() {
        let mounts = b"700 600 0:50 / / rw,relatime master:9 - overlay overlay rw,lowerdir=/l/2/fs:/l/1/fs,upperdir=/var/lib/c/9/fs,workdir=/var/lib/c/9/work\n\
            701 700 0:51 / /data rw - overlay overlay rw,lowerdir=/x,upperdir=/other,workdir=/w\n\
            702 700 0:52 / /proc rw - proc proc rw\n";
        assert_eq!(upper_in(mounts), Some(PathBuf::from("/var/lib/c/9/fs")));
        assert_eq!(upper_in(b"700 600 8:1 / / rw - ext4 /dev/sda1 rw\n"), None);
        assert_eq!(upper_in(b""), None);
    }

    #[test]
    fn escapes_of_kernel_and_overlayfs_are_undone() {
        let mounts = br"1 0 0:1 / / rw - overlay o rw,lowerdir=/l,upperdir=/a\040b\,c,workdir=/w";
        assert_eq!(upper_in(mounts), Some(PathBuf::from("/a b,c")));
    }
}
