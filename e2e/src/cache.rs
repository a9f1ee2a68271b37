//! What is built or downloaded once and kept outside the repository.
//!
//! Owns the cache directory, its lock, and the rule when an entry counts: only with a stamp that names the digest of
//! everything the entry was made from, written after the entry was complete.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::lock::{Lock, LockError};
use crate::write_atomic;

/// Environment variable that moves the cache.
pub const CACHE_VARIABLE: &str = "TIDEOVER_CACHE";

const PARTIAL: &str = ".partial-";

/// The cache, locked: two labs that start at once do not build the same thing twice.
#[derive(Debug)]
pub struct Cache {
    root: PathBuf,
    _lock: Lock,
}

/// What could not be done with the cache.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Nobody knows where it is.
    #[error("find a place for the cache: set {CACHE_VARIABLE} or HOME")]
    NoPlace,
    /// It could not be locked.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A file or directory of it failed.
    #[error("keep {path} in the cache")]
    Keep {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
}

/// The digest of everything that an entry is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inputs(String);

impl Inputs {
    /// The digest of `parts`, in order; where one part ends and the next begins is part of it.
    pub fn of<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Lower-case hexadecimal, 64 characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 12 characters: enough to tell the entries of one cache apart.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl Cache {
    /// Opens the cache, waiting for whoever is using it, and sweeps out what a killed builder left.
    ///
    /// # Errors
    /// When there is no place for it.
    pub fn open() -> Result<Self, CacheError> {
        Self::open_at(locate(|variable| std::env::var_os(variable).map(PathBuf::from)).ok_or(CacheError::NoPlace)?)
    }

    fn open_at(root: PathBuf) -> Result<Self, CacheError> {
        let lock = Lock::acquire(&root.join(".lock"))?;
        let failed = |source| CacheError::Keep { path: root.clone(), source };
        for entry in fs::read_dir(&root).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PARTIAL)) {
                fs::remove_dir_all(&path).map_err(|source| CacheError::Keep { path, source })?;
            }
        }
        Ok(Self { root, _lock: lock })
    }

    /// The entry `name`, made from `inputs`.
    pub fn entry(&self, name: &str, inputs: Inputs) -> Entry {
        Entry { path: self.root.join(name), inputs }
    }

    /// A new directory on the same file system as the entries.
    ///
    /// # Errors
    /// The operating system's reason.
    pub fn partial(&self, name: &str) -> Result<PathBuf, CacheError> {
        let path = self.root.join(format!("{PARTIAL}{name}"));
        fs::create_dir_all(&path).map_err(|source| CacheError::Keep { path: path.clone(), source })?;
        Ok(path)
    }
}

fn locate(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let set = |name: &str| variable(name).filter(|path| path.is_absolute());
    set(CACHE_VARIABLE)
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("tideover")))
        .or_else(|| set("HOME").map(|home| home.join(".cache").join("tideover")))
}

/// One directory of the cache.
#[derive(Debug, Clone)]
pub struct Entry {
    path: PathBuf,
    inputs: Inputs,
}

impl Entry {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it is made from.
    pub fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    /// Whether it is complete and made from just these inputs.
    pub fn is_current(&self) -> bool {
        fs::read_to_string(self.stamp()).is_ok_and(|stamp| stamp.trim() == self.inputs.as_str())
    }

    /// Declares it complete.
    ///
    /// # Errors
    /// The operating system's reason.
    pub fn declare_complete(&self) -> Result<(), CacheError> {
        let path = self.stamp();
        let text = format!("{}\n", self.inputs.as_str());
        write_atomic::bytes(&path, text.as_bytes()).map_err(|source| CacheError::Keep { path, source })
    }

    /// Puts a finished `partial` directory in its place, and declares the entry complete.
    ///
    /// # Errors
    /// The operating system's reason.
    pub fn install(&self, partial: &Path) -> Result<(), CacheError> {
        let failed = |source| CacheError::Keep { path: self.path.clone(), source };
        if self.path.exists() {
            fs::remove_dir_all(&self.path).map_err(failed)?;
        }
        fs::rename(partial, &self.path).map_err(failed)?;
        self.declare_complete()
    }

    fn stamp(&self) -> PathBuf {
        // Beside the entry: some entries are root file systems and should hold nothing foreign.
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        self.path.with_file_name(format!("{name}.stamp"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_one_input_ends_matters() {
        let digest = |parts: &[&str]| Inputs::of(parts.iter().map(|part| part.as_bytes()));
        assert_ne!(digest(&["ab", "c"]), digest(&["a", "bc"]));
        assert_eq!(digest(&["ab", "c"]), digest(&["ab", "c"]));
    }

    #[test]
    fn an_entry_counts_only_when_complete_and_of_the_same_inputs() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open_at(dir.path().join("cache")).unwrap();
        let entry = cache.entry("thing", Inputs::of([b"one".as_slice()]));
        let partial = cache.partial("thing").unwrap();
        assert!(!entry.is_current());
        entry.install(&partial).unwrap();
        assert!(entry.is_current());
        assert!(!cache.entry("thing", Inputs::of([b"two".as_slice()])).is_current());
    }

    #[test]
    fn what_a_killed_builder_left_is_swept_out() {
        let dir = tempfile::tempdir().unwrap();
        let left = Cache::open_at(dir.path().to_owned()).unwrap().partial("half").unwrap();
        assert!(left.exists());
        Cache::open_at(dir.path().to_owned()).unwrap();
        assert!(!left.exists());
    }

    #[test]
    fn the_variable_comes_before_the_home_directory() {
        let only =
            |name: &'static str, value: &'static str| move |asked: &str| (asked == name).then(|| PathBuf::from(value));
        assert_eq!(locate(only("HOME", "/root")).unwrap(), Path::new("/root/.cache/tideover"));
        assert_eq!(locate(only(CACHE_VARIABLE, "/big/disk")).unwrap(), Path::new("/big/disk"));
        assert_eq!(locate(only(CACHE_VARIABLE, "relative")), None);
    }
}
