//! Which `tideover-init` a container runs: a hash of its content, so that a move finds the very same file.

use crate::criu::bundle::SpecMount;
use crate::local::INSTALL_ROOT;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Directory of the programs below [`INSTALL_ROOT`], one file for each content.
pub const PROGRAMS: &str = "init";
/// The link in it to the one that new containers get.
pub const CURRENT: &str = "current";
/// Name of the file among a container's images that says which program it runs. Only one that is supervised has it.
pub const FILE: &str = "supervised-by";
/// Name of the program itself among them, for a target that has not got it.
pub const CONTENT: &str = "tideover-init";
/// Characters of a hash: half of BLAKE3's.
const LENGTH: usize = 32;

/// Why it can't be told which program is meant.
#[derive(Debug, Error)]
pub enum ProgramError {
    /// A file or link can't be read.
    #[error("read {path:?}")]
    Read {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It can't be written down.
    #[error("write {path:?}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A name that no program has.
    #[error("{path:?} does not say which tideover-init is meant")]
    Name {
        /// Where it was found.
        path: PathBuf,
    },
    /// The node has another one, or none.
    #[error("this node has no tideover-init {hash}, which the container runs")]
    Missing {
        /// The hash.
        hash: String,
    },
}

/// One content of `tideover-init`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program(String);

impl Program {
    /// The program with this hash; none where it is none.
    pub fn named(hash: &str) -> Option<Self> {
        let is_hash = hash.len() == LENGTH && hash.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        is_hash.then(|| Self(hash.to_owned()))
    }

    /// The program whose content has this digest.
    pub fn of_content(digest: &blake3::Hash) -> Self {
        Self(digest.to_hex()[..LENGTH].to_owned())
    }

    /// Its hash, hexadecimal.
    pub fn hash(&self) -> &str {
        &self.0
    }

    /// Where it is on a node that has it.
    pub fn path(&self) -> PathBuf {
        Path::new(INSTALL_ROOT).join(PROGRAMS).join(&self.0)
    }

    /// The program that new containers get, of those in the directory `programs`.
    ///
    /// # Errors
    /// [`ProgramError::Read`] where nothing is installed there.
    pub fn current(programs: &Path) -> Result<Self, ProgramError> {
        let path = programs.join(CURRENT);
        let target = path.read_link().map_err(|source| ProgramError::Read { path: path.clone(), source })?;
        target.to_str().and_then(Self::named).ok_or(ProgramError::Name { path })
    }

    /// The program that a container with these mounts runs; none for one that is not supervised. The mounts are those of a
    /// bundle, which nobody but containerd and the shim writes.
    pub fn mounted(mounts: &[SpecMount]) -> Option<Self> {
        let mount = mounts.iter().rfind(|mount| mount.destination == Path::new(super::PROGRAM))?;
        let program = Self::named(mount.source.file_name()?.to_str()?)?;
        (mount.source == program.path()).then_some(program)
    }

    /// Fails unless the node, whose file system is seen at `root`, has it.
    ///
    /// # Errors
    /// [`ProgramError::Missing`].
    pub fn check_there(&self, root: &Path) -> Result<(), ProgramError> {
        let path = self.path();
        let path = root.join(path.strip_prefix("/").unwrap_or(&path));
        if path.is_file() { Ok(()) } else { Err(ProgramError::Missing { hash: self.0.clone() }) }
    }

    /// Writes it down in a directory of images.
    ///
    /// # Errors
    /// [`ProgramError::Write`].
    pub fn write(&self, images: &Path) -> Result<(), ProgramError> {
        let path = images.join(FILE);
        let write = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
            file.write_all(self.0.as_bytes())
        };
        write().map_err(|source| ProgramError::Write { path: path.clone(), source })
    }

    /// What is written down in a directory of images; none where the container is not supervised. It selects one of the
    /// node's own programs, and can say nothing else.
    ///
    /// # Errors
    /// Where the file can't be read, or names no program.
    pub fn read(images: &Path) -> Result<Option<Self>, ProgramError> {
        let path = images.join(FILE);
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(&path);
        let file = match opened {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(|source| ProgramError::Read { path: path.clone(), source })?,
        };
        let mut text = String::new();
        file.take(LENGTH as u64 + 1)
            .read_to_string(&mut text)
            .map_err(|source| ProgramError::Read { path: path.clone(), source })?;
        Self::named(&text).map(Some).ok_or(ProgramError::Name { path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn only_a_hash_names_a_program() {
        assert_eq!(Program::named(HASH).unwrap().path(), Path::new("/opt/tideover/init").join(HASH));
        for wrong in ["", "current", "../../../bin/sh", "0123456789ABCDEF0123456789abcdef", &HASH[1..]] {
            assert_eq!(Program::named(wrong), None, "{wrong}");
        }
        let program = Program::of_content(&blake3::hash(b"x"));
        assert_eq!(Program::named(program.hash()), Some(program));
    }

    #[test]
    fn a_container_runs_what_is_mounted_from_where_programs_are() {
        let mount = |source: &str| SpecMount {
            destination: crate::supervised::PROGRAM.into(),
            source: source.into(),
            ..SpecMount::default()
        };
        let ours = format!("/opt/tideover/init/{HASH}");
        assert_eq!(Program::mounted(&[mount(&ours)]), Program::named(HASH));
        assert_eq!(Program::mounted(&[mount(&format!("/var/lib/kubelet/{HASH}"))]), None);
        assert_eq!(Program::mounted(&[SpecMount { source: ours.into(), ..SpecMount::default() }]), None);
    }

    #[test]
    fn the_images_say_which_program_and_nothing_else() {
        let images = tempfile::tempdir().unwrap();
        assert_eq!(Program::read(images.path()).unwrap(), None);
        let program = Program::named(HASH).unwrap();
        program.write(images.path()).unwrap();
        assert_eq!(Program::read(images.path()).unwrap(), Some(program));
        for wrong in ["../../../etc/passwd", &format!("{HASH}0"), ""] {
            std::fs::write(images.path().join(FILE), wrong).unwrap();
            assert!(matches!(Program::read(images.path()), Err(ProgramError::Name { .. })), "{wrong}");
        }
        std::fs::remove_file(images.path().join(FILE)).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", images.path().join(FILE)).unwrap();
        assert!(matches!(Program::read(images.path()), Err(ProgramError::Read { .. })));
    }

    #[test]
    fn a_node_that_lacks_a_program_is_told_by_its_hash() {
        let root = tempfile::tempdir().unwrap();
        let program = Program::named(HASH).unwrap();
        assert!(program.check_there(root.path()).unwrap_err().to_string().contains(HASH));
        let at = root.path().join("opt/tideover/init").join(HASH);
        std::fs::create_dir_all(at.parent().unwrap()).unwrap();
        std::fs::write(at, "").unwrap();
        program.check_there(root.path()).unwrap();
    }
}
