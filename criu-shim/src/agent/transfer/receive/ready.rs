//! Files for the archives of the last round, made while the application runs.
//!
//! To write where a file already has memory is faster than to have the kernel find some: 4 MiB take 1 ms instead of 1.5 ms, and
//! instead of 11 ms on a virtual machine whose host has taken back what was free (measured: 11 us a page, Firecracker with free
//! page reporting). So what lands in the freeze lands in a file of zeroes, as long as the longest archive of that tree so far, which
//! then gets the archive's name and length. Nothing depends on it: where there is no such file, a new one is made.

use crate::agent::room::Share;
use crate::agent::transfer::message::{FILES, Part};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Result;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Longest of these files, bytes. What is longer takes a while all the same.
const LONGEST: u64 = 16 << 20;
/// Bytes that are written at once.
const AT_ONCE: usize = 256 << 10;

/// The files of one attempt.
#[derive(Debug)]
pub(super) struct Ready {
    directory: PathBuf,
    /// How long the one for each tree is. Of a tree of which one archive has come, which brought all of it, there is none yet.
    lengths: BTreeMap<String, u64>,
}

impl Ready {
    /// None yet; they are made in `directory`, which need not be there.
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory, lengths: BTreeMap::new() }
    }

    /// A part of so many bytes has landed. `share` is of the room on the disk.
    pub(super) fn landed(&mut self, part: &Part, bytes: u64, share: &mut Share) {
        let Some(tree) = tree(part) else { return };
        let Some(there) = self.lengths.get(&tree).copied() else {
            self.lengths.insert(tree, 0);
            return;
        };
        let wanted = bytes.min(LONGEST);
        if wanted <= there {
            return;
        }
        let Ok(covered) = share.take(wanted - there) else { return };
        // Where that fails it may be longer than is noted, which does no harm.
        if self.extend(&tree, there, wanted).is_ok() {
            self.lengths.insert(tree, wanted);
        }
        drop(covered);
    }

    /// Gives the file for this part the name `path`. None where there is none for it, or something of that name.
    pub(super) fn take(&mut self, part: &Part, path: &Path) -> Option<File> {
        let tree = tree(part)?;
        self.lengths.remove(&tree).filter(|length| *length > 0)?;
        let ready = self.directory.join(tree);
        let file = OpenOptions::new().write(true).open(&ready).ok()?;
        renameat_with(CWD, &ready, CWD, path, RenameFlags::NOREPLACE).ok().map(|()| file)
    }

    fn extend(&self, tree: &str, from: u64, to: u64) -> Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).mode(0o600).open(self.directory.join(tree))?;
        let zeroes = vec![0; AT_ONCE];
        for at in (from..to).step_by(AT_ONCE) {
            let length = usize::try_from(to - at).map_or(AT_ONCE, |left| left.min(AT_ONCE));
            file.write_all_at(&zeroes[..length], at)?;
        }
        Ok(())
    }
}

/// What the archives of one tree have in common: their name without the round. None where the part is no archive.
fn tree(part: &Part) -> Option<String> {
    let (_, name) = part.place().ok()?.filter(|(place, _)| *place == FILES)?;
    name.split_once('-').map(|(_, tree)| tree.to_owned())
}
