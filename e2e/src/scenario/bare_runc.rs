//! The anchor of the benchmarks: the same program under bare runc, moved by `runc checkpoint` and `runc restore`.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::fs;

use crate::lab::Node;

const DIRECTORY: &str = "/var/lib/tideover-bench";
const ID: &str = "bench";
const IMAGE: &str = "docker.io/lab/probe:1";

/// A probe under bare runc on one node; removed when dropped.
#[derive(Debug)]
pub struct BareRunc {
    node: Node,
}

impl BareRunc {
    /// Starts the probe with `args` on `node`, as root, with the node's own network.
    ///
    /// # Errors
    /// When a step fails.
    pub fn start(node: Node, args: &[String]) -> Result<Self> {
        let bare = Self { node };
        bare.remove()?;
        bare.shell(&format!(
            "mkdir -p {DIRECTORY}/rootfs && ctr -n k8s.io images mount --rw {IMAGE} {DIRECTORY}/rootfs && cd {DIRECTORY} && runc spec"
        ))?;
        let path = bare.node.path(format!("{DIRECTORY}/config.json"))?;
        let mut spec: Value = serde_json::from_slice(&fs::read(&path).context("read what `runc spec` wrote")?)?;
        spec["process"]["terminal"] = json!(false);
        let line: Vec<&str> = std::iter::once("/probe").chain(args.iter().map(String::as_str)).collect();
        spec["process"]["args"] = json!(line);
        spec["root"]["readonly"] = json!(false);
        if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
            namespaces.retain(|namespace| namespace["type"] != "network");
        }
        fs::write(&path, serde_json::to_vec(&spec)?).context("write the bundle's configuration")?;
        bare.shell(&format!("mkdir -p rootfs/tmp && runc run --detach --bundle . {ID} </dev/null >/dev/null 2>&1"))?;
        Ok(bare)
    }

    /// Has it stand still.
    ///
    /// # Errors
    /// When runc can't.
    pub fn pause(&self) -> Result<()> {
        self.shell(&format!("runc pause {ID}"))
    }

    /// Has it run on.
    ///
    /// # Errors
    /// When runc can't.
    pub fn resume(&self) -> Result<()> {
        self.shell(&format!("runc resume {ID}"))
    }

    /// One `runc checkpoint` and `runc restore`, on the node's disk. The images are removed once it runs again: the kernel would
    /// write them out beside what is measured next.
    ///
    /// # Errors
    /// When one fails.
    pub fn checkpoint_and_restore(&self) -> Result<()> {
        self.shell(&format!(
            "runc checkpoint --image-path images --work-path work {ID} \
             && runc restore --detach --bundle . --image-path images --work-path work {ID} </dev/null >/dev/null 2>&1 \
             && rm -rf images work"
        ))
    }

    fn remove(&self) -> Result<()> {
        self.node.exec([
            "/bin/sh",
            "-ec",
            &format!(
                "runc delete --force {ID} 2>/dev/null || true; \
                 if mountpoint -q {DIRECTORY}/rootfs; then ctr -n k8s.io images unmount --rm {DIRECTORY}/rootfs; fi; \
                 rm -rf {DIRECTORY}"
            ),
        ])?;
        Ok(())
    }

    fn shell(&self, script: &str) -> Result<()> {
        let script = format!("mkdir -p {DIRECTORY}; cd {DIRECTORY}; {script}");
        self.node.exec(["/bin/sh", "-ec", &script])?;
        Ok(())
    }
}

impl Drop for BareRunc {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("a container of the benchmark is left: {error:#}");
        }
    }
}
