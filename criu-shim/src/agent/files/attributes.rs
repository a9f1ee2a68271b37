//! Extended attributes: reading those that travel, and making a file's equal to them.

use crate::agent::files::TreeKind;
use crate::agent::files::beneath::c_name;
use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fremovexattr, fsetxattr};
use rustix::fs::{lgetxattr, llistxattr, lremovexattr, lsetxattr};
use rustix::io::Errno;
use std::os::fd::BorrowedFd;
use std::path::Path;

/// Extended attributes that belong to the node and not to the file: labels and signatures are set anew on each.
const OF_THE_NODE: [&[u8]; 3] = [b"security.selinux", b"security.ima", b"security.evm"];
/// Longest list of names and longest value, bytes: `XATTR_LIST_MAX` and `XATTR_SIZE_MAX` of linux/limits.h.
pub const MAX_VALUE: usize = 64 << 10;

/// Extended attributes by name, in order.
pub type Extended = Vec<(Vec<u8>, Vec<u8>)>;

/// Room for what the kernel says, kept from one file to the next.
#[derive(Debug)]
pub struct Scratch(Box<[u8]>);

impl Default for Scratch {
    fn default() -> Self {
        Self(vec![0; MAX_VALUE].into())
    }
}

/// A file whose attributes are meant.
#[derive(Clone, Copy, Debug)]
pub enum File<'a> {
    /// An open one.
    Open(BorrowedFd<'a>),
    /// What this path leads to, its last name not followed.
    At(&'a Path),
}

impl File<'_> {
    fn list(self, scratch: &mut Scratch) -> Result<&[u8], Errno> {
        let listed = match self {
            Self::Open(file) => flistxattr(file, &mut scratch.0[..]),
            Self::At(path) => llistxattr(path, &mut scratch.0[..]),
        };
        match listed {
            Ok(length) => Ok(scratch.0.get(..length).unwrap_or_default()),
            // A file system without any.
            Err(Errno::OPNOTSUPP) => Ok(&[]),
            Err(errno) => Err(errno),
        }
    }

    fn get(self, name: &[u8], scratch: &mut Scratch) -> Result<Vec<u8>, Errno> {
        let name = c_name(name)?;
        let length = match self {
            Self::Open(file) => fgetxattr(file, &*name, &mut scratch.0[..]),
            Self::At(path) => lgetxattr(path, &*name, &mut scratch.0[..]),
        }?;
        Ok(scratch.0.get(..length).unwrap_or_default().to_vec())
    }

    /// Names and values, but for those that belong to the node.
    ///
    /// # Errors
    /// Where they can't be read.
    pub fn read(self, scratch: &mut Scratch) -> Result<Extended, Errno> {
        let names: Vec<Vec<u8>> = names(self.list(scratch)?).map(<[u8]>::to_vec).collect();
        let mut extended = Extended::with_capacity(names.len());
        for name in names {
            match self.get(&name, scratch) {
                Ok(value) => extended.push((name, value)),
                // Somebody has removed it meanwhile.
                Err(Errno::NODATA) => {}
                Err(errno) => return Err(errno),
            }
        }
        extended.sort();
        Ok(extended)
    }

    /// Makes them these, and no others but those that belong to the node.
    ///
    /// # Errors
    /// Where one can't be set or removed.
    pub fn write(self, wanted: &[(Vec<u8>, Vec<u8>)], scratch: &mut Scratch) -> Result<(), Errno> {
        for (name, value) in wanted {
            let name = c_name(name)?;
            match self {
                Self::Open(file) => fsetxattr(file, &*name, value, XattrFlags::empty()),
                Self::At(path) => lsetxattr(path, &*name, value, XattrFlags::empty()),
            }?;
        }
        let list = self.list(scratch)?;
        for name in names(list).filter(|name| !wanted.iter().any(|(wanted, _)| wanted == name)) {
            let name = c_name(name)?;
            let removed = match self {
                Self::Open(file) => fremovexattr(file, &*name),
                Self::At(path) => lremovexattr(path, &*name),
            };
            match removed {
                Ok(()) | Err(Errno::NODATA) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
}

fn names(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| *byte == 0).filter(|name| !name.is_empty() && !OF_THE_NODE.contains(name))
}

/// What overlayfs says by the extended attributes of an entry of its upper directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// The name is deleted.
    pub whiteout: bool,
    /// Nothing of the directory below shows through.
    pub opaque: bool,
}

/// Takes out what overlayfs has set. Source: Documentation/filesystems/overlayfs.rst, also for the names that have
/// `overlay.` twice: those are attributes of a file that is itself part of an overlay.
///
/// # Errors
/// With the name of an attribute that means nothing without the layers of this node.
pub fn take_marks(kind: TreeKind, extended: &mut Extended) -> Result<Marks, String> {
    let (mut marks, mut refused) = (Marks::default(), None);
    if kind == TreeKind::Volume {
        return Ok(marks);
    }
    extended.retain_mut(|(name, value)| {
        let prefixes: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];
        let Some(prefix) = prefixes.into_iter().find(|prefix| name.starts_with(prefix)) else { return true };
        let mark = &name[prefix.len()..];
        match mark {
            b"opaque" => marks.opaque |= value == b"y",
            b"whiteout" => marks.whiteout = true,
            b"redirect" | b"metacopy" => refused = Some(name.escape_ascii().to_string()),
            _ if mark.starts_with(b"overlay.") => {
                let place = prefix.len();
                name.drain(place..place + b"overlay.".len());
                return true;
            }
            // Bookkeeping of the mount: which lower file it was copied from, and the like.
            _ => {}
        }
        false
    });
    refused.map_or(Ok(marks), Err)
}
