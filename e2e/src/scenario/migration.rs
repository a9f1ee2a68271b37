//! Migrations as people see them.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::sandbox::Sandbox;
use super::wait::until;

/// The Migrations of a namespace, newest last.
///
/// # Errors
/// When kubectl fails.
pub fn all(sandbox: &Sandbox) -> Result<Vec<Value>> {
    let list = sandbox.get(&["migrations", "--sort-by=.metadata.creationTimestamp"])?.unwrap_or_default();
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

/// Waits until the newest Migration of the pod called `pod` has ended, and returns it.
///
/// # Errors
/// When there is none in time, or it does not end.
pub fn ended(sandbox: &Sandbox, pod: &str, limit: Duration) -> Result<Value> {
    until(format!("the move of {pod} to end"), limit, || Ok(newest(sandbox, pod)?.filter(has_ended)))
}

/// Whether the Migration is in a phase that nothing leads out of.
pub fn has_ended(migration: &Value) -> bool {
    matches!(migration["status"]["phase"].as_str(), Some("Succeeded" | "Failed" | "Cancelled"))
}

/// Waits until the newest Migration of the pod called `pod` is in `phase`, or has left it behind.
///
/// # Errors
/// When it ends first, or takes too long.
pub fn reached(sandbox: &Sandbox, pod: &str, phase: &str, limit: Duration) -> Result<Value> {
    until(format!("the move of {pod} to reach {phase}"), limit, || {
        let Some(migration) = newest(sandbox, pod)? else { return Ok(None) };
        if went_through(&migration, phase) || migration["status"]["phase"] == phase {
            return Ok(Some(migration));
        }
        if matches!(migration["status"]["phase"].as_str(), Some("Failed" | "Cancelled")) {
            bail!("the move ended before {phase}: {}", message(&migration));
        }
        Ok(None)
    })
}

/// Whether the move has been in `phase`.
pub fn went_through(migration: &Value, phase: &str) -> bool {
    migration["status"]["phases"].as_array().into_iter().flatten().any(|entry| entry["phase"] == phase)
}

/// As [`ended`], and it must have succeeded.
///
/// # Errors
/// When it ended in another way, with its message.
pub fn succeeded(sandbox: &Sandbox, pod: &str, limit: Duration) -> Result<Value> {
    let migration = ended(sandbox, pod, limit)?;
    if migration["status"]["phase"] != "Succeeded" {
        bail!("the move of {pod} {}: {}", migration["status"]["phase"], message(&migration));
    }
    Ok(migration)
}

/// The sentence in `status.message`.
pub fn message(migration: &Value) -> &str {
    migration["status"]["message"].as_str().unwrap_or_default()
}

/// A manifest of a Migration that a person would write.
pub fn manifest(name: &str, pod: &str) -> String {
    format!(
        "\
apiVersion: tideover.dev/v1alpha1
kind: Migration
metadata: {{name: {name}}}
spec: {{pod: {{name: {pod}}}}}
"
    )
}

/// Rows `phase, milliseconds` of a move that succeeded: how long the operator was in each phase, then what the agents
/// measured inside the freeze.
///
/// # Errors
/// When the Migration does not carry what is promised.
pub fn phases(migration: &Value) -> Result<Vec<(String, f64)>> {
    let entries = migration["status"]["phases"].as_array().context("the Migration has no phases")?;
    let times = entries
        .iter()
        .map(|entry| {
            let at: jiff::Timestamp = entry["at"].as_str().context("a phase without a time")?.parse()?;
            Ok((entry["phase"].as_str().unwrap_or_default().to_owned(), at.as_microsecond() as f64 / 1000.0))
        })
        .collect::<Result<Vec<_>>>()?;
    let mut rows: Vec<_> = times.windows(2).map(|pair| (pair[0].0.clone(), pair[1].1 - pair[0].1)).collect();
    let source = &migration["status"]["source"]["timings"];
    for (label, field) in [
        ("  freeze: cgroup frozen", "freezeWaitMillis"),
        ("  freeze: dump", "dumpMillis"),
        ("  freeze: transfer", "transferMillis"),
        ("  freeze: restore", "restoreMillis"),
        ("  freeze: commit and resume", "commitMillis"),
        ("  freeze, all of it", "freezeMillis"),
    ] {
        rows.push((label.to_owned(), source[field].as_f64().with_context(|| format!("no {field} in the report"))?));
    }
    Ok(rows)
}

fn newest(sandbox: &Sandbox, pod: &str) -> Result<Option<Value>> {
    Ok(all(sandbox)?.into_iter().rfind(|migration| migration["spec"]["pod"]["name"] == pod))
}
