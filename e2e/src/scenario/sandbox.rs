//! A namespace of its own for one scenario.

use anyhow::{Context, Result};
use serde_json::Value;

use super::cluster::NAMESPACE;
use super::kube::Kube;
use super::turn::Turn;
use super::wait::{LIMIT, until, until_true};

/// Until the namespace itself is gone.
const WAIT: [&str; 2] = ["--wait=true", "--timeout=300s"];

/// A namespace that is removed, with everything in it, at the end of the scenario. A scenario that has the lab alone finds all nodes
/// uncordoned, and leaves them so. Unless it says that it [`passed`](Sandbox::passed), what is known of it is printed first.
#[derive(Debug)]
pub struct Sandbox {
    kube: Kube,
    namespace: String,
    passed: bool,
    turn: Turn,
}

impl Sandbox {
    /// Makes the namespace `name`, after removing what an earlier run may have left. The scenario has the lab alone.
    ///
    /// # Errors
    /// When the API server refuses.
    pub fn new(kube: Kube, name: &str) -> Result<Self> {
        Self::in_turn(kube, name, Turn::alone())
    }

    /// The same for a scenario that disturbs nothing outside of its namespace: others may go on beside it.
    ///
    /// # Errors
    /// As [`Sandbox::new`].
    pub fn beside(kube: Kube, name: &str) -> Result<Self> {
        Self::in_turn(kube, name, Turn::beside())
    }

    fn in_turn(kube: Kube, name: &str, turn: Turn) -> Result<Self> {
        let sandbox = Self { kube, namespace: format!("e2e-{name}"), passed: false, turn };
        sandbox.remove(&WAIT)?;
        sandbox.kube.run(&["create", "namespace", &sandbox.namespace])?;
        until_true("the namespace's service account", LIMIT, || {
            Ok(sandbox.get(&["serviceaccount", "default"])?.is_some())
        })?;
        Ok(sandbox)
    }

    /// The namespace's name.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// kubectl without a namespace.
    pub fn kube(&self) -> &Kube {
        &self.kube
    }

    /// kubectl in this namespace; see [`Kube::run`].
    ///
    /// # Errors
    /// When kubectl fails.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        self.kube.run(&self.with_namespace(args))
    }

    /// See [`Kube::get`].
    ///
    /// # Errors
    /// When kubectl fails.
    pub fn get(&self, args: &[&str]) -> Result<Option<Value>> {
        self.kube.get(&self.with_namespace(args))
    }

    /// `kubectl apply` in this namespace.
    ///
    /// # Errors
    /// When the API server refuses.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        self.kube.apply(&self.placed(manifests))
    }

    /// `kubectl create` in this namespace.
    ///
    /// # Errors
    /// When the API server refuses.
    pub fn create(&self, manifests: &str) -> Result<String> {
        self.kube.create(&self.placed(manifests))
    }

    /// The one pod labelled `app: <app>` that is Ready.
    ///
    /// # Errors
    /// When there is none in time.
    pub fn ready_pod(&self, app: &str) -> Result<Pod> {
        until(format!("a ready pod of {app} in {}", self.namespace), LIMIT, || {
            Ok(self.pods(app)?.into_iter().find(|pod| pod.ready))
        })
    }

    /// All pods labelled `app: <app>`.
    ///
    /// # Errors
    /// When kubectl fails.
    pub fn pods(&self, app: &str) -> Result<Vec<Pod>> {
        let list = self.get(&["pods", "--selector", &format!("app={app}")])?.unwrap_or_default();
        Ok(list["items"].as_array().map(|items| items.iter().map(Pod::from_object).collect()).unwrap_or_default())
    }

    /// The log of a pod.
    ///
    /// # Errors
    /// When kubectl fails.
    pub fn log(&self, pod: &str) -> Result<String> {
        self.run(&["logs", pod])
    }

    /// Removes what is in the namespace and waits until it is gone, so that the next thing begins with nothing beside it. Its
    /// programs get a second to end.
    ///
    /// # Errors
    /// When something is left.
    pub fn clear(&self) -> Result<()> {
        // Its pods first: a ReplicaSet that is still there makes another one for each that goes.
        self.run(&["delete", "deployments", "--all", "--cascade=foreground", WAIT[0], WAIT[1]])?;
        self.run(&["delete", "services,pods,migrations", "--all", "--now", WAIT[0], WAIT[1]])?;
        Ok(())
    }

    /// The last word of a scenario in which all was as it should be: removes what is in the namespace. The namespace itself, empty,
    /// goes some seconds later, when the next scenario is under way.
    ///
    /// # Errors
    /// When something is left.
    pub fn passed(mut self) -> Result<()> {
        self.passed = true;
        self.remove(&["--wait=false"]).with_context(|| format!("remove the namespace {}", self.namespace))?;
        until_true(format!("what is in {} to be gone", self.namespace), LIMIT, || {
            let left = self.get(&["pods,migrations,protectedworkloads"])?.unwrap_or_default();
            Ok(left["items"].as_array().is_none_or(Vec::is_empty))
        })
    }

    fn with_namespace<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        ["--namespace", &self.namespace].into_iter().chain(args.iter().copied()).collect()
    }

    fn placed(&self, manifests: &str) -> String {
        manifests.replace("metadata: {name:", &format!("metadata: {{namespace: {}, name:", self.namespace))
    }

    fn remove(&self, how: &[&str]) -> Result<()> {
        if self.turn.is_alone() {
            self.uncordon()?;
        }
        self.kube.run(&[&["delete", "namespace", &self.namespace, "--ignore-not-found"], how].concat())?;
        Ok(())
    }

    fn uncordon(&self) -> Result<()> {
        for node in self.kube.get(&["nodes"])?.context("no nodes")?["items"].as_array().into_iter().flatten() {
            if node["spec"]["unschedulable"] == true {
                self.kube.run(&["uncordon", node["metadata"]["name"].as_str().unwrap_or_default()])?;
            }
        }
        Ok(())
    }

    /// Everything that helps to understand a failure.
    fn describe(&self) {
        for args in [
            &["get", "pw,mig,pods", "--output=wide"][..],
            &["get", "mig", "--output=yaml"],
            &["get", "events", "--sort-by=.lastTimestamp"],
        ] {
            print(args, self.run(args));
        }
        for args in [
            &["get", "pods,endpointslices", "--output=wide"][..],
            &["get", "events", "--sort-by=.lastTimestamp"],
            &["logs", "--selector=app.kubernetes.io/component=operator", "--tail=60", "--prefix"],
            &["logs", "--selector=app.kubernetes.io/component=operator", "--tail=20", "--prefix", "--previous"],
            &["logs", "--selector=app.kubernetes.io/component=agent", "--tail=60", "--prefix"],
        ] {
            let args: Vec<_> = ["--namespace", NAMESPACE].iter().chain(args).copied().collect();
            print(&args, self.kube.run(&args));
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if self.passed {
            return;
        }
        self.describe();
        if let Err(error) = self.remove(&WAIT) {
            eprintln!("namespace {} is left: {error:#}", self.namespace);
        }
    }
}

fn print(args: &[&str], said: Result<String>) {
    match said {
        Ok(text) => eprintln!("--- kubectl {}\n{text}", args.join(" ")),
        Err(error) => eprintln!("--- {error:#}"),
    }
}

/// What the scenarios need to know of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Node, once it is bound.
    pub node: String,
    /// Address, once it has one.
    pub ip: String,
    /// Whether its condition Ready is true.
    pub ready: bool,
    /// Sum of its containers' restarts.
    pub restarts: u64,
}

impl Pod {
    fn from_object(object: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let each = |value: &Value| value.as_array().cloned().unwrap_or_default();
        Self {
            name: text(&object["metadata"]["name"]),
            uid: text(&object["metadata"]["uid"]),
            node: text(&object["spec"]["nodeName"]),
            ip: text(&object["status"]["podIP"]),
            ready: each(&object["status"]["conditions"])
                .iter()
                .any(|condition| condition["type"] == "Ready" && condition["status"] == "True"),
            restarts: ["containerStatuses", "initContainerStatuses"]
                .iter()
                .flat_map(|kind| each(&object["status"][kind]))
                .filter_map(|status| status["restartCount"].as_u64())
                .sum(),
        }
    }
}
