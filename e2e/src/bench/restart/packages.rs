//! Debian's s6 and runit, unpacked beside the machine's own programs.
//!
//! Owns the choice of packages. They are never installed: to install runit changes a machine's users and what it starts.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cache::{Cache, Inputs};
use crate::command::{self, program};

/// What is measured beside Tideover.
const PACKAGES: [&str; 2] = ["runit", "s6"];
/// What came, in the directory of the packages.
const ARCHIVES: &str = "archives";

/// The packages of this machine's release of Debian, with the libraries that it lacks.
#[derive(Debug, Clone)]
pub struct Packages(PathBuf);

impl Packages {
    /// Downloads and unpacks them unless the cache has them.
    ///
    /// # Errors
    /// With apt's message.
    pub fn ensure(cache: &Cache) -> Result<Self> {
        let entry = cache.entry("supervisors", Inputs::of(PACKAGES.map(str::as_bytes)));
        if !entry.is_current() {
            let partial = cache.partial("supervisors")?;
            unpack(&partial)?;
            entry.install(&partial)?;
        }
        Ok(Self(entry.path().to_owned()))
    }

    /// One of their programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.0.join("usr/bin").join(name)
    }

    /// Where their libraries are.
    pub fn libraries(&self) -> PathBuf {
        // Debian's name for the kernel's architecture is Rust's on those that there are images for.
        self.0.join("usr/lib").join(format!("{}-linux-gnu", std::env::consts::ARCH))
    }

    /// Name and version of each.
    ///
    /// # Errors
    /// When the archives are gone.
    pub fn versions(&self) -> Result<Vec<(String, String)>> {
        let names = archives(&self.0.join(ARCHIVES))?;
        let version = |package: &&str| {
            let version = names.iter().find_map(|path| version_of(package, path)).context("a package is gone")?;
            Ok(((*package).to_owned(), version))
        };
        PACKAGES.iter().map(version).collect()
    }
}

fn unpack(target: &Path) -> Result<()> {
    let directory = target.join(ARCHIVES);
    fs::create_dir_all(directory.join("partial")).context("make a directory for packages")?;
    command::run(&mut program("apt-get", ["update", "--quiet=2"]))?;
    let mut download = program("apt-get", ["install", "--download-only", "--reinstall", "--no-install-recommends"]);
    download.args(["--yes", "--quiet=2", "--option"]).arg(format!("Dir::Cache::archives={}/", directory.display()));
    command::run(download.args(PACKAGES))?;
    for archive in archives(&directory)? {
        command::run(program("dpkg-deb", ["--extract"]).arg(&archive).arg(target))?;
    }
    Ok(())
}

fn archives(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>()?;
    Ok(paths.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "deb")).collect())
}

/// By the name that apt gives an archive: `<package>_<version>_<architecture>.deb`.
fn version_of(package: &str, archive: &Path) -> Option<String> {
    let name = archive.file_name()?.to_str()?;
    let mut parts = name.split('_');
    (parts.next()? == package).then_some(())?;
    // A colon, which some versions have, is no character of a file's name to apt.
    Some(parts.next()?.replace("%3a", ":"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_that_of_the_package_and_not_of_one_with_a_longer_name() {
        let of = |name: &str| version_of("runit", Path::new(name));
        assert_eq!(of("/x/runit_2.1.2-54_amd64.deb").as_deref(), Some("2.1.2-54"));
        assert_eq!(of("/x/runit_1%3a3_amd64.deb").as_deref(), Some("1:3"));
        assert_eq!(of("/x/runit-helper_2.15.2_all.deb"), None);
    }
}
