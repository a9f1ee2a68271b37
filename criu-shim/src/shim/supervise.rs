//! Puts a container under `tideover-init`, or restores one that was under it.
//!
//! Whether a container that starts is supervised is said by its pod's annotation, which admission sets and lets nobody change.
//! Whether one that is restored is, and by which program, is said by its images: what is mapped must be mounted again, whatever
//! the pod's policy is by now.

use super::bundle::{self, PrepareError};
use crate::local::{Create, INSTALL_ROOT};
use crate::supervised::program::PROGRAMS;
use crate::supervised::spec::{self, SpecError};
use crate::supervised::{Checkpoints, Identity, Place, PlaceError, Program, ProgramError, RuleError, rules};
use serde_json::Value;
use std::path::Path;
use thiserror::Error;
use tideover_crds::supervision::{Supervision, SupervisionError};
use tideover_init::config::Config;

/// Why a container can't be supervised. It is not created then: it would run under other rules than it was promised.
#[derive(Debug, Error)]
pub(super) enum SuperviseError {
    /// Its pod's annotation.
    #[error(transparent)]
    Annotation(#[from] SupervisionError),
    /// The rules in it.
    #[error(transparent)]
    Rules(#[from] RuleError),
    /// The program.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// Its place on the node.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// Its specification.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The bundle.
    #[error(transparent)]
    Bundle(#[from] PrepareError),
}

/// Has a container that starts run under init, where its pod says so.
///
/// # Errors
/// [`SuperviseError`]; the bundle and the node are as they were then.
pub(super) fn started(bundle: &Path, create: &Create, places: &Path) -> Result<(), SuperviseError> {
    let mut config = bundle::read(bundle)?;
    let Some(supervision) = supervision(&config)?.filter(|supervision| supervision.is_of(&create.container_name))
    else {
        return Ok(());
    };
    let told = rules::config(&supervision.restart)?;
    let program = Program::current(&Path::new(INSTALL_ROOT).join(PROGRAMS))?;
    spec::run_under_init(&mut config)?;
    put(bundle, config, create, places, &program, (Some(&told), rules::checkpoints(&supervision)))
}

/// Gives a container that is restored from `images` what it had.
///
/// # Errors
/// [`SuperviseError`]; the bundle and the node are as they were then.
pub(super) fn restored(bundle: &Path, create: &Create, places: &Path, images: &Path) -> Result<(), SuperviseError> {
    let Some(program) = Program::read(images)? else { return Ok(()) };
    program.check_there(Path::new("/"))?;
    let config = bundle::read(bundle)?;
    // Whatever the pod's rules are by now, what was running is to run again: without checkpoints, where they can't be understood.
    let supervision = supervision(&config).ok().flatten();
    let checkpoints =
        supervision.filter(|one| one.is_of(&create.container_name)).and_then(|one| rules::checkpoints(&one));
    put(bundle, config, create, places, &program, (None, checkpoints))
}

fn supervision(config: &Value) -> Result<Option<Supervision>, SupervisionError> {
    let annotation = bundle::supervision(config);
    annotation.map(Supervision::parse).transpose()
}

fn put(
    bundle: &Path,
    mut config: Value,
    create: &Create,
    places: &Path,
    program: &Program,
    (told, checkpoints): (Option<&Config>, Option<Checkpoints>),
) -> Result<(), SuperviseError> {
    let place = Place::of(places, &create.container_id);
    spec::mount(&mut config, program, &place.inside())?;
    let identity = Identity {
        pod_namespace: create.pod_namespace.clone(),
        pod_name: create.pod_name.clone(),
        pod_uid: create.pod_uid.clone(),
        container_name: create.container_name.clone(),
        program: program.hash().to_owned(),
        checkpoints,
    };
    place.make(&identity, told)?;
    if let Err(error) = bundle::replace(bundle, &config) {
        place.end()?;
        return Err(error.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::ContainerType;
    use serde_json::json;
    use tideover_crds::names::SUPERVISION;

    fn create(container: &str) -> Create {
        Create {
            container_id: "c1".into(),
            bundle: "/b".into(),
            pod_namespace: "shop".into(),
            pod_name: "web-0".into(),
            pod_uid: "u".into(),
            container_name: container.into(),
            container_type: ContainerType::Container,
            replacement_of: None,
            rehearsal_of: None,
        }
    }

    fn bundle(annotation: Option<&str>) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let mut config = json!({ "process": { "args": ["/app"] }, "annotations": {} });
        if let Some(annotation) = annotation {
            config["annotations"][SUPERVISION] = json!(annotation);
        }
        std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
        directory
    }

    fn text(bundle: &Path) -> String {
        std::fs::read_to_string(bundle.join("config.json")).unwrap()
    }

    #[test]
    fn a_container_that_nobody_supervises_starts_as_it_is() {
        let places = tempfile::tempdir().unwrap();
        let other = r#"{"version": 1, "containers": ["app"], "restart": {"policy": "Always"}}"#;
        for annotation in [None, Some(other)] {
            let bundle = bundle(annotation);
            let before = text(bundle.path());
            started(bundle.path(), &create("setup"), places.path()).unwrap();
            restored(bundle.path(), &create("app"), places.path(), places.path()).unwrap();
            assert_eq!(text(bundle.path()), before);
        }
        assert_eq!(places.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn rules_that_this_node_does_not_know_are_refused_and_leave_nothing() {
        let places = tempfile::tempdir().unwrap();
        let newer = r#"{"version": 9, "containers": ["app"], "restart": {}}"#;
        let senseless = r#"{"version": 1, "containers": ["app"], "restart": {"steps": 3}}"#;
        for annotation in [newer, senseless, "", "null"] {
            let bundle = bundle(Some(annotation));
            let before = text(bundle.path());
            assert!(started(bundle.path(), &create("app"), places.path()).is_err(), "{annotation}");
            assert_eq!(text(bundle.path()), before);
        }
        assert_eq!(places.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn what_was_supervised_is_not_restored_without_its_program() {
        let places = tempfile::tempdir().unwrap();
        let images = tempfile::tempdir().unwrap();
        let absent = Program::of_content(&blake3::hash(b"on no node"));
        absent.write(images.path()).unwrap();
        let bundle = bundle(None);
        let refused = restored(bundle.path(), &create("app"), places.path(), images.path()).unwrap_err();
        assert!(refused.to_string().contains(absent.hash()), "{refused}");
        assert_eq!(places.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn the_bundle_of_a_supervised_container_has_what_init_needs() {
        let places = tempfile::tempdir().unwrap();
        let bundle = bundle(None);
        let program = Program::of_content(&blake3::hash(b"x"));
        let told = rules::config(&serde_json::from_str("{}").unwrap()).unwrap();
        let config = bundle::read(bundle.path()).unwrap();
        put(bundle.path(), config, &create("app"), places.path(), &program, (Some(&told), None)).unwrap();
        let place = Place::of(places.path(), "c1");
        let identity = place.identity().unwrap();
        let read = Config::read(&place.inside().join("config.json"));
        place.end().unwrap();
        assert_eq!(read.unwrap(), told);
        assert_eq!((identity.pod_name.as_str(), identity.container_name.as_str()), ("web-0", "app"));
        let mounts = bundle::read(bundle.path()).unwrap()["mounts"].clone();
        assert_eq!(mounts[1]["source"], json!(place.inside()));
    }
}
