//! The same manifest, with one thing about its program or its container changed.

use super::HANG;

/// `manifest` of a pod or Deployment, with a container that runs to its end before the others are created.
pub fn with_init_container(manifest: &str) -> String {
    const INIT: &str = "{name: prepare, image: 'lab/probe:1', imagePullPolicy: IfNotPresent, args: [--help]}";
    let lines = manifest.lines().map(|line| match line.split_once("containers:") {
        Some((indent, "")) if indent.trim().is_empty() => format!("{indent}initContainers: [{INIT}]\n{line}\n"),
        _ => format!("{line}\n"),
    });
    lines.collect()
}

/// `manifest` of a ticker, which holds its memory where all of it is copied in the freeze: for a scenario that needs the
/// freeze to last.
pub fn with_scattered_memory(manifest: &str) -> String {
    manifest.replace("args: [tick,", "args: [tick, --scattered,")
}

/// `manifest` of a ticker, which holds its memory where other processes could have it too.
pub fn with_shared_memory(manifest: &str) -> String {
    manifest.replace("args: [tick,", "args: [tick, --shared,")
}

/// `manifest` of a ticker, which writes to its memory all the time and ends itself if any of it is not what it should be.
pub fn with_checked_memory(manifest: &str) -> String {
    with_checked_pages(manifest, 32)
}

/// The same, which looks at `pages` pages at each tick.
pub fn with_checked_pages(manifest: &str, pages: u64) -> String {
    manifest.replace("args: [tick,", &format!("args: [tick, --dirty-pages=4, --check-pages={pages},"))
}

/// `manifest` of a ticker, which writes to `pages` pages at each tick.
pub fn with_written_memory(manifest: &str, pages: usize) -> String {
    manifest.replace("args: [tick,", &format!("args: [tick, --dirty-pages={pages},"))
}

/// `manifest` of a ticker, which is one of `processes`, the others idle. To be applied last of what changes its arguments.
pub fn with_processes(manifest: &str, processes: usize) -> String {
    manifest.replace("args: [tick,", &format!("args: [crowd, --processes={processes},"))
}

/// `manifest` of a ticker, which answers a watchdog until the file [`HANG`] is there.
pub fn with_watchdog(manifest: &str) -> String {
    manifest.replace("args: [tick,", &format!("args: [tick, --notify, --hang={HANG},"))
}

/// `manifest` of a ticker, which may use `cpus`.
pub fn with_cpu_limit(manifest: &str, cpus: &str) -> String {
    manifest.replace("resources: {", &format!("resources: {{limits: {{cpu: {cpus}}}, "))
}

/// `manifest` of a ticker, for which `cpus` are kept: on a busy node it is not what has to stand back.
pub fn with_cpu_request(manifest: &str, cpus: &str) -> String {
    manifest.replace("requests: {cpu: 10m,", &format!("requests: {{cpu: {cpus},"))
}

const STORE: &str = "{name: store, image: 'lab/redis:1', imagePullPolicy: IfNotPresent, \
                     command: [redis-server, --save, ''], securityContext: {runAsUser: 999}, \
                     resources: {requests: {cpu: 10m, memory: 32Mi}}}";

/// `manifest` of a pod that is a ticker, with a redis in a container `store` after it.
pub fn with_store_last(manifest: &str) -> String {
    manifest.replace("---\n", &format!("    - {STORE}\n---\n"))
}

/// `manifest` of a ticker, with a redis in a container `store` before it: another image, under another user.
pub fn with_store(manifest: &str) -> String {
    let lines = manifest.lines().map(|line| match line.split_once("containers:") {
        Some((indent, "")) if indent.trim().is_empty() => format!("{line}\n{indent}  - {STORE}\n"),
        _ => format!("{line}\n"),
    });
    lines.collect()
}
