//! Starts of one container with init and without, as containerd asks for them: `create` and `start` of the runtime shim with
//! which a protected pod runs, on one node. From the first instruction of what executes the shim to the container's own.
//!
//! Both kinds go through the shim and have the same bundle but for one annotation, the rules for restarts, so that what is
//! compared is all that supervision adds: the mounts that the shim makes, the changed specification, and init itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::environment;
use super::pods::{CONTAINER, SUPERVISION};
use super::stamps::Stamps;
use crate::lab::Node;
use crate::scenario::until;

const DIRECTORY: &str = "/var/lib/tideover-bench-start";
const ID: &str = "bench-start";
const IMAGE: &str = crate::image::product::PROBE;
/// What containerd executes for the runtime class `tideover`.
const SHIM: &str = "/opt/tideover/bin/criu-shim";
const LIMIT: Duration = Duration::from_secs(30);

/// How long starts took, milliseconds: one of each kind after the other.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    /// With init.
    pub supervised: Vec<f64>,
    /// Without.
    pub plain: Vec<f64>,
}

/// Starts `pairs` containers of each kind on `node`; `rules` are a supervised pod's.
///
/// # Errors
/// When a step fails.
pub fn pairs(node: Node, rules: &str, pairs: usize) -> Result<Seen> {
    let bench = Bench::prepare(node, rules)?;
    let mut seen = Seen::default();
    // The first of each kind finds nothing in the page cache.
    bench.start(Kind::Supervised)?;
    bench.start(Kind::Plain)?;
    for number in 0..pairs {
        // Neither is always the one that comes second.
        let order = if number % 2 == 0 { [Kind::Supervised, Kind::Plain] } else { [Kind::Plain, Kind::Supervised] };
        for kind in order {
            let took = bench.start(kind)?;
            match kind {
                Kind::Supervised => seen.supervised.push(took),
                Kind::Plain => seen.plain.push(took),
            }
        }
    }
    Ok(seen)
}

/// Which of the two a container is.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Supervised,
    Plain,
}

impl Kind {
    /// Its specification, beside the bundle's.
    fn file(self) -> &'static str {
        match self {
            Self::Supervised => "supervised.json",
            Self::Plain => "plain.json",
        }
    }
}

/// A bundle on a node; removed when dropped.
struct Bench {
    node: Node,
    stamps: PathBuf,
}

impl Bench {
    fn prepare(node: Node, rules: &str) -> Result<Self> {
        let stamps = node.path(format!("{DIRECTORY}/stamps/stamps"))?;
        let bench = Self { node, stamps };
        bench.remove()?;
        bench.shell(&format!(
            "mkdir -p {DIRECTORY}/rootfs {DIRECTORY}/stamps && mount -t tmpfs stamps {DIRECTORY}/stamps \
             && ctr -n k8s.io images mount --rw {IMAGE} {DIRECTORY}/rootfs && cd {DIRECTORY} && runc spec"
        ))?;
        let path = |name: &str| bench.node.path(format!("{DIRECTORY}/{name}"));
        let template = fs::read(path("config.json")?).context("read what `runc spec` wrote")?;
        let template: Value = serde_json::from_slice(&template).context("understand what `runc spec` wrote")?;
        for (kind, rules) in [(Kind::Supervised, Some(rules)), (Kind::Plain, None)] {
            let spec = spec(template.clone(), rules);
            fs::write(path(kind.file())?, serde_json::to_vec(&spec)?).context("write a specification")?;
        }
        Ok(bench)
    }

    /// Starts one container, waits for its first instruction, and removes it. How long it took, milliseconds.
    fn start(&self, kind: Kind) -> Result<f64> {
        let begin = environment(&Path::new(DIRECTORY).join("stamps/stamps"), 0);
        let begin = begin.map(|(name, value)| format!("{name}={value}")).join(" ");
        // The shim changes the specification, as it does containerd's.
        self.shell(&format!(
            "cd {DIRECTORY}; rm -f stamps/stamps; cp {} config.json; \
             {begin} rootfs/crasher --begin {SHIM} create --bundle . --pid-file pid {ID} </dev/null >log 2>&1 \
             && {SHIM} start {ID} || {{ cat log >&2; exit 1; }}",
            kind.file()
        ))?;
        let stamps = until("the container's first instruction", LIMIT, || {
            Ok(Some(Stamps::read(&self.stamps)?).filter(|stamps| !stamps.starts.is_empty()))
        })?;
        self.shell(&format!("{SHIM} delete --force {ID}"))?;
        stamps.start_up()
    }

    fn remove(&self) -> Result<()> {
        self.shell(&format!(
            "if runc state {ID} >/dev/null 2>&1; then {SHIM} delete --force {ID}; fi; \
             if mountpoint -q {DIRECTORY}/stamps; then umount {DIRECTORY}/stamps; fi; \
             if mountpoint -q {DIRECTORY}/rootfs; then ctr -n k8s.io images unmount --rm {DIRECTORY}/rootfs; fi; \
             rm -rf {DIRECTORY}"
        ))
    }

    fn shell(&self, script: &str) -> Result<()> {
        self.node.exec(["/bin/sh", "-ec", script])?;
        Ok(())
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("a container of the benchmark is left: {error:#}");
        }
    }
}

/// The specification of the crasher that never crashes, as of a pod's container, with these `rules` for restarts or none.
fn spec(mut spec: Value, rules: Option<&str>) -> Value {
    let variables = environment(Path::new("/stamps/stamps"), 0);
    spec["process"]["terminal"] = json!(false);
    spec["process"]["args"] = json!(["/crasher"]);
    spec["process"]["env"] = json!(variables.map(|(name, value)| format!("{name}={value}")));
    spec["root"]["readonly"] = json!(false);
    if let Some(mounts) = spec["mounts"].as_array_mut() {
        let source = Path::new(DIRECTORY).join("stamps");
        mounts.push(json!({"destination": "/stamps", "type": "bind", "source": source, "options": ["rbind", "rw"]}));
    }
    // As containerd tells the shim whose a container is. No Migration knows this pod.
    spec["annotations"] = json!({
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.container-name": CONTAINER,
        "io.kubernetes.cri.sandbox-namespace": "default",
        "io.kubernetes.cri.sandbox-name": ID,
        "io.kubernetes.cri.sandbox-uid": ID,
    });
    if let Some(rules) = rules {
        spec["annotations"][SUPERVISION] = json!(rules);
    }
    spec
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_kinds_differ_by_the_rules_alone() {
        let template = json!({"process": {"args": ["sh"]}, "root": {"path": "rootfs"}, "mounts": []});
        let (mut supervised, plain) = (spec(template.clone(), Some("rules")), spec(template, None));
        assert_eq!(supervised["annotations"][SUPERVISION], "rules");
        assert_ne!(supervised, plain);
        supervised["annotations"].as_object_mut().unwrap().remove(SUPERVISION);
        assert_eq!(supervised, plain);
        assert_eq!((plain["mounts"].as_array().unwrap().len(), &plain["process"]["args"][0]), (1, &json!("/crasher")));
    }
}
