//! Files that move with the processes: the writable layer, emptyDir volumes, `/dev/shm`.
//!
//! [`pack`] and [`unpack`] are written for a process of their own whose root directory is the tree in question, so that no
//! name in it, however hostile, means anything outside. [`process`] starts such processes; [`places`] knows where the
//! trees are on a node. What kubelet manages itself (hosts file, termination log, projected volumes) is never touched.

pub mod pack;
pub mod places;
pub mod process;
pub mod unpack;

use clap::ValueEnum;

/// What a tree is; it decides how deletions are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TreeKind {
    /// Upper directory of an overlay: what is missing in it is not deleted, whiteouts say what is.
    Layer,
    /// A whole tree: what is missing in it is deleted on the other side.
    Volume,
}

/// Prefix of the entries by which OCI layers tell deletions.
const WHITEOUT: &str = ".wh.";
/// Entry by which an OCI layer says that nothing of the directory below shows through.
const OPAQUE: &str = ".wh..wh..opq";
/// Prefix of PAX records that carry extended attributes.
const PAX_XATTR: &str = "SCHILY.xattr.";
/// PAX record of the modification time, seconds with a fraction.
const PAX_MTIME: &str = "mtime";
/// Extended attributes that belong to the host and not to the file: labels are set anew on each node.
const HOST_XATTRS: [&str; 1] = ["security.selinux"];
