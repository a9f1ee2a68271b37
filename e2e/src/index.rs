//! Gives every lab on this host its own number.
//!
//! Owns the index file and its lock. The choice itself is a pure function; never looks at a lab's processes.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::lock::{Lock, LockError};
use crate::topology::{LabName, MAX_LABS};
use crate::{layout, write_atomic};

/// Which name has which number.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index(BTreeMap<LabName, u8>);

/// Why a lab got no number.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// Every number is taken.
    #[error("all {MAX_LABS} lab numbers are taken: remove a lab with `lab down --name NAME`")]
    Full,
    /// The index is in use and stays so.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The index file could not be read.
    #[error("read the index of labs {path}")]
    Read {
        /// The index file.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The index file is not ours.
    #[error("understand the index of labs {path}")]
    Parse {
        /// The index file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The index file could not be written.
    #[error("write the index of labs {path}")]
    Write {
        /// The index file.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
}

impl Index {
    /// The number of `name`: the one it has, else the lowest that no lab has and that is not `busy` on the host.
    ///
    /// # Errors
    /// When no number is left.
    pub fn allocate(&mut self, name: &LabName, busy: impl Fn(u8) -> bool) -> Result<u8, IndexError> {
        if let Some(index) = self.0.get(name) {
            return Ok(*index);
        }
        let free = (0..MAX_LABS).find(|index| !self.0.values().any(|taken| taken == index) && !busy(*index));
        let index = free.ok_or(IndexError::Full)?;
        self.0.insert(name.clone(), index);
        Ok(index)
    }

    /// Forgets `name`; its number is free again.
    pub fn release(&mut self, name: &LabName) {
        self.0.remove(name);
    }

    /// All labs known on this host.
    pub fn names(&self) -> impl Iterator<Item = &LabName> {
        self.0.keys()
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Reads the index; an absent one is empty.
///
/// # Errors
/// When the file is there but unreadable.
pub fn load() -> Result<Index, IndexError> {
    let path = layout::index_file();
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|source| IndexError::Parse { path, source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Index::default()),
        Err(source) => Err(IndexError::Read { path, source }),
    }
}

/// Changes the index under its lock. An index without labs leaves no file behind.
///
/// # Errors
/// When the lock, the file or `change` fails; the file is then as before.
pub fn update<T>(change: impl FnOnce(&mut Index) -> Result<T, IndexError>) -> Result<T, IndexError> {
    let _held = Lock::acquire(&layout::index_lock())?;
    let mut index = load()?;
    let answer = change(&mut index)?;
    let path = layout::index_file();
    let stored = if index.is_empty() {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    } else {
        write_atomic::json(&path, &index)
    };
    stored.map_err(|source| IndexError::Write { path, source })?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> LabName {
        text.parse().unwrap()
    }

    #[test]
    fn a_lab_keeps_its_number() {
        let mut index = Index::default();
        assert_eq!(index.allocate(&name("a"), |_| false).unwrap(), 0);
        assert_eq!(index.allocate(&name("b"), |_| false).unwrap(), 1);
        assert_eq!(index.allocate(&name("a"), |_| true).unwrap(), 0);
    }

    #[test]
    fn a_released_number_is_given_again() {
        let mut index = Index::default();
        index.allocate(&name("a"), |_| false).unwrap();
        index.allocate(&name("b"), |_| false).unwrap();
        index.release(&name("a"));
        assert_eq!(index.allocate(&name("c"), |_| false).unwrap(), 0);
    }

    #[test]
    fn addresses_in_use_on_the_host_are_passed_over() {
        let mut index = Index::default();
        assert_eq!(index.allocate(&name("a"), |candidate| candidate < 3).unwrap(), 3);
    }

    #[test]
    fn when_every_number_is_taken_the_sentence_says_what_to_do() {
        let error = Index::default().allocate(&name("a"), |_| true).unwrap_err();
        assert!(error.to_string().contains("lab down"));
    }
}
