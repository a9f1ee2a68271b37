//! Processes of this same program that pack or unpack one tree, with that tree as their root directory.

use crate::agent::files::{TreeKind, pack, unpack};
use clap::ValueEnum;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use thiserror::Error;

/// This program. The link names the running image even where an upgrade has replaced the file.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// Why a tree could not be packed or unpacked by a process.
#[derive(Debug, Error)]
pub enum ProcessError {
    /// The process can't be started.
    #[error("start a process for the tree {root:?}")]
    Start {
        /// The tree.
        root: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The archive can't be opened.
    #[error("open the archive {path:?}")]
    Open {
        /// The archive.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The process said why it failed.
    #[error("the tree {root:?} could not be unpacked: {message}")]
    Failed {
        /// The tree.
        root: PathBuf,
        /// Its last words.
        message: String,
    },
}

/// A packing process that is started and waits for its go, so that nothing has to be started while a pod is frozen.
/// Dropping it ends the process.
#[derive(Debug)]
pub struct Packing {
    child: Child,
}

impl Packing {
    /// Starts it for the tree at `root`.
    ///
    /// # Errors
    /// Where the process can't be started; a tree that can't be read shows when it is.
    pub fn start(root: &Path, kind: TreeKind) -> Result<Self, ProcessError> {
        let child = Command::new(OWN_PROGRAM)
            .arg("pack")
            .args(tree_arguments(root, kind))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| ProcessError::Start { root: root.to_owned(), source })?;
        Ok(Self { child })
    }

    /// Lets it begin. The archive is what the reader gives; where packing fails, reading fails.
    pub fn go(mut self) -> PackReader {
        drop(self.child.stdin.take());
        PackReader { output: self.child.stdout.take(), packing: self }
    }
}

impl Drop for Packing {
    fn drop(&mut self) {
        // It only reads, so ending it leaves nothing behind. Both calls fail where it has ended already.
        if self.child.kill().is_ok() {
            self.child.wait().ok();
        }
    }
}

/// The archive that a packing process writes.
#[derive(Debug)]
pub struct PackReader {
    output: Option<ChildStdout>,
    packing: Packing,
}

impl Read for PackReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let Some(output) = &mut self.output else { return Ok(0) };
        let count = output.read(buffer)?;
        if count == 0 && !buffer.is_empty() {
            self.output = None;
            let message = last_words(&mut self.packing.child);
            let status = self.packing.child.wait()?;
            if !status.success() {
                return Err(std::io::Error::other(message));
            }
        }
        Ok(count)
    }
}

/// Unpacks `archive` into the tree at `root`, in a process of its own. Blocks until that has ended.
///
/// # Errors
/// [`ProcessError::Failed`] with the process's own reason; the tree is half done then.
pub fn unpack_into(root: &Path, kind: TreeKind, archive: &Path, limit: u64) -> Result<(), ProcessError> {
    let input = File::open(archive).map_err(|source| ProcessError::Open { path: archive.to_owned(), source })?;
    let start = |source| ProcessError::Start { root: root.to_owned(), source };
    let mut child = Command::new(OWN_PROGRAM)
        .arg("unpack")
        .args(tree_arguments(root, kind))
        .arg(format!("--limit={limit}"))
        .stdin(input)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(start)?;
    let message = last_words(&mut child);
    if child.wait().map_err(start)?.success() {
        Ok(())
    } else {
        Err(ProcessError::Failed { root: root.to_owned(), message })
    }
}

fn tree_arguments(root: &Path, kind: TreeKind) -> [std::ffi::OsString; 4] {
    let kind = kind.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    ["--root".into(), root.as_os_str().to_owned(), "--kind".into(), kind.into()]
}

/// What a process wrote on its standard error, at most 4 KiB of it.
fn last_words(child: &mut Child) -> String {
    let mut words = String::new();
    if let Some(error) = child.stderr.take() {
        // Words that can't be read are no reason to fail differently.
        error.take(4096).read_to_string(&mut words).ok();
    }
    words.trim().to_owned()
}

/// Why the packing or unpacking process itself failed.
#[derive(Debug, Error)]
pub enum TreeError {
    /// The tree can't become the root directory.
    #[error("enter the tree {root:?}")]
    Enter {
        /// The tree.
        root: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The end of standard input, the go, can't be read.
    #[error("wait for the go")]
    Wait(#[source] std::io::Error),
    /// Packing failed.
    #[error(transparent)]
    Pack(#[from] pack::PackError),
    /// Unpacking failed.
    #[error(transparent)]
    Unpack(#[from] unpack::UnpackError),
    /// The end of the archive can't be written.
    #[error("end the archive")]
    Flush(#[source] std::io::Error),
}

/// Body of the packing process: takes `root` as root directory, waits for the end of standard input, writes the archive to
/// standard output.
///
/// # Errors
/// Where the tree can't be entered or packed.
pub fn pack_here(root: &Path, kind: TreeKind) -> Result<(), TreeError> {
    enter(root)?;
    std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink()).map_err(TreeError::Wait)?;
    let output = BufWriter::with_capacity(256 << 10, std::io::stdout().lock());
    pack::pack(Path::new("/"), kind, output)?.flush().map_err(TreeError::Flush)
}

/// Body of the unpacking process: takes `root` as root directory and the archive from standard input.
///
/// # Errors
/// Where the tree can't be entered or the archive can't be unpacked.
pub fn unpack_here(root: &Path, kind: TreeKind, limit: u64) -> Result<(), TreeError> {
    enter(root)?;
    Ok(unpack::unpack(Path::new("/"), kind, std::io::stdin().lock(), limit)?)
}

fn enter(root: &Path) -> Result<(), TreeError> {
    let failed = |source| TreeError::Enter { root: root.to_owned(), source };
    std::os::unix::fs::chroot(root).map_err(failed)?;
    std::env::set_current_dir("/").map_err(failed)?;
    // Modes come from the archive alone.
    rustix::process::umask(rustix::fs::Mode::empty());
    Ok(())
}
