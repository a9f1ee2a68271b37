//! The bundle's `config.json`: who the container is, and what must be set right in it before any start.

use super::marker::Markers;
use crate::criu::bundle::{BundleError, read_config};
use crate::local::{self, ContainerType};
use serde_json::{Map, Value, json};
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use thiserror::Error;
use tideover_crds::names::{REHEARSAL_OF, REPLACEMENT_OF, SUPERVISION, TIME_NAMESPACE};

/// Annotations that runc takes orders for CRIU from. The value of one is a path that root reads.
const CRIU_ORDERS: &str = "org.criu.";

/// Annotations that containerd sets, never the user. Source: containerd `pkg/cri/annotations`.
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
const POD_NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";
const POD_NAME: &str = "io.kubernetes.cri.sandbox-name";
const POD_UID: &str = "io.kubernetes.cri.sandbox-uid";
const CONTAINER_NAME: &str = "io.kubernetes.cri.container-name";

/// Why a bundle could not be prepared.
#[derive(Debug, Error)]
pub(super) enum PrepareError {
    /// It could not be read.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// It is not JSON.
    #[error("parse {path}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// What is known of restored containers can't be read.
    #[error("read the marks of restored containers")]
    Marks(#[source] std::io::Error),
    /// It shall see the processes of a container that has none yet.
    #[error("the container whose PID namespace is to be shared has not been restored yet")]
    NotThere,
    /// The corrected one could not be put in place.
    #[error("write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Sets right what must be right in the bundle's `config.json` before runc reads it, and says who the container is;
/// none for one that no CRI made. The file is replaced atomically, and only if something had to be set right.
///
/// # Errors
/// [`PrepareError`]; the file is as it was then, and must not be started.
pub(super) fn prepare(bundle: &Path, id: &str, markers: &Markers) -> Result<Option<local::Create>, PrepareError> {
    let mut config = read(bundle)?;
    let identity = identity(&config, bundle, id);
    let redirected = see_the_container(&mut config, markers)?;
    if set_right(&mut config, Path::new("/proc/self/ns/time").exists()) || redirected {
        replace(bundle, &config)?;
    }
    Ok(identity)
}

/// The bundle's `config.json`.
///
/// # Errors
/// [`PrepareError`].
pub(super) fn read(bundle: &Path) -> Result<Value, PrepareError> {
    let path = bundle.join("config.json");
    serde_json::from_slice(&read_config(&path)?).map_err(|source| PrepareError::Parse { path, source })
}

/// Puts another `config.json` in the place of the bundle's, in one step.
///
/// # Errors
/// [`PrepareError::Write`]; the file is as it was then.
pub(super) fn replace(bundle: &Path, config: &Value) -> Result<(), PrepareError> {
    let path = bundle.join("config.json");
    write(&path, config).map_err(|source| PrepareError::Write { path, source })
}

/// The rules for restarts in the pod's annotation.
pub(super) fn supervision(config: &Value) -> Option<&str> {
    annotations(config)?.get(SUPERVISION)?.as_str()
}

fn annotations(config: &Value) -> Option<&Map<String, Value>> {
    config.get("annotations")?.as_object()
}

fn identity(config: &Value, bundle: &Path, id: &str) -> Option<local::Create> {
    let annotations = annotations(config)?;
    let text = |name: &str| annotations.get(name).and_then(Value::as_str).map(str::to_owned);
    let container_type = match text(CONTAINER_TYPE)?.as_str() {
        "sandbox" => ContainerType::Sandbox,
        "container" => ContainerType::Container,
        _ => return None,
    };
    Some(local::Create {
        container_id: id.to_owned(),
        bundle: bundle.to_owned(),
        pod_namespace: text(POD_NAMESPACE)?,
        pod_name: text(POD_NAME)?,
        pod_uid: text(POD_UID)?,
        container_name: text(CONTAINER_NAME).unwrap_or_default(),
        container_type,
        replacement_of: text(REPLACEMENT_OF).filter(|name| !name.is_empty()),
        // Even one that names nothing must not start cold.
        rehearsal_of: text(REHEARSAL_OF),
    })
}

/// Has a container that shall share the PID namespace of another (an ephemeral one with a target) share that one's, where
/// containerd names the process that stands in its place: that is in the node's. Returns whether it did.
fn see_the_container(config: &mut Value, markers: &Markers) -> Result<bool, PrepareError> {
    let namespaces = config.pointer_mut("/linux/namespaces").and_then(Value::as_array_mut);
    for namespace in namespaces.into_iter().flatten() {
        let path = namespace.get("path").and_then(Value::as_str);
        let pid = path.and_then(|path| path.strip_prefix("/proc/")?.strip_suffix("/ns/pid")?.parse().ok());
        let Some(pid) = pid else { continue };
        if let Some(mark) = markers.of_stand_in(pid).map_err(PrepareError::Marks)? {
            let container = mark.container.filter(|container| container.is_alive()).ok_or(PrepareError::NotThere)?;
            namespace["path"] = json!(format!("/proc/{}/ns/pid", container.pid));
            return Ok(true);
        }
    }
    Ok(false)
}

/// Changes the configuration where that is needed, and says whether it was.
fn set_right(config: &mut Value, kernel_has_time_namespaces: bool) -> bool {
    let wants_time = annotations(config).is_some_and(|annotations| {
        annotations.get(TIME_NAMESPACE).and_then(Value::as_str) == Some("true")
            && annotations.get(CONTAINER_TYPE).and_then(Value::as_str) == Some("container")
    });
    let dropped = drop_criu_orders(config);
    let added = wants_time && kernel_has_time_namespaces && add_time_namespace(config);
    dropped || added
}

fn drop_criu_orders(config: &mut Value) -> bool {
    let Some(annotations) = config.get_mut("annotations").and_then(Value::as_object_mut) else { return false };
    let before = annotations.len();
    annotations.retain(|name, _| !name.starts_with(CRIU_ORDERS));
    annotations.len() < before
}

fn add_time_namespace(config: &mut Value) -> bool {
    let Some(namespaces) = config.pointer_mut("/linux/namespaces").and_then(Value::as_array_mut) else { return false };
    let is_time = |namespace: &Value| namespace.get("type").and_then(Value::as_str) == Some("time");
    if namespaces.iter().any(is_time) {
        return false;
    }
    namespaces.push(json!({ "type": "time" }));
    true
}

fn write(path: &Path, config: &Value) -> std::io::Result<()> {
    let mode = std::fs::metadata(path)?.permissions().mode();
    let beside = path.with_extension("json.tideover");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode & 0o7777).open(&beside)?;
    file.write_all(config.to_string().as_bytes())?;
    std::fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::criu::ProcessId;
    use crate::shim::marker::Mark;

    fn config(annotations: Value) -> Value {
        json!({
            "ociVersion": "1.2.0",
            "process": { "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": u64::MAX, "soft": 1024 }] },
            "annotations": annotations,
            "linux": { "namespaces": [{ "type": "pid" }] },
        })
    }

    fn cri(kind: &str, more: &[(&str, &str)]) -> Value {
        let mut annotations = json!({
            CONTAINER_TYPE: kind, POD_NAMESPACE: "shop", POD_NAME: "web-0", POD_UID: "u-1", CONTAINER_NAME: "app",
        });
        for (name, value) in more {
            annotations[*name] = json!(value);
        }
        config(annotations)
    }

    #[test]
    fn orders_to_criu_are_dropped_whatever_they_are() {
        let mut config = cri("container", &[("org.criu.config", "/tmp/evil.conf"), ("org.criu.x", "y"), ("keep", "z")]);
        assert!(set_right(&mut config, true));
        let left = annotations(&config).unwrap();
        assert!(!left.keys().any(|name| name.starts_with("org.criu")));
        assert_eq!(left["keep"], "z");
    }

    #[test]
    fn a_time_namespace_is_added_once_and_only_to_containers() {
        let stamped = [(TIME_NAMESPACE, "true")];
        let mut container = cri("container", &stamped);
        assert!(set_right(&mut container, true));
        assert_eq!(container["linux"]["namespaces"], json!([{ "type": "pid" }, { "type": "time" }]));
        assert!(!set_right(&mut container, true));
        assert!(!set_right(&mut cri("sandbox", &stamped), true));
        assert!(!set_right(&mut cri("container", &[(TIME_NAMESPACE, "false")]), true));
        assert!(!set_right(&mut cri("container", &stamped), false));
    }

    #[test]
    fn the_identity_comes_from_containerds_annotations() {
        let config = cri("container", &[(REPLACEMENT_OF, "mig-1")]);
        let identity = identity(&config, Path::new("/b"), "c1").unwrap();
        assert_eq!(identity.pod_uid, "u-1");
        assert_eq!(identity.container_name, "app");
        assert_eq!(identity.container_type, ContainerType::Container);
        assert_eq!(identity.replacement_of.as_deref(), Some("mig-1"));
        assert_eq!(identity.rehearsal_of, None);
        let rehearsal = super::identity(&cri("container", &[(REHEARSAL_OF, "")]), Path::new("/b"), "c2").unwrap();
        assert_eq!(rehearsal.rehearsal_of.as_deref(), Some(""));
        assert_eq!(super::identity(&json!({}), Path::new("/b"), "c1"), None);
    }

    #[test]
    fn a_bundle_that_is_right_is_not_written_and_a_changed_one_keeps_its_mode_and_numbers() {
        let bundle = tempfile::tempdir().unwrap();
        let path = bundle.path().join("config.json");
        let text = serde_json::to_string_pretty(&cri("container", &[])).unwrap();
        std::fs::write(&path, &text).unwrap();
        let markers = Markers::at(bundle.path());
        prepare(bundle.path(), "c", &markers).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);

        std::fs::write(&path, cri("container", &[("org.criu.config", "/x")]).to_string()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        prepare(bundle.path(), "c", &markers).unwrap();
        let config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(config["process"]["rlimits"][0]["hard"], json!(u64::MAX));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn unreadable_json_is_refused_by_name() {
        let bundle = tempfile::tempdir().unwrap();
        std::fs::write(bundle.path().join("config.json"), "{").unwrap();
        let markers = Markers::at(bundle.path());
        assert!(matches!(prepare(bundle.path(), "c", &markers), Err(PrepareError::Parse { .. })));
    }

    #[test]
    fn who_is_to_see_a_container_sees_it_and_not_the_node_that_its_stand_in_is_in() {
        let marks = tempfile::tempdir().unwrap();
        let markers = Markers::at(marks.path());
        let own = ProcessId::now(std::process::id() as i32).unwrap();
        let path = |pid: i32| format!("/proc/{pid}/ns/pid");
        let mut config = json!({ "linux": { "namespaces": [{ "type": "pid", "path": path(own.pid) }] } });
        assert!(!see_the_container(&mut config, &markers).unwrap(), "it stands for nobody");
        markers.set("c", &Mark { stand_in: Some(own), container: None }).unwrap();
        assert!(matches!(see_the_container(&mut config, &markers), Err(PrepareError::NotThere)));
        let container = ProcessId::now(1).unwrap();
        markers.set("c", &Mark { stand_in: Some(own), container: Some(container) }).unwrap();
        assert!(see_the_container(&mut config, &markers).unwrap());
        assert_eq!(config["linux"]["namespaces"][0]["path"], json!(path(1)));
    }
}
