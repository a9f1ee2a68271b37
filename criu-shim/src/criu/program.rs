//! How the real CRIU is executed.

use super::capability;
use crate::local::INSTALL_ROOT;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// The real CRIU on a node: its program, and the loader and libraries that came with it.
///
/// A bare node has neither CRIU nor its libraries, and its C library may be older or of another kind. So what Tideover
/// brings is started by the loader that it brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CriuProgram {
    criu: PathBuf,
    loader: Option<Loader>,
    preloads: Vec<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Loader {
    program: PathBuf,
    libraries: PathBuf,
}

impl CriuProgram {
    /// CRIU as the agent installed it. The preload is used where the capability is missing.
    pub fn installed() -> Self {
        Self::below(Path::new(INSTALL_ROOT)).with_preload(capability::missing_sys_resource())
    }

    /// CRIU at any other place, with the system's libraries and without preload.
    pub fn at(criu: &Path) -> Self {
        Self { criu: criu.to_owned(), loader: None, preloads: Vec::new() }
    }

    /// With the installed preload that can leave shared memory out of a dump.
    #[must_use]
    pub fn withholding(self) -> Self {
        self.preloading(&Path::new(INSTALL_ROOT).join("lib/libdump_preload.so"))
    }

    /// With the installed preload that restores into the IPC namespace which CRIU is in.
    #[must_use]
    pub fn keeping_ipc(self) -> Self {
        self.preloading_first(&Path::new(INSTALL_ROOT).join("lib/libipc_preload.so"))
    }

    /// With this preload before all others: one that hands on what it stands in front of to whoever is behind it.
    #[must_use]
    pub fn preloading_first(mut self, library: &Path) -> Self {
        self.preloads.insert(0, library.to_owned());
        self
    }

    /// CRIU in `criu/criu` below `root`, started by the loader in `criu/lib` where there is one, and without preload.
    pub fn below(root: &Path) -> Self {
        let libraries = root.join("criu/lib");
        let loader = ["ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"]
            .map(|name| libraries.join(name))
            .into_iter()
            .find(|program| program.exists())
            .map(|program| Loader { program, libraries: libraries.clone() });
        Self { criu: root.join("criu/criu"), loader, preloads: Vec::new() }
    }

    /// With the preload, if it is to be, that answers what the kernel refuses without CAP_SYS_RESOURCE.
    #[must_use]
    pub fn with_preload(self, preload: bool) -> Self {
        let library = Path::new(INSTALL_ROOT).join("lib/librlimit_preload.so");
        if preload { self.preloading(&library) } else { self }
    }

    /// With this preload too.
    #[must_use]
    pub fn preloading(mut self, library: &Path) -> Self {
        self.preloads.push(library.to_owned());
        self
    }

    /// The program to execute and its arguments up to and without CRIU's own.
    pub fn command(&self) -> (PathBuf, Vec<OsString>) {
        let Some(loader) = &self.loader else { return (self.criu.clone(), Vec::new()) };
        let mut arguments = vec!["--library-path".into(), loader.libraries.clone().into_os_string()];
        if !self.preloads.is_empty() {
            // Not by environment: `tar`, which CRIU executes, belongs to the node and its C library.
            arguments.extend(["--preload".into(), self.preloads()]);
        }
        arguments.push(self.criu.clone().into_os_string());
        (loader.program.clone(), arguments)
    }

    /// Variables that CRIU needs in its environment.
    pub fn environment(&self) -> Vec<(&'static str, OsString)> {
        if self.loader.is_none() && !self.preloads.is_empty() {
            vec![("LD_PRELOAD", self.preloads())]
        } else {
            Vec::new()
        }
    }

    /// As ld.so(8) takes a list.
    fn preloads(&self) -> OsString {
        let preloads: Vec<_> = self.preloads.iter().map(|preload| preload.as_os_str()).collect();
        preloads.join(OsStr::new(":"))
    }

    /// The CRIU binary itself, for messages.
    pub fn path(&self) -> &Path {
        &self.criu
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_brought_loader_starts_what_was_brought() {
        let root = tempfile::tempdir().unwrap();
        let libraries = root.path().join("criu/lib");
        std::fs::create_dir_all(&libraries).unwrap();
        std::fs::write(libraries.join("ld-linux-x86-64.so.2"), "").unwrap();
        let program = CriuProgram::below(root.path()).with_preload(true);
        let (executable, arguments) = program.command();
        assert_eq!(executable, libraries.join("ld-linux-x86-64.so.2"));
        assert_eq!(arguments[2], "--preload");
        assert_eq!(arguments[4], root.path().join("criu/criu"));
        assert!(program.environment().is_empty());
    }

    #[test]
    fn the_systems_own_criu_gets_the_preload_by_environment() {
        let program = CriuProgram::at(Path::new("/usr/sbin/criu")).preloading(Path::new("/p.so"));
        assert_eq!(program.command(), ("/usr/sbin/criu".into(), vec![]));
        assert_eq!(program.environment(), [("LD_PRELOAD", "/p.so".into())]);
        let program = program.preloading(Path::new("/q.so"));
        assert_eq!(program.environment(), [("LD_PRELOAD", "/p.so:/q.so".into())]);
        assert_eq!(
            program.preloading_first(Path::new("/r.so")).environment(),
            [("LD_PRELOAD", "/r.so:/p.so:/q.so".into())]
        );
    }
}
