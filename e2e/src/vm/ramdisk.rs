//! The initial files of the machine: the programs that the checks start, with the libraries of the Debian tree.
//!
//! Owns the list of them. Not cached: it holds what was just built, and copying the rest takes no second.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::command::{self, CommandError};
use crate::image::{criu, libraries};
use crate::tree;
use crate::vm::cpio::Archive;
use crate::vm::programs::Programs;

/// What the checks and the tests of the crates start.
const PROGRAMS: [&str; 23] = [
    "/usr/bin/cat",
    "/usr/bin/cp",
    "/usr/bin/cut",
    "/usr/bin/dash",
    "/usr/bin/dd",
    "/usr/bin/id",
    "/usr/bin/kill",
    "/usr/bin/mount",
    "/usr/bin/mv",
    "/usr/bin/nsenter",
    "/usr/bin/rm",
    "/usr/bin/script",
    "/usr/bin/sed",
    "/usr/bin/setpriv",
    "/usr/bin/setsid",
    "/usr/bin/sleep",
    "/usr/bin/tail",
    "/usr/bin/touch",
    "/usr/bin/true",
    "/usr/bin/umount",
    "/usr/bin/unshare",
    "/usr/bin/wc",
    "/usr/sbin/runc",
];

/// What test programs need beside the C library.
const BESIDE: [&str; 2] = ["libgcc_s.so.1", "libm.so.6"];

/// Where Tideover is on a node.
const NODE: &str = "/opt/tideover";

/// Why it could not be packed.
#[derive(Debug, thiserror::Error)]
pub enum RamdiskError {
    /// The libraries of a program could not be listed.
    #[error("list the libraries of {program}")]
    Libraries {
        /// The program.
        program: &'static str,
        /// With ldd's message.
        #[source]
        source: CommandError,
    },
    /// A test program could not be made small.
    #[error("strip {path}")]
    Strip {
        /// The program.
        path: PathBuf,
        /// With strip's message.
        #[source]
        source: CommandError,
    },
    /// A file could not be read.
    #[error("read {path} for the virtual machine")]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The archive could not be written.
    #[error("write {path}")]
    Write {
        /// The archive.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
}

/// Writes the archive to `target`, with what belongs to Debian from `tree`, and the CRIU in the directory `packed` at its place on a
/// node.
///
/// # Errors
/// Names the file.
pub fn write(target: &Path, tree: &Path, packed: &Path, programs: &Programs) -> Result<(), RamdiskError> {
    let mut archive = skeleton();
    let mut from_tree: Vec<PathBuf> = PROGRAMS.iter().map(PathBuf::from).collect();
    for program in PROGRAMS {
        let found = libraries::of_program(tree, program);
        from_tree.extend(found.map_err(|source| RamdiskError::Libraries { program, source })?);
    }
    // Wherever the tree's architecture keeps the C library.
    let beside = from_tree.iter().find(|path| path.ends_with("libc.so.6")).and_then(|path| path.parent());
    if let Some(directory) = beside.map(Path::to_owned) {
        from_tree.extend(BESIDE.map(|name| directory.join(name)));
    }
    for path in from_tree {
        archive.file(in_usr(&path), 0o755, read(&tree::resolve(tree, &path))?);
    }
    archive.link("/usr/bin/sh", "dash");
    archive.file("/init", 0o755, read(&programs.guest)?);
    archive.file("/usr/bin/tideover-init", 0o755, read(&programs.init)?);
    // The tests of init know the place where the compiler puts the program; there they find the one that is shipped.
    archive.link(&programs.init_as_built, "/usr/bin/tideover-init");
    for test in &programs.tests {
        archive.file(Path::new("/tests").join(&test.name), 0o755, stripped(&test.path)?);
    }
    for (path, place) in &programs.of_a_node {
        archive.file(Path::new(NODE).join(place), 0o755, stripped(path)?);
    }
    for directory in [packed.to_owned(), packed.join("lib")] {
        let listed = |source| RamdiskError::Read { path: directory.clone(), source };
        for entry in fs::read_dir(&directory).map_err(listed)? {
            let path = entry.map_err(listed)?.path();
            if let (true, Ok(inside)) = (path.is_file(), path.strip_prefix(packed)) {
                archive.file(Path::new(criu::HOME).join(inside), 0o755, read(&path)?);
            }
        }
    }
    let failed = |source| RamdiskError::Write { path: target.to_owned(), source };
    let mut file = BufWriter::new(fs::File::create(target).map_err(failed)?);
    archive.write(&mut file).and_then(|()| file.flush()).map_err(failed)
}

fn skeleton() -> Archive {
    let mut archive = Archive::default();
    for link in ["bin", "lib", "lib64", "sbin"] {
        archive.link(link, &format!("usr/{link}"));
    }
    for directory in ["dev", "proc", "run", "sys"] {
        archive.directory(directory, 0o755);
    }
    archive.directory("tmp", 0o1777);
    archive.file("/etc/passwd", 0o644, *b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n");
    archive.file("/etc/group", 0o644, *b"root:x:0:\nnogroup:x:65534:\n");
    archive
}

/// Where a file of the tree really is: `/bin` and the like are links there and here.
fn in_usr(path: &Path) -> PathBuf {
    let linked = ["/bin", "/lib", "/lib64", "/sbin"].iter().any(|link| path.starts_with(link));
    if linked { Path::new("/usr").join(path.strip_prefix("/").unwrap_or(path)) } else { path.to_owned() }
}

/// A test program without what only a debugger reads, which is most of it.
fn stripped(path: &Path) -> Result<Vec<u8>, RamdiskError> {
    let target =
        tempfile::NamedTempFile::new().map_err(|source| RamdiskError::Write { path: path.to_owned(), source })?;
    command::run(command::program("strip", ["--strip-debug", "-o"]).arg(target.path()).arg(path))
        .map_err(|source| RamdiskError::Strip { path: path.to_owned(), source })?;
    read(target.path())
}

fn read(path: &Path) -> Result<Vec<u8>, RamdiskError> {
    fs::read(path).map_err(|source| RamdiskError::Read { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_behind_the_links_of_a_merged_tree_are_put_where_they_are() {
        assert_eq!(in_usr(Path::new("/lib64/ld-linux-x86-64.so.2")), Path::new("/usr/lib64/ld-linux-x86-64.so.2"));
        assert_eq!(in_usr(Path::new("/usr/bin/cat")), Path::new("/usr/bin/cat"));
        assert_eq!(in_usr(Path::new("/library")), Path::new("/library"));
    }
}
