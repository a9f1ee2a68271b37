//! A virtual machine whose kernel is another than the host's: what the lab, all of whose machines share one kernel, can't show.
//!
//! [`kernel`] gets Debian's kernel, [`programs`] builds what runs on it, [`ramdisk`] packs that into the kernel's initial files
//! ([`cpio`] is their format), [`boot`] runs the machine, and [`report`] reads what it says. There is no disk, no network and no
//! init system: `e2e/guest` is the first process, makes all checks in one boot, and powers off.
//!
//! The machine is emulated, without KVM, so nothing that it shows is a time.

pub mod boot;
mod cpio;
mod kernel;
mod programs;
mod ramdisk;
pub mod report;

use std::path::PathBuf;

use crate::cache::{Cache, CacheError};
use crate::command::CommandError;
use crate::image::criu::{self, CriuError};
use crate::progress::Progress;
use crate::tree::{self, TreeError};
use boot::{BootError, Machine};
use report::Report;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The programs could not be built.
    #[error("build what runs in the virtual machine")]
    Programs(#[source] CommandError),
    /// The compiler has not told where a test program is.
    #[error("find the test program {name} in what cargo has said")]
    NoTestProgram {
        /// Name of the target.
        name: String,
    },
    /// The Debian tree could not be made.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The kernel could not be got.
    #[error(transparent)]
    Kernel(#[from] kernel::KernelError),
    /// CRIU could not be packed.
    #[error(transparent)]
    Criu(#[from] CriuError),
    /// The initial files could not be packed.
    #[error(transparent)]
    Ramdisk(#[from] ramdisk::RamdiskError),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A directory for this boot could not be made.
    #[error("make the directory {path}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The machine did not come to its end.
    #[error(transparent)]
    Boot(#[from] BootError),
}

/// Builds what is needed, boots the machine once, and returns what it has reported. Nothing of it is left afterwards but the
/// cache.
///
/// # Errors
/// Names the step; where the machine was running, with the end of its console.
pub fn run(progress: &Progress) -> Result<Report, VmError> {
    let mut step = progress.step("programs for the virtual machine");
    let programs = programs::build(&mut step)?;
    step.done();

    let mut step = progress.step("kernel and files of the virtual machine");
    let cache = Cache::open()?;
    let tree = tree::ensure(&cache, |line| step.say(line))?;
    let kernel = kernel::ensure(&cache, |line| step.say(line))?;
    let directory = tempfile::tempdir().map_err(|source| VmError::Directory { path: std::env::temp_dir(), source })?;
    let ramdisk = directory.path().join("ramdisk");
    ramdisk::write(&ramdisk, &tree.path, &criu::ensure(&cache, &tree)?, &programs)?;
    drop(cache);
    step.done();

    let mut step = progress.step("virtual machine");
    let report =
        boot::run(&Machine { kernel: &kernel, ramdisk: &ramdisk, directory: directory.path() }, |line| step.say(line))?;
    step.done();
    Ok(report)
}
