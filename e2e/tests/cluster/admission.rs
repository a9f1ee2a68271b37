//! What the API server refuses.

use anyhow::{Result, ensure};
use e2e::scenario::{Cluster, Sandbox};

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
