//! A lab with Tideover installed the way people install it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::kube::Kube;
use crate::image::build::Image;
use crate::image::{catalogue, product};
use crate::lab::{Lab, Node};

/// Namespace that the chart is installed in.
pub const NAMESPACE: &str = "tideover-system";
/// Environment variable that names the lab; shared with the program `lab`.
const LAB: &str = "TIDEOVER_LAB";
const DEFAULT_LAB: &str = "tideover";

/// A lab with Tideover installed.
#[derive(Debug)]
pub struct Cluster {
    lab: Lab,
    kube: Kube,
    /// What the nodes have; a later build of the work tree is not theirs.
    images: Vec<Image>,
}

impl Cluster {
    /// The cluster of this process: started, repaired, and brought up to date with the work tree at the first call.
    ///
    /// # Errors
    /// When a step fails, at every call alike.
    pub fn ready() -> Result<&'static Self> {
        static CLUSTER: OnceLock<Result<Cluster, String>> = OnceLock::new();
        CLUSTER
            .get_or_init(|| Self::install().map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(|error| anyhow!("{error}"))
    }

    fn install() -> Result<Self> {
        let name = std::env::var(LAB).unwrap_or_else(|_| DEFAULT_LAB.to_owned());
        let program = lab_program()?;
        for step in [&["up"][..], &["image", "build"], &["image", "load"]] {
            let status = Command::new(&program).args(step).env(LAB, &name).status();
            let status = status.with_context(|| format!("start {}", program.display()))?;
            ensure!(status.success(), "`lab {}` failed", step.join(" "));
        }
        let lab = Lab::open(&name)?;
        let kube = Kube::new(lab.kubectl_command([""; 0]).get_program().into(), lab.kubeconfig());
        let cluster = Self { lab, kube, images: product::built()? };
        cluster.helm_install()?;
        Ok(cluster)
    }

    /// `helm upgrade --install` of the chart in the work tree; waits until everything is Ready.
    ///
    /// # Errors
    /// When helm fails, with what it said.
    pub fn helm_install(&self) -> Result<()> {
        let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/tideover");
        // Helm installs the definitions of a chart's crds/ once and never again; in a work tree they change.
        self.kube.run(&[
            "apply",
            "--server-side",
            "--force-conflicts",
            "--filename",
            &chart.join("crds").to_string_lossy(),
        ])?;
        let mut settings = vec![format!("--set=reservation.image={}", catalogue::PAUSE)];
        for component in ["operator", "agent"] {
            let image = self.images.iter().find(|image| image.reference.contains(component));
            let image = image.with_context(|| format!("no image of the {component} was built"))?;
            // The tag names the content, so that helm rolls out what has changed and nothing else.
            let (repository, tag) = image.reference.rsplit_once(':').context("an image without a tag")?;
            settings.push(format!("--set={component}.image.repository={repository}"));
            settings.push(format!("--set-string={component}.image.tag={tag}"));
        }
        let chart = chart.to_string_lossy();
        let mut arguments =
            vec!["upgrade", "--install", "tideover", &chart, "--namespace", NAMESPACE, "--create-namespace"];
        arguments.extend(settings.iter().map(String::as_str));
        arguments.extend(["--wait", "--timeout=240s"]);
        self.helm(&arguments)
    }

    /// Runs helm against this cluster.
    ///
    /// # Errors
    /// With what it said.
    pub fn helm(&self, arguments: &[&str]) -> Result<()> {
        let output = self.lab.helm_command(arguments).output().context("start helm")?;
        if !output.status.success() {
            bail!("helm {} failed: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// kubectl with administrator's rights.
    pub fn kube(&self) -> Kube {
        self.kube.clone()
    }

    /// The lab itself.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// One of the lab's machines.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn node(&self, name: &str) -> Result<Node> {
        Ok(self.lab.node(name)?)
    }

    /// Names of the nodes.
    pub fn workers(&self) -> Vec<String> {
        self.lab.workers().iter().map(|node| node.name().to_owned()).collect()
    }

    /// This host's address on the lab's network: where pods send their ticks.
    pub fn host_address(&self) -> IpAddr {
        self.lab.topology().host_address().into()
    }
}

/// The program `lab` beside this one: tests lie one directory deeper than programs.
fn lab_program() -> Result<PathBuf> {
    let this = std::env::current_exe().context("find this program")?;
    this.ancestors().skip(1).take(2).map(|directory| directory.join("lab")).find(|path| path.is_file()).with_context(
        || format!("no program `lab` beside {}: cargo build --package tideover-e2e --bins", this.display()),
    )
}
