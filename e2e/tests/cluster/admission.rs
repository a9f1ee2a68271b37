//! What the API server refuses.

use anyhow::{Context, Result, ensure};
use e2e::scenario::cluster::NAMESPACE;
use e2e::scenario::{Cluster, LIMIT, Sandbox, migration, until};
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use serde_json::{Value, json};
use tokio::runtime;

/// The API server, as the agent of one node meets it.
struct Agent {
    runtime: runtime::Runtime,
    migrations: Api<DynamicObject>,
}

impl Agent {
    /// With a token like that of the agent's pod on `node`.
    fn of_node(cluster: &Cluster, sandbox: &Sandbox, node: &str) -> Result<Self> {
        let selector = ["--namespace", NAMESPACE, "--selector=app.kubernetes.io/component=agent"];
        let pods = cluster.kube().get(&[&["pods"][..], &selector].concat())?.context("no agents")?;
        let here = |pod: &&Value| pod["spec"]["nodeName"] == node;
        let pod = pods["items"].as_array().into_iter().flatten().find(here).context("no agent on the node")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (account, name) = (text(&pod["spec"]["serviceAccountName"]), text(&pod["metadata"]["name"]));
        let uid = text(&pod["metadata"]["uid"]);
        let token = cluster.kube().run(&[
            "--namespace",
            NAMESPACE,
            "create",
            "token",
            &account,
            "--bound-object-kind=Pod",
            &format!("--bound-object-name={name}"),
            &format!("--bound-object-uid={uid}"),
        ])?;
        let mut kubeconfig = Kubeconfig::read_from(cluster.lab().kubeconfig()).context("read the kubeconfig")?;
        for user in &mut kubeconfig.auth_infos {
            user.auth_info = Some(AuthInfo { token: Some(token.trim().into()), ..AuthInfo::default() });
        }
        let runtime = runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
        let client = runtime.block_on(async {
            let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
            Ok::<_, anyhow::Error>(kube::Client::try_from(config)?)
        })?;
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("tideover.dev", "v1alpha1", "Migration"));
        let migrations = Api::namespaced_with(client, sandbox.namespace(), &kind);
        Ok(Self { runtime, migrations })
    }

    /// Merges `status` into that of a Migration. An agent may not read one beforehand, as kubectl does.
    fn write(&self, migration: &str, status: &Value) -> Result<(), kube::Error> {
        let (patch, params) = (Patch::Merge(json!({ "status": status })), PatchParams::default());
        self.runtime.block_on(self.migrations.patch_status(migration, &params, &patch)).map(drop)
    }
}

fn refused(sandbox: &Sandbox, manifest: &str, sentence: &str) -> Result<()> {
    match sandbox.create(manifest) {
        Ok(said) => anyhow::bail!("accepted: {said}\n{manifest}"),
        Err(error) => {
            let said = format!("{error:#}");
            ensure!(said.contains(sentence), "refused, but not with {sentence:?}: {said}");
            Ok(())
        }
    }
}

#[test]
fn policies_that_make_no_sense_are_refused_with_a_sentence() -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::beside(cluster.kube(), "bad-policies")?;
    let policy = |spec: &str| {
        format!(
            "apiVersion: tideover.dev/v1alpha1\nkind: ProtectedWorkload\nmetadata: {{name: bad}}\nspec: {{{spec}}}\n"
        )
    };
    for (spec, sentence) in [
        ("selector: {}", "selector is empty"),
        ("selector: {matchLabels: {a: b}}, migration: {maxDowntime: 0s}", "maxDowntime must be more than 0s"),
        ("selector: {matchLabels: {a: b}}, migration: {timeout: 1s}", "timeout must be at least 5s"),
        ("selector: {matchLabels: {a: b}}, migration: {maxAttempts: 0}", "maxAttempts must be between 1 and 10"),
        ("selector: {matchLabels: {a: b}}, migration: {maxAttempts: 99999999999}", "maxAttempts"),
        ("selector: {matchLabels: {a: b}}, onMaintenance: {action: Explode}", "Unsupported value"),
        ("selector: 7", "selector"),
        ("selector: {matchLabels: {a: b}}, restart: {policy: Always, steps: 3}", "steps and maxDelay go together"),
        (
            "selector: {matchLabels: {a: b}}, restart: {delay: 1s, steps: 3, maxDelay: 10ms}",
            "maxDelay must not be less than delay",
        ),
        (
            "selector: {matchLabels: {a: b}}, restart: {successExitStatus: ['256']}",
            "successExitStatus must hold exit codes from 0 to 255",
        ),
        ("selector: {matchLabels: {a: b}}, restart: {startLimit: {burst: 1001}}", "startLimit.burst must be between"),
        ("selector: {matchLabels: {a: b}}, restart: {startLimit: {action: Reboot}}", "Unsupported value"),
        ("selector: {matchLabels: {a: b}}, restart: {type: Notify, notifyAccess: None}", "somebody must be heard"),
        ("selector: {matchLabels: {a: b}}, restart: {watchdog: -1s}", "watchdog must be between 0s and 8784h"),
    ] {
        refused(&sandbox, &policy(spec), sentence)?;
    }
    sandbox.passed()
}

#[test]
fn a_migration_is_immutable() -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::beside(cluster.kube(), "immutable")?;
    let manifest =
        "apiVersion: tideover.dev/v1alpha1\nkind: Migration\nmetadata: {name: m}\nspec: {pod: {name: POD}}\n";
    refused(&sandbox, &manifest.replace("POD", "''"), "pod.name must have 1 to 253 characters")?;
    sandbox.create(&manifest.replace("POD", "one"))?;
    let said =
        sandbox.run(&["patch", "migration", "m", "--type=merge", "--patch={\"spec\":{\"pod\":{\"name\":\"two\"}}}"]);
    let said = format!("{:#}", said.err().map_or_else(String::new, |error| error.to_string()));
    ensure!(said.contains("a Migration's spec can't be changed"), "{said}");
    sandbox.passed()
}

#[test]
fn nobody_else_may_set_tideovers_own_annotations() -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::beside(cluster.kube(), "forged")?;
    let pod = "\
apiVersion: v1
kind: Pod
metadata: {name: forged, labels: {app: forged}, annotations: {tideover.dev/replacement-of: theirs}}
spec: {containers: [{name: probe, image: 'lab/probe:1', imagePullPolicy: IfNotPresent, args: [tick]}]}
";
    refused(&sandbox, pod, "tideover.dev/")?;
    sandbox.create(&pod.replace(", annotations: {tideover.dev/replacement-of: theirs}", ""))?;
    let said = sandbox.run(&["annotate", "pod", "forged", "tideover.dev/claimed-by=me"]);
    ensure!(said.is_err_and(|error| format!("{error:#}").contains("tideover.dev/")), "the annotation was accepted");
    sandbox.run(&["annotate", "pod", "forged", "example.org/mine=1"])?;
    sandbox.passed()
}

/// Makes a Migration as it would be in the middle of a move, but for the phase, so that nobody acts on it. Returns its two nodes.
fn in_the_middle_of_a_move(cluster: &Cluster, sandbox: &Sandbox) -> Result<(String, String)> {
    let workers = cluster.workers();
    let (source, target) = workers.first().zip(workers.get(1)).context("two nodes")?;
    sandbox.create(&migration::manifest("move", "nobody"))?;
    until("the move of nobody to end", LIMIT, || {
        Ok(sandbox.get(&["migration", "move"])?.filter(migration::has_ended))
    })?;
    let status = json!({ "attempt": 1, "owner": { "node": source, "attempt": 0 }, "targetNode": target,
        "sourcePod": { "name": "nobody", "uid": "u", "node": source }, "containers": ["app", "beside"] });
    let patch = json!({ "status": status }).to_string();
    sandbox.run(&["patch", "migration", "move", "--subresource=status", "--type=merge", "--patch", &patch])?;
    Ok((source.clone(), target.clone()))
}

#[test]
fn what_a_target_has_taken_is_its_own_to_make_final_and_either_sides_to_end() -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::beside(cluster.kube(), "agent-taken")?;
    let (source, target) = &in_the_middle_of_a_move(cluster, &sandbox)?;
    let owner = |node: &str, attempt: u32, tentative: bool| {
        let tentative = if tentative { Value::Bool(true) } else { Value::Null };
        json!({ "owner": { "node": node, "attempt": attempt, "tentative": tentative } })
    };
    let refused = |agent: &Agent, owner: &Value| {
        let said = agent.write("move", owner).err().with_context(|| format!("{owner} was accepted"))?.to_string();
        ensure!(said.contains("status.owner can be decided once"), "{said}");
        Ok(())
    };
    let (of_source, of_target) =
        (Agent::of_node(cluster, &sandbox, source)?, Agent::of_node(cluster, &sandbox, target)?);
    refused(&of_source, &owner(target, 1, true))?;
    refused(&of_source, &owner(source, 1, true))?;
    refused(&of_target, &owner(source, 1, true))?;
    for (agent, other, what) in
        [(&of_target, &of_source, "the target gives back"), (&of_source, &of_target, "the source ends")]
    {
        of_target.write("move", &owner(target, 1, true)).context("the target takes the attempt")?;
        refused(&of_source, &owner(target, 1, false))?;
        refused(&of_source, &owner(source, 0, false))?;
        refused(&of_target, &owner(source, 0, false))?;
        agent.write("move", &owner(source, 1, false)).with_context(|| format!("{what} the attempt"))?;
        refused(&of_target, &owner(target, 1, false))?;
        refused(other, &owner(target, 1, true))?;
        let before = json!({ "status": owner(source, 0, false) }).to_string();
        sandbox.run(&["patch", "migration", "move", "--subresource=status", "--type=merge", "--patch", &before])?;
    }
    sandbox.passed()
}

#[test]
fn an_agent_writes_its_own_report_and_not_which_containers_move() -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::beside(cluster.kube(), "agent-token")?;
    let (source, _) = &in_the_middle_of_a_move(cluster, &sandbox)?;
    let agent = Agent::of_node(cluster, &sandbox, source)?;
    agent.write("move", &json!({ "source": { "attempt": 1, "step": "Ready" } })).context("its own report")?;
    for containers in [json!(["app"]), json!(["app", "other"]), json!([]), Value::Null] {
        let refused = agent.write("move", &json!({ "containers": containers }));
        let said = refused.err().with_context(|| format!("{containers} was accepted"))?.to_string();
        ensure!(said.contains("phase, attempt, pods and target are the operator's to write"), "{said}");
    }
    let said = agent.write("move", &json!({ "target": { "attempt": 1, "step": "Resumed" } }));
    let said = said.err().context("the source's agent has written the target's report")?.to_string();
    ensure!(said.contains("only the target's agent writes status.target"), "{said}");
    let after = sandbox.get(&["migration", "move"])?.context("the Migration")?["status"].clone();
    ensure!(after["containers"] == json!(["app", "beside"]), "the containers are {}", after["containers"]);
    ensure!(after["source"]["step"] == "Ready", "the report is {}", after["source"]);
    sandbox.passed()
}
