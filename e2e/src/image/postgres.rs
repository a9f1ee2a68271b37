//! The image of a PostgreSQL with its client: the server of the Debian tree, and the probe that holds its sessions.
//!
//! Owns what is in it, and how the two are started. The probe is the container's first process: when it finds anything wrong, the
//! container ends.

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::image::build::{BuildError, ImageBuilder};
use crate::image::catalogue::{CatalogueError, with_program};
use crate::tree;

/// PostgreSQL of Debian, run as user 999, and the probe.
pub const POSTGRES: &str = "docker.io/lab/postgres:1";

/// The server's user and group; not root, which it refuses.
const USER: u64 = 999;

const PROGRAMS: &str = "/usr/lib/postgresql/18/bin";
/// What the server loads by itself.
const MODULES: [&str; 2] = ["/usr/lib/postgresql/18/lib/plpgsql.so", "/usr/lib/postgresql/18/lib/dict_snowball.so"];
/// What a new database is made from.
const SHARED: &str = "/usr/share/postgresql/18";
/// What of that only people read, or only what is not installed.
const UNUSED: [&str; 2] = ["man", "contrib"];

const START: &str = include_str!("../../images/postgres.sh");

/// The image, with `probe` in it.
///
/// # Errors
/// When a file of the tree can't be read.
pub fn image(tree: &Path, probe: &Path) -> Result<ImageBuilder, CatalogueError> {
    let mut image = ImageBuilder::new(POSTGRES)
        .file("/etc/passwd", 0o644, format!("root:x:0:0::/root:/\npostgres:x:{USER}:{USER}::/data:/\n"))
        .file("/etc/group", 0o644, format!("root:x:0:\npostgres:x:{USER}:\n"))
        .file("/start", 0o755, START)
        .directory("/data", 0o755, USER)
        .directory("/tmp", 0o1777, 0)
        .copy("/probe", probe)?
        // initdb starts the server by a shell.
        .copy("/bin/busybox", &tree::resolve(tree, Path::new("/usr/bin/busybox")))?
        .link("/bin/sh", "busybox")
        .user(&format!("{USER}:{USER}"))
        .entrypoint(&["/start"]);
    for program in ["postgres", "initdb"] {
        image = with_program(image, tree, POSTGRES, &format!("{PROGRAMS}/{program}"))?;
    }
    for module in MODULES {
        image = with_program(image, tree, POSTGRES, module)?;
    }
    for path in files(tree, Path::new(SHARED))? {
        image = image.copy(&path, &tree::resolve(tree, &path))?;
    }
    Ok(image)
}

/// The files below `directory`, which is a path inside of `tree`, as such paths.
fn files(tree: &Path, directory: &Path) -> Result<Vec<PathBuf>, BuildError> {
    let on_host = tree::resolve(tree, directory);
    let failed = |source: io::Error| BuildError::Read { path: on_host.clone(), source };
    let mut files = Vec::new();
    for entry in fs::read_dir(&on_host).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = directory.join(entry.file_name());
        if !entry.file_type().map_err(failed)?.is_dir() {
            files.push(path);
        } else if !UNUSED.iter().any(|unused| entry.file_name() == *unused) {
            files.extend(self::files(tree, &path)?);
        }
    }
    Ok(files)
}
