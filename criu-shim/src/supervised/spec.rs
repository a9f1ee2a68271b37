//! What supervision changes in a container's `config.json`: two mounts, and for one that starts, its arguments. Pure.
//!
//! Environment, working directory, user and capabilities stay the container's: init runs as the application would have.

use super::{CONFIG, DIRECTORY, PROGRAM, Program};
use serde_json::{Value, json};
use std::path::Path;
use thiserror::Error;

/// Why a specification can't be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SpecError {
    /// Nothing would be run.
    #[error("the container has no process.args to supervise")]
    NoArguments,
    /// It can't be given a mount.
    #[error("the container's mounts are no list")]
    NoMounts,
}

/// Runs the container's program under init.
///
/// # Errors
/// [`SpecError::NoArguments`].
pub fn run_under_init(config: &mut Value) -> Result<(), SpecError> {
    let arguments = config.pointer_mut("/process/args").and_then(Value::as_array_mut);
    let arguments = arguments.filter(|arguments| !arguments.is_empty()).ok_or(SpecError::NoArguments)?;
    arguments.splice(0..0, [json!(PROGRAM), json!(format!("{DIRECTORY}/{CONFIG}"))]);
    Ok(())
}

/// Shows the container `program`, and `inside`, the directory that is its own. Both are bind mounts of the node's, so that a
/// dump leaves them to the restore; they are made after all others, whatever those hide.
///
/// # Errors
/// [`SpecError::NoMounts`].
pub fn mount(config: &mut Value, program: &Program, inside: &Path) -> Result<(), SpecError> {
    let mounts = config.as_object_mut().ok_or(SpecError::NoMounts)?.entry("mounts").or_insert_with(|| json!([]));
    let mounts = mounts.as_array_mut().ok_or(SpecError::NoMounts)?;
    let bind = |destination: &str, source: &Path, more: &[&str]| {
        let options: Vec<&str> =
            ["rbind", "rprivate", "nosuid", "nodev"].into_iter().chain(more.iter().copied()).collect();
        json!({ "destination": destination, "type": "bind", "source": source, "options": options })
    };
    mounts.push(bind(PROGRAM, &program.path(), &["ro"]));
    mounts.push(bind(DIRECTORY, inside, &["rw", "noexec"]));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program() -> Program {
        Program::named("0123456789abcdef0123456789abcdef").unwrap()
    }

    #[test]
    fn the_programs_own_arguments_follow_inits() {
        let mut config = json!({ "process": { "args": ["/app", "--port", "80"], "env": ["A=b"], "cwd": "/w" } });
        run_under_init(&mut config).unwrap();
        let expected = ["/.tideover/init", "/.tideover/run/config.json", "/app", "--port", "80"];
        assert_eq!(config["process"], json!({ "args": expected, "env": ["A=b"], "cwd": "/w" }));
    }

    #[test]
    fn a_container_without_a_program_is_refused() {
        for mut config in [json!({}), json!({ "process": { "args": [] } })] {
            assert_eq!(run_under_init(&mut config), Err(SpecError::NoArguments));
        }
    }

    #[test]
    fn the_program_is_mounted_read_only_and_the_directory_can_run_nothing() {
        let mut config = json!({ "mounts": [{ "destination": "/proc" }] });
        mount(&mut config, &program(), Path::new("/run/tideover-init/c/inside")).unwrap();
        let mounts = config["mounts"].as_array().unwrap();
        assert_eq!(mounts[1]["source"], "/opt/tideover/init/0123456789abcdef0123456789abcdef");
        assert_eq!(mounts[1]["options"], json!(["rbind", "rprivate", "nosuid", "nodev", "ro"]));
        assert_eq!(mounts[2]["destination"], "/.tideover/run");
        assert_eq!(mounts[2]["options"], json!(["rbind", "rprivate", "nosuid", "nodev", "rw", "noexec"]));
        assert_eq!(mounts.len(), 3);
    }

    #[test]
    fn the_source_of_a_move_finds_the_program_where_it_was_mounted() {
        let mut config = json!({});
        mount(&mut config, &program(), Path::new("/x")).unwrap();
        let spec: crate::criu::bundle::Spec = serde_json::from_value(config).unwrap();
        assert_eq!(Program::mounted(&spec.mounts), Some(program()));
        assert!(spec.mounts.iter().all(crate::criu::bundle::SpecMount::is_bind));
    }
}
