//! The lab's own images: pause, CoreDNS, redis and busybox.
//!
//! Owns what is in them. All come from the Debian tree, from the Go modules and from `images/`; nothing is pulled.

use std::path::{Path, PathBuf};

use crate::cache::{Cache, CacheError, Inputs};
use crate::command::{self, CommandError};
use crate::go_tools::Programs;
use crate::image::build::{BuildError, Image, ImageBuilder};
use crate::image::libraries;
use crate::image::list::{self, ListError};
use crate::tree::{self, Tree};

/// Every pod's first container.
pub const PAUSE: &str = "docker.io/lab/pause:1";
/// The cluster's name server.
pub const COREDNS: &str = "docker.io/lab/coredns:1";
/// redis-server and redis-cli of Debian, run as user 999.
pub const REDIS: &str = "docker.io/lab/redis:1";
/// busybox with all its applets.
pub const BUSYBOX: &str = "docker.io/lab/busybox:1";

/// redis' user and group; not root, as any decent image's.
pub const REDIS_USER: u64 = 999;

const PAUSE_SOURCE: &str = include_str!("../../images/pause.c");
/// What the images are made from also includes how they are made.
const RECIPES: [&str; 4] =
    [PAUSE_SOURCE, include_str!("catalogue.rs"), include_str!("build.rs"), include_str!("libraries.rs")];

/// Why the images are not there.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// A program that helps to make one failed.
    #[error("prepare the image {reference}")]
    Prepare {
        /// The image.
        reference: &'static str,
        /// With the program's message.
        #[source]
        source: CommandError,
    },
    /// An image could not be written.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The list of images could not be read or written.
    #[error(transparent)]
    List(#[from] ListError),
    /// The result could not be kept.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// Builds the images unless the cache has them.
///
/// # Errors
/// Names the image and the step.
pub fn ensure(cache: &Cache, tree: &Tree, coredns: &Programs) -> Result<Vec<Image>, CatalogueError> {
    let made_from = [tree.inputs.as_str(), coredns.inputs.as_str()];
    let inputs = Inputs::of(made_from.iter().chain(&RECIPES).map(|part| part.as_bytes()));
    let entry = cache.entry("images", inputs);
    if !entry.is_current() {
        let partial = cache.partial("images")?;
        let images = [
            pause(&partial)?.write(&partial.join("pause.tar"))?,
            ImageBuilder::new(COREDNS)
                .copy("/coredns", &coredns.directory.join("coredns"))?
                .entrypoint(&["/coredns"])
                .user("65532:65532")
                .write(&partial.join("coredns.tar"))?,
            redis(&tree.path)?.write(&partial.join("redis.tar"))?,
            busybox(&tree.path)?.write(&partial.join("busybox.tar"))?,
        ];
        list::store(&partial, &images)?;
        entry.install(&partial)?;
    }
    Ok(list::load(entry.path())?.unwrap_or_default())
}

fn pause(work: &Path) -> Result<ImageBuilder, CatalogueError> {
    let (source, program) = (work.join("pause.c"), work.join("pause"));
    std::fs::write(&source, PAUSE_SOURCE).map_err(|error| BuildError::Write { path: source.clone(), source: error })?;
    let mut compile = command::program("cc", ["-static", "-Os", "-Wall", "-Werror", "-s", "-o"]);
    command::run(compile.arg(&program).arg(&source))
        .map_err(|source| CatalogueError::Prepare { reference: PAUSE, source })?;
    Ok(ImageBuilder::new(PAUSE).copy("/pause", &program)?.entrypoint(&["/pause"]).user("65535:65535"))
}

fn redis(tree: &Path) -> Result<ImageBuilder, CatalogueError> {
    let mut image = ImageBuilder::new(REDIS)
        .file("/etc/passwd", 0o644, format!("root:x:0:0::/root:/\nredis:x:{REDIS_USER}:{REDIS_USER}::/data:/\n"))
        .file("/etc/group", 0o644, format!("root:x:0:\nredis:x:{REDIS_USER}:\n"))
        .directory("/data", 0o755, REDIS_USER)
        .directory("/tmp", 0o1777, 0)
        .working_directory("/data")
        .user(&format!("{REDIS_USER}:{REDIS_USER}"))
        .command(&["/usr/bin/redis-server", "--bind", "0.0.0.0", "--protected-mode", "no"]);
    for program in ["/usr/bin/redis-server", "/usr/bin/redis-cli"] {
        image = with_program(image, tree, REDIS, program)?;
    }
    Ok(image)
}

/// `image` with `program` of the tree and the libraries it needs, each at its own place.
///
/// # Errors
/// When the tree's ldd fails, or a file can't be read.
pub(super) fn with_program(
    mut image: ImageBuilder,
    tree: &Path,
    reference: &'static str,
    program: &str,
) -> Result<ImageBuilder, CatalogueError> {
    let libraries =
        libraries::of_program(tree, program).map_err(|source| CatalogueError::Prepare { reference, source })?;
    for path in libraries.iter().map(PathBuf::as_path).chain([Path::new(program)]) {
        image = image.copy(path, &tree::resolve(tree, path))?;
    }
    Ok(image)
}

fn busybox(tree: &Path) -> Result<ImageBuilder, CatalogueError> {
    let program = "/usr/bin/busybox";
    let listing = command::read(command::program("chroot", [tree]).args([program, "--list"]))
        .map_err(|source| CatalogueError::Prepare { reference: BUSYBOX, source })?;
    let mut image = ImageBuilder::new(BUSYBOX)
        .file("/etc/passwd", 0o644, "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")
        .file("/etc/group", 0o644, "root:x:0:\nnogroup:x:65534:\n")
        .directory("/root", 0o700, 0)
        .directory("/tmp", 0o1777, 0)
        .copy("/bin/busybox", &tree::resolve(tree, Path::new(program)))?
        .command(&["/bin/sh"]);
    for applet in listing.lines().filter(|applet| *applet != "busybox") {
        image = image.link(Path::new("/bin").join(applet), "busybox");
    }
    Ok(image)
}
