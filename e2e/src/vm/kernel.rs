//! Debian's kernel for virtual machines, without the modules: what the checks need is in the kernel itself.
//!
//! Owns which package that is. Downloaded with an apt that knows nothing of the host's packages and changes none of them; apt
//! compares signatures and digests.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::apt;
use crate::cache::{Cache, CacheError, Inputs};
use crate::command::{self, CommandError};
use crate::tree::{KEYRING, SUITE};

/// Depends on the kernel that is the suite's present one.
const NEWEST: &str = "linux-image-cloud-amd64";
/// What the names of kernels begin with that [`NEWEST`] depends on. What follows is the release.
const IMAGE: &str = "linux-image-";
/// The same for the package that has the kernel itself in it.
const BINARY: &str = "linux-binary-";
/// Where debootstrap looks where the host names no mirror.
const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";
/// Changes when the way to get it does.
const RECIPE: &str = include_str!("kernel.rs");

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A file for apt could not be written, or the kernel not kept.
    #[error("write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// apt or dpkg failed.
    #[error("get a kernel from Debian {SUITE}")]
    Apt(#[source] CommandError),
    /// The suite has no such kernel.
    #[error("find the release of {NEWEST} among what it depends on: {listing}")]
    NoRelease {
        /// What apt has said.
        listing: String,
    },
    /// The result could not be kept.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// The kernel's file; downloaded unless the cache has it. Like the Debian tree, it stays the one that was the newest when it was
/// got.
///
/// # Errors
/// Names the step.
pub fn ensure(cache: &Cache, mut on_line: impl FnMut(&str)) -> Result<PathBuf, KernelError> {
    let inputs = Inputs::of([SUITE.as_bytes(), RECIPE.as_bytes()]);
    let entry = cache.entry(&format!("kernel-{SUITE}-{}", inputs.short()), inputs);
    let kernel = entry.path().join("vmlinuz");
    if entry.is_current() {
        return Ok(kernel);
    }
    on_line("downloading");
    let partial = cache.partial("kernel")?;
    let apt = Apt::new(&partial.join("apt"))?;
    let package = download(&apt)?;
    command::run(command::program("dpkg-deb", ["-x"]).arg(&package.file).arg(&partial)).map_err(KernelError::Apt)?;
    let target = partial.join("vmlinuz");
    let found = partial.join("usr/lib/modules").join(&package.release).join("vmlinuz");
    fs::rename(&found, &target).map_err(|source| KernelError::Write { path: found, source })?;
    for remains in ["apt", "usr"] {
        let path = partial.join(remains);
        fs::remove_dir_all(&path).map_err(|source| KernelError::Write { path, source })?;
    }
    entry.install(&partial)?;
    Ok(kernel)
}

struct Package {
    release: String,
    file: PathBuf,
}

fn download(apt: &Apt) -> Result<Package, KernelError> {
    command::run(&mut apt.command("apt-get", &["update"])).map_err(KernelError::Apt)?;
    let listing = command::read(&mut apt.command("apt-cache", &["depends", NEWEST])).map_err(KernelError::Apt)?;
    let release = release(&listing).ok_or_else(|| KernelError::NoRelease { listing: listing.clone() })?.to_owned();
    let name = format!("{BINARY}{release}");
    command::run(&mut apt.command("apt-get", &["download", &name])).map_err(KernelError::Apt)?;
    let failed = |source| KernelError::Write { path: apt.directory.clone(), source };
    for entry in fs::read_dir(&apt.directory).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        if file.extension().is_some_and(|extension| extension == "deb") {
            return Ok(Package { release, file });
        }
    }
    Err(failed(io::ErrorKind::NotFound.into()))
}

/// The kernel's release, from what apt-cache lists as dependencies.
fn release(listing: &str) -> Option<&str> {
    listing.lines().find_map(|line| line.trim().strip_prefix("Depends: ")?.strip_prefix(IMAGE))
}

/// An apt with a directory of its own for everything.
struct Apt {
    directory: PathBuf,
}

impl Apt {
    fn new(directory: &Path) -> Result<Self, KernelError> {
        let write =
            |path: PathBuf, written: io::Result<()>| written.map_err(|source| KernelError::Write { path, source });
        for made in ["lists/partial", "archives/partial"] {
            let path = directory.join(made);
            write(path.clone(), fs::create_dir_all(&path))?;
        }
        let mirror = apt::debian_mirror().unwrap_or_else(|| DEFAULT_MIRROR.to_owned());
        let source = format!("deb [signed-by={KEYRING}] {mirror} {SUITE} main\n");
        for (name, content) in [("sources.list", source.as_str()), ("status", ""), ("apt.conf", "")] {
            let path = directory.join(name);
            write(path.clone(), fs::write(&path, content))?;
        }
        Ok(Self { directory: directory.to_owned() })
    }

    fn command(&self, program: &str, words: &[&str]) -> std::process::Command {
        let own = |name: &str| self.directory.join(name).display().to_string();
        let options = [
            format!("Dir::State={}", own("")),
            format!("Dir::State::Lists={}", own("lists")),
            format!("Dir::State::Status={}", own("status")),
            format!("Dir::Cache={}", own("")),
            format!("Dir::Etc={}", own("")),
            format!("Dir::Etc::SourceList={}", own("sources.list")),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            "Acquire::Languages=none".to_owned(),
            // Its own user could not write into the cache.
            "APT::Sandbox::User=root".to_owned(),
        ];
        let mut command = command::program(program, options.iter().flat_map(|option| ["-o", option]));
        command.arg("-q").args(words).current_dir(&self.directory);
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_found_among_the_dependencies() {
        let listing = "\
linux-image-cloud-amd64
  Depends: linux-base-cloud-amd64
  Depends: linux-image-7.2.13+deb14-cloud-amd64
";
        assert_eq!(release(listing), Some("7.2.13+deb14-cloud-amd64"));
        assert_eq!(release("linux-image-cloud-amd64\n  Depends: linux-base-cloud-amd64\n"), None);
    }
}
