//! Builds the programs that are published as Go modules: Kubernetes, Helm, CoreDNS.
//!
//! Owns the modules' names, build flags and place in the cache. The versions are in each module's `go.mod`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::cache::{Cache, CacheError, Inputs};
use crate::command::{self, CommandError};

/// A Go module of ours and what it builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoModule {
    /// kube-apiserver, kube-controller-manager, kube-scheduler, kube-proxy, kubelet and kubectl.
    Kubernetes,
    /// helm.
    Helm,
    /// coredns, with the plugins that the lab uses.
    CoreDns,
}

/// A built module.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The directory of its programs on the host.
    pub directory: PathBuf,
    /// What they are made from; for what is made from them.
    pub inputs: Inputs,
}

/// Why the programs are not there.
#[derive(Debug, thiserror::Error)]
pub enum GoToolsError {
    /// A module's file could not be read.
    #[error("read {path}")]
    ReadModule {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The module does not require what it should.
    #[error("find the version of {dependency} in {path}")]
    NoVersion {
        /// The module's go.mod.
        path: PathBuf,
        /// What it should require.
        dependency: &'static str,
    },
    /// The build failed.
    #[error("build {module}")]
    Build {
        /// The module.
        module: String,
        /// With the compiler's message.
        #[source]
        source: CommandError,
    },
    /// The result could not be kept.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl GoModule {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Kubernetes, Self::Helm, Self::CoreDns];

    fn directory(self) -> PathBuf {
        let name = match self {
            Self::Kubernetes => "k8s",
            Self::Helm => "helm",
            Self::CoreDns => "coredns",
        };
        Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
    }

    /// The dependency whose version names the cache entry.
    fn dependency(self) -> &'static str {
        match self {
            Self::Kubernetes => "k8s.io/kubernetes",
            Self::Helm => "helm.sh/helm/v4",
            Self::CoreDns => "github.com/coredns/coredns",
        }
    }

    /// What `go build` is asked for: the module's tools, or the module's own program.
    fn target(self) -> &'static str {
        match self {
            Self::Kubernetes | Self::Helm => "tool",
            Self::CoreDns => ".",
        }
    }

    fn entry_name(self, version: &str) -> String {
        let name = match self {
            Self::Kubernetes => "k8s",
            Self::Helm => "helm",
            Self::CoreDns => "coredns",
        };
        format!("{name}-{version}")
    }

    fn linker_flags(self, version: &str) -> String {
        let mut flags = "-s -w".to_owned();
        if self == Self::Kubernetes {
            // Kubernetes takes its version from the linker; without it every component says v0.0.0.
            let mut numbers = version.trim_start_matches('v').split('.');
            let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
            let package = "k8s.io/component-base/version";
            for (variable, value) in [("gitVersion", version), ("gitMajor", major), ("gitMinor", minor)] {
                flags.push_str(&format!(" -X {package}.{variable}={value}"));
            }
        }
        flags
    }
}

/// Builds `module` unless the cache has it, telling each line of the compiler to `on_line`.
///
/// # Errors
/// With the compiler's message.
pub fn ensure(cache: &Cache, module: GoModule, on_line: impl FnMut(&str)) -> Result<Programs, GoToolsError> {
    let directory = module.directory();
    let version = version_of(module, &directory)?;
    let flags = module.linker_flags(&version);
    let entry = cache.entry(&module.entry_name(&version), inputs(&directory, &flags)?);
    let programs = Programs { directory: entry.path().join("bin"), inputs: entry.inputs().clone() };
    if entry.is_current() && programs.directory.is_dir() {
        return Ok(programs);
    }
    let path = &programs.directory;
    fs::create_dir_all(path).map_err(|source| CacheError::Keep { path: path.clone(), source })?;
    // The slash makes go write into the directory, under each program's own name.
    let output = format!("{}/", path.display());
    let mut build = command::program("go", ["build", "-trimpath", "-ldflags", &flags, "-o", &output, module.target()]);
    build.current_dir(&directory).env("CGO_ENABLED", "0").env("GOFLAGS", "-buildvcs=false");
    command::run_logged(&mut build, &entry.path().join("build.log"), on_line)
        .map_err(|source| GoToolsError::Build { module: module.entry_name(&version), source })?;
    entry.declare_complete()?;
    Ok(programs)
}

fn version_of(module: GoModule, directory: &Path) -> Result<String, GoToolsError> {
    let path = directory.join("go.mod");
    let text = fs::read_to_string(&path).map_err(|source| GoToolsError::ReadModule { path: path.clone(), source })?;
    let dependency = module.dependency();
    find_version(&text, dependency).ok_or(GoToolsError::NoVersion { path, dependency })
}

/// The version that a go.mod requires of `dependency`, in a block or in a line of its own.
fn find_version(go_mod: &str, dependency: &str) -> Option<String> {
    let version = |line: &str| {
        let mut words = line.trim().trim_start_matches("require ").split_ascii_whitespace();
        let version = (words.next()? == dependency).then(|| words.next())??;
        version.starts_with('v').then(|| version.to_owned())
    };
    go_mod.lines().find_map(version)
}

fn inputs(directory: &Path, flags: &str) -> Result<Inputs, GoToolsError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| GoToolsError::ReadModule { path, source }
    };
    let listed = fs::read_dir(directory).map_err(failed(directory))?;
    let mut files: Vec<_> = listed.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort();
    let mut parts = vec![flags.as_bytes().to_vec()];
    for file in files {
        parts.push(fs::read(&file).map_err(failed(&file))?);
    }
    Ok(Inputs::of(parts.iter().map(Vec::as_slice)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_module_requires_what_names_its_version() {
        for module in GoModule::ALL {
            let version = version_of(module, &module.directory()).unwrap();
            assert!(version.starts_with('v'), "{module:?}: {version}");
        }
    }

    #[test]
    fn a_version_is_found_in_a_block_and_in_a_line() {
        let block = "require (\n\ta.b/c v1.2.3 // indirect\n\ta.b/c/d v2.0.0\n)\nreplace a.b/e => a.b/e v9\n";
        assert_eq!(find_version(block, "a.b/c/d").unwrap(), "v2.0.0");
        assert_eq!(find_version("require x.y/z v0.1.0\n", "x.y/z").unwrap(), "v0.1.0");
        assert_eq!(find_version(block, "a.b/e"), None);
    }

    #[test]
    fn kubernetes_is_told_its_version() {
        let flags = GoModule::Kubernetes.linker_flags("v1.36.3");
        assert!(flags.contains("version.gitVersion=v1.36.3"));
        assert!(flags.ends_with("version.gitMinor=36"));
        assert_eq!(GoModule::Helm.linker_flags("v4.0.0"), "-s -w");
    }
}
