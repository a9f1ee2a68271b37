//! Packs Debian's CRIU so that it runs on a node that has neither it nor its libraries.
//!
//! Owns the place where it runs, [`HOME`]: loader and library path are written into the program, so it cannot run from
//! anywhere else. Packed once for each Debian tree.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::cache::{Cache, CacheError, Inputs};
use crate::command::{self, CommandError};
use crate::image::libraries;
use crate::tree::{self, Tree};

/// Where it runs on a node.
pub const HOME: &str = "/opt/tideover/criu";

const PROGRAM: &str = "/usr/sbin/criu";
/// What the preload for CRIU needs beyond CRIU's own libraries.
const PRELOAD_LIBRARY: &str = "libgcc_s.so.1";
/// Changes when the packing does.
const RECIPE: &str = include_str!("criu.rs");

/// Why it was not packed.
#[derive(Debug, thiserror::Error)]
pub enum CriuError {
    /// Its libraries could not be listed.
    #[error("list the libraries of CRIU")]
    Libraries(#[source] CommandError),
    /// A file could not be copied.
    #[error("copy {path} for CRIU")]
    Copy {
        /// The file of the tree.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The program has no loader among its libraries.
    #[error("find the loader of CRIU among its libraries")]
    NoLoader,
    /// The program could not be changed.
    #[error("set the loader and the library path of CRIU")]
    Patch(#[source] CommandError),
    /// The result could not be kept.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// A directory with `criu` and `lib/`, to be put at [`HOME`].
///
/// # Errors
/// Names the step.
pub fn ensure(cache: &Cache, tree: &Tree) -> Result<PathBuf, CriuError> {
    let entry = cache.entry("criu", Inputs::of([tree.inputs.as_str().as_bytes(), RECIPE.as_bytes()]));
    if !entry.is_current() {
        let partial = cache.partial("criu")?;
        pack(&tree.path, &partial)?;
        entry.install(&partial)?;
    }
    Ok(entry.path().to_owned())
}

fn pack(tree: &Path, target: &Path) -> Result<(), CriuError> {
    let directory = target.join("lib");
    fs::create_dir_all(&directory).map_err(|source| CriuError::Copy { path: directory.clone(), source })?;
    let mut libraries = libraries::of_program(tree, PROGRAM).map_err(CriuError::Libraries)?;
    // Beside the C library, wherever the tree's architecture keeps that.
    let beside = libraries.iter().find(|path| path.ends_with("libc.so.6")).and_then(|path| path.parent());
    libraries.extend(beside.map(|directory| directory.join(PRELOAD_LIBRARY)));
    for library in &libraries {
        let name = library.file_name().unwrap_or_default();
        copy(&tree::resolve(tree, library), &directory.join(name))?;
    }
    let program = target.join("criu");
    copy(&tree::resolve(tree, Path::new(PROGRAM)), &program)?;
    let loader = libraries.iter().filter_map(|path| path.file_name()).find(|name| is_loader(&name.to_string_lossy()));
    let lib = Path::new(HOME).join("lib");
    let loader = lib.join(loader.ok_or(CriuError::NoLoader)?);
    // An rpath of the old kind, because only that one also holds for the libraries of the libraries.
    let mut patch = command::program("patchelf", ["--force-rpath", "--set-rpath"]);
    patch.arg(&lib).arg("--set-interpreter").arg(&loader).arg(&program);
    command::run(&mut patch).map(drop).map_err(CriuError::Patch)
}

fn is_loader(name: &str) -> bool {
    name.starts_with("ld-linux")
}

fn copy(from: &Path, to: &Path) -> Result<(), CriuError> {
    fs::copy(from, to).map(drop).map_err(|source| CriuError::Copy { path: from.to_owned(), source })
}
