//! Tideover's own images, built from the work tree without a container engine.
//!
//! Owns what is in them; `containers/*.Containerfile` make equal ones for people with an engine. The agent's image
//! carries, under [`PAYLOAD`], what its installer puts on the node under `/opt/tideover`.

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::cache::{Cache, CacheError};
use crate::command::{self, CommandError};
use crate::image::build::{BuildError, Image, ImageBuilder};
use crate::image::criu::{self, CriuError};
use crate::image::list::{self, ListError};
use crate::preflight::{self, Refusal};
use crate::progress::{Progress, Step};
use crate::tree::{self, TreeError};

/// The operator's repository; the tag is made from the content.
pub const OPERATOR: &str = "docker.io/library/tideover-operator";
/// The repository of the agent with everything that a node needs.
pub const AGENT: &str = "docker.io/library/tideover-agent";
/// What the scenarios run in pods.
pub const PROBE: &str = "docker.io/lab/probe:1";
/// Where in the agent's image the files for `/opt/tideover` are.
pub const PAYLOAD: &str = "/payload";

/// As whom the operator runs, the same number as in its Containerfile and in the chart.
const OPERATOR_USER: &str = "65532:65532";

const TARGET: &str =
    if cfg!(target_arch = "aarch64") { "aarch64-unknown-linux-gnu" } else { "x86_64-unknown-linux-gnu" };

/// Why there are no images.
#[derive(Debug, thiserror::Error)]
pub enum ProductError {
    /// The host lacks something.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Nothing was built yet.
    #[error("Tideover's images are not built: run `lab image build`")]
    NotBuilt,
    /// The compiler failed.
    #[error("build Tideover")]
    Compile(#[source] CommandError),
    /// The directory of the images could not be made.
    #[error("make the directory {path}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The Debian tree could not be made.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// CRIU could not be packed.
    #[error(transparent)]
    Criu(#[from] CriuError),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// An image could not be written.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The list of the images failed.
    #[error(transparent)]
    List(#[from] ListError),
}

/// Builds the programs and writes the images below `target/images` of the work tree.
///
/// # Errors
/// Names the step.
pub fn build(progress: &Progress) -> Result<Vec<Image>, ProductError> {
    preflight::check()?;
    let programs = compiled(progress)?;

    let mut step = progress.step("CRIU for nodes");
    let cache = Cache::open()?;
    let tree = tree::ensure(&cache, |line| step.say(line))?;
    let criu = criu::ensure(&cache, &tree)?;
    step.done();

    let step = progress.step("Tideover images");
    let directory = images_directory();
    let images = [
        tagged_by_content(OPERATOR, &directory.join("tideover-operator.tar"), |name| operator(name, &programs))?,
        tagged_by_content(AGENT, &directory.join("tideover-agent.tar"), |name| agent(name, &programs, &criu))?,
        probe(&programs)?.write(&directory.join("probe.tar"))?,
    ];
    list::store(&directory, &images)?;
    step.done();
    Ok(images.into())
}

/// Builds the programs alone, and returns the directory of those that the images have: static ones.
///
/// # Errors
/// With the compiler's message.
pub fn programs(progress: &Progress) -> Result<PathBuf, ProductError> {
    Ok(compiled(progress)?.programs)
}

fn compiled(progress: &Progress) -> Result<Programs, ProductError> {
    let mut step = progress.step("Tideover programs");
    let programs = compile(&mut step)?;
    step.done();
    Ok(programs)
}

/// Writes an image whose tag names its content, so that a Deployment which names the tag is rolled out when the content
/// has changed, and only then.
fn tagged_by_content(
    repository: &str,
    archive: &Path,
    image: impl Fn(&str) -> Result<ImageBuilder, ProductError>,
) -> Result<Image, ProductError> {
    // Beside it and then renamed: another lab may be loading the archive of an earlier build.
    let partial = archive.with_extension("partial");
    let digest = image(&format!("{repository}:untagged"))?.write(&partial)?.digest;
    let tag: String = digest.trim_start_matches("sha256:").chars().take(12).collect();
    let written = image(&format!("{repository}:{tag}"))?.write(&partial)?;
    fs::rename(&partial, archive).map_err(|source| ProductError::Directory { path: archive.to_owned(), source })?;
    Ok(Image { archive: archive.to_owned(), ..written })
}

/// The images that were built last.
///
/// # Errors
/// When none were.
pub fn built() -> Result<Vec<Image>, ProductError> {
    list::load(&images_directory())?.ok_or(ProductError::NotBuilt)
}

/// Where the compiler put things.
struct Programs {
    /// Static programs.
    programs: PathBuf,
    /// Libraries that are loaded into CRIU.
    preloads: PathBuf,
}

fn workspace() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

fn target_directory() -> PathBuf {
    workspace().join("target")
}

fn images_directory() -> PathBuf {
    target_directory().join("images")
}

fn compile(step: &mut Step) -> Result<Programs, ProductError> {
    let target = target_directory();
    let directory = images_directory();
    fs::create_dir_all(&directory).map_err(|source| ProductError::Directory { path: directory.clone(), source })?;
    // Static, because they run on nodes of any distribution and in images without a single library.
    let flags = format!("target.{TARGET}.rustflags=['-C','target-feature=+crt-static']");
    let packages = ["-p", "tideover-operator", "-p", "criu-shim", "-p", "tideover-init", "-p", "tideover-probe"];
    cargo(step, &directory.join("programs.log"), ["--target", TARGET, "--config", &flags].into_iter().chain(packages))?;
    // A library that is loaded into another program cannot be static.
    cargo(step, &directory.join("preload.log"), ["-p", "rlimit-preload", "-p", "dump-preload"])?;
    Ok(Programs { programs: target.join(TARGET).join("release"), preloads: target.join("release") })
}

fn cargo<'a>(step: &mut Step, log: &Path, arguments: impl IntoIterator<Item = &'a str>) -> Result<(), ProductError> {
    let mut build = command::program("cargo", ["build", "--release", "--locked", "--target-dir"]);
    build.arg(target_directory()).args(arguments).current_dir(workspace());
    // Started by `cargo run` or `cargo test`, this process has what cargo says of *this* package. ring's build script reads
    // that, so that each way of starting the lab would compile TLS and everything above it once more.
    for (name, _) in std::env::vars_os().filter(|(name, _)| of_this_package(&name.to_string_lossy())) {
        build.env_remove(name);
    }
    command::run_logged(&mut build, log, |line| step.say(line)).map_err(ProductError::Compile)
}

/// Whether cargo sets this variable for the package that it runs or compiles, as opposed to what a person sets for cargo.
fn of_this_package(variable: &str) -> bool {
    ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"]
        .iter()
        .any(|prefix| variable.starts_with(prefix))
}

fn operator(name: &str, programs: &Programs) -> Result<ImageBuilder, ProductError> {
    Ok(ImageBuilder::new(name)
        .copy("/tideover-operator", &programs.programs.join("tideover-operator"))?
        .entrypoint(&["/tideover-operator"])
        .user(OPERATOR_USER))
}

fn agent(name: &str, programs: &Programs, criu: &Path) -> Result<ImageBuilder, ProductError> {
    let inside = |path: &str| Path::new(PAYLOAD).join(path);
    let mut image = ImageBuilder::new(name)
        .copy(inside("bin/tideover-agent"), &programs.programs.join("tideover-agent"))?
        .copy(inside("bin/criu-shim"), &programs.programs.join("criu-shim"))?
        .copy(inside("bin/criu-pages"), &programs.programs.join("criu-pages"))?
        .copy(inside("bin/tideover-init"), &programs.programs.join("tideover-init"))?
        // Under this name, because runc starts whatever `criu` is first on its search path.
        .copy(inside("relay/criu"), &programs.programs.join("criu-relay"))?
        .copy(inside("lib/librlimit_preload.so"), &programs.preloads.join("librlimit_preload.so"))?
        .copy(inside("lib/libdump_preload.so"), &programs.preloads.join("libdump_preload.so"))?
        .copy(inside("criu/criu"), &criu.join("criu"))?
        .link("/usr/bin/tideover-agent", inside("bin/tideover-agent"))
        .directory("/tmp", 0o1777, 0)
        .entrypoint(&["/usr/bin/tideover-agent"]);
    for library in listed(&criu.join("lib"))? {
        let name = library.file_name().unwrap_or_default().to_owned();
        image = image.copy(inside("criu/lib").join(name), &library)?;
    }
    Ok(image)
}

fn probe(programs: &Programs) -> Result<ImageBuilder, ProductError> {
    Ok(ImageBuilder::new(PROBE)
        .copy("/probe", &programs.programs.join("probe"))?
        .copy("/crasher", &programs.programs.join("crasher"))?
        .directory("/tmp", 0o1777, 0)
        .entrypoint(&["/probe"]))
}

fn listed(directory: &Path) -> Result<Vec<PathBuf>, ProductError> {
    let failed = |source| ProductError::Directory { path: directory.to_owned(), source };
    let entries = fs::read_dir(directory).map_err(failed)?;
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(failed)).collect()
}
