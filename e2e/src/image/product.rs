//! Tideover's own images, built from the work tree without a container engine.
//!
//! Owns what is in them; `containers/*.Containerfile` make equal ones for people with an engine. The agent's image
//! carries, under [`PAYLOAD`], what its installer puts on the node under `/opt/tideover`.

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::cache::{Cache, CacheError};
use crate::command::CommandError;
use crate::compile;
use crate::image::build::{BuildError, Image, ImageBuilder};
use crate::image::catalogue::CatalogueError;
use crate::image::criu::{self, CriuError};
use crate::image::list::{self, ListError};
use crate::image::postgres;
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
    /// A program of the Debian tree could not be packed.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
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
        postgres::image(&tree.path, &programs.programs.join("probe"))?.write(&directory.join("postgres.tar"))?,
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

fn images_directory() -> PathBuf {
    compile::target_directory().join("images")
}

fn compile(step: &mut Step) -> Result<Programs, ProductError> {
    let directory = images_directory();
    fs::create_dir_all(&directory).map_err(|source| ProductError::Directory { path: directory.clone(), source })?;
    let packages = ["tideover-operator", "criu-shim", "tideover-init", "tideover-probe"];
    let log = directory.join("programs.log");
    let programs = compile::static_programs(step, &log, &packages).map_err(ProductError::Compile)?;
    let log = directory.join("preload.log");
    let preloads = compile::libraries(step, &log, &["rlimit-preload", "dump-preload", "ipc-preload"])
        .map_err(ProductError::Compile)?;
    Ok(Programs { programs, preloads })
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
        .copy(inside("lib/libipc_preload.so"), &programs.preloads.join("libipc_preload.so"))?
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
