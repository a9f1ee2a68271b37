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
/// Prefix of PAX records that carry extended attributes; name and value follow in hexadecimal, because both are binary.
const PAX_XATTR: &str = "TIDEOVER.xattr.";
/// PAX record of the modification time, seconds with a fraction.
const PAX_MTIME: &str = "mtime";
/// Bytes as lower case hexadecimal digits.
fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes that [`to_hex`] has written.
fn from_hex(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

/// Extended attributes that belong to the host and not to the file: labels are set anew on each node.
const HOST_XATTRS: [&str; 1] = ["security.selinux"];
