//! `create`: a cold start, a restore, or neither.

use super::ask::{Answer, Restore, ask};
use super::bundle::{self, PrepareError};
use super::cli::Create;
use super::marker::{Mark, Markers};
use super::runtime::{Runtime, exit_code};
use super::stand_in;
use super::supervise::{self, SuperviseError};
use crate::local::{
    AHEAD_ENV, BUNDLE_ENV, ClientError, ContainerType, INSTALL_ROOT, JOURNAL, SILENCE, SOCKET, TOKEN_ENV, mark_ran,
};
use crate::supervised::PLACES;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use thiserror::Error;

/// Why a container was not created.
#[derive(Debug, Error)]
pub(super) enum CreateError {
    /// Its bundle could not be set right.
    #[error("prepare the bundle")]
    Prepare(#[from] PrepareError),
    /// The agent said no.
    #[error("{0}")]
    Refused(String),
    /// The agent said nothing.
    #[error(
        "this pod has to do with a move, so that only the node's agent knows whether it may start, and it was silent for {} s",
        SILENCE.as_secs()
    )]
    Silent(#[source] ClientError),
    /// It can't be put under `tideover-init`.
    #[error("supervise the container")]
    Supervise(#[from] SuperviseError),
    /// The marker could not be set: `start` would fail after the processes run.
    #[error("mark the container as restored")]
    Mark(#[source] std::io::Error),
    /// Nobody can stand in the container's place.
    #[error("have a process stand in the container's place")]
    StandIn(#[source] std::io::Error),
    /// The runtime could not be executed.
    #[error("execute the container runtime")]
    Execute(#[source] std::io::Error),
}

/// How a `create` ended in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Created {
    /// Go on as the runtime.
    Cold,
    /// `runc restore` has ended with this code, or waits below a stand-in: 0.
    Restored(i32),
}

/// Decides, and restores if that is the decision.
pub(super) fn create(runtime: &Runtime, create: &Create) -> Result<Created, CreateError> {
    let bundle = std::path::absolute(&create.bundle).unwrap_or_else(|_| create.bundle.clone());
    let identity = bundle::prepare(&bundle, &create.id, &Markers::of_node())?;
    let Some(identity) = identity.filter(|identity| identity.container_type == ContainerType::Container) else {
        return Ok(Created::Cold);
    };
    match ask(Path::new(SOCKET), Path::new(JOURNAL), &identity) {
        Answer::Cold => {
            supervise::started(&bundle, &identity, Path::new(PLACES))?;
            Ok(Created::Cold)
        }
        Answer::Refuse(reason) => Err(CreateError::Refused(reason)),
        Answer::Silent(error) => Err(CreateError::Silent(error)),
        Answer::Restore(restore) => {
            if let Err(error) = supervise::restored(&bundle, &identity, Path::new(PLACES), &restore.images_dir) {
                restore.report(1);
                return Err(error.into());
            }
            let restored = match restore.stand_in {
                true => stand_in::begin(runtime, create, &bundle, restore),
                false => self::restore(runtime, create, &bundle, restore),
            };
            restored.map(Created::Restored)
        }
    }
}

fn restore(runtime: &Runtime, create: &Create, bundle: &Path, restore: Restore) -> Result<i32, CreateError> {
    let markers = Markers::of_node();
    // Before the restore: once the processes run there is no way back, and without the mark `start` would fail.
    markers.set(&create.id, &Mark::default()).map_err(CreateError::Mark)?;
    let status = restore_command(runtime, create, bundle, &restore, create.pid_file.as_deref()).status();
    let code = match &status {
        Ok(status) => exit_code(*status),
        Err(_) => 1,
    };
    if code == 0 {
        // Before anybody learns that there is a container: it may end, and another one be asked for, before there is an
        // agent again that could be told.
        if let Err(error) = mark_ran(&restore.work_dir) {
            eprintln!("tideover: mark that {} has run: {error}", create.id);
        }
    } else {
        clear_away(runtime, create);
        // Its id is never used again, and `delete` takes the mark away too.
        if let Err(error) = markers.clear(&create.id) {
            eprintln!("tideover: clear the mark of {}: {error}", create.id);
        }
    }
    restore.report(code);
    status.map(|_| code).map_err(CreateError::Execute)
}

/// `runc restore`, which leaves the pid of the container's first process in `pid_file`.
pub(super) fn restore_command(
    runtime: &Runtime,
    create: &Create,
    bundle: &Path,
    restore: &Restore,
    pid_file: Option<&OsStr>,
) -> Command {
    let mut command = runtime.command(&restore_arguments(create, restore, pid_file));
    command
        .env("PATH", relay_first(std::env::var_os("PATH").as_deref()))
        .env(TOKEN_ENV, &restore.token)
        .env(BUNDLE_ENV, bundle);
    // What can't be written as JSON is done when the images are there.
    if let Some(ahead) = restore.ahead.as_ref().and_then(|ahead| serde_json::to_string(ahead).ok()) {
        command.env(AHEAD_ENV, ahead);
    }
    command
}

/// Ends what a restore that failed has left. runc may have been told of the process by the time that CRIU fails, and takes the
/// container for a running one then, which it does not remove; containerd does not either, of a container that it could not
/// create. Without it, processes that were rebuilt by a CRIU that was killed would stand there until the pod is gone.
pub(super) fn clear_away(runtime: &Runtime, create: &Create) {
    let mut command = runtime.command(&delete_arguments(create));
    // What it says of a container that is not there, which is the rule, is nobody's business.
    let ended = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if let Err(error) = ended {
        eprintln!("tideover: remove what is left of {}: {error}", create.id);
    }
}

fn delete_arguments(create: &Create) -> Vec<OsString> {
    let mut arguments = create.globals.clone();
    arguments.extend(["delete", "--force"].map(OsString::from));
    arguments.push(create.id.clone().into());
    arguments
}

fn restore_arguments(create: &Create, restore: &Restore, pid_file: Option<&OsStr>) -> Vec<OsString> {
    let mut arguments = create.globals.clone();
    arguments.extend(["restore", "--detach", "--image-path"].map(OsString::from));
    arguments.push(restore.images_dir.clone().into());
    arguments.push("--work-path".into());
    arguments.push(restore.work_dir.clone().into());
    arguments.push("--bundle".into());
    arguments.push(create.bundle.clone().into());
    for (option, value) in [("--pid-file", pid_file), ("--console-socket", create.console_socket.as_deref())] {
        arguments.extend(value.into_iter().flat_map(|value| [OsString::from(option), value.to_owned()]));
    }
    arguments.extend(create.flags.iter().cloned());
    arguments.push(create.id.clone().into());
    arguments
}

/// PATH with the relay's directory in front, where runc looks for `criu`.
fn relay_first(path: Option<&OsStr>) -> OsString {
    let mut relay = PathBuf::from(INSTALL_ROOT).join("relay").into_os_string();
    if let Some(path) = path {
        relay.push(":");
        relay.push(path);
    }
    relay
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restore_is_told_what_the_create_was_told() {
        let create = Create {
            globals: vec!["--root".into(), "/r".into()],
            id: "c".into(),
            bundle: "/b".into(),
            pid_file: Some("/p".into()),
            console_socket: None,
            flags: vec!["--no-pivot".into()],
            log: None,
        };
        let restore = Restore::example("t", "/i", "/w");
        let line: Vec<String> = restore_arguments(&create, &restore, create.pid_file.as_deref())
            .iter()
            .map(|part| part.to_string_lossy().into_owned())
            .collect();
        assert_eq!(
            line.join(" "),
            "--root /r restore --detach --image-path /i --work-path /w --bundle /b --pid-file /p --no-pivot c"
        );
        assert_eq!(delete_arguments(&create), ["--root", "/r", "delete", "--force", "c"].map(OsString::from));
    }

    #[test]
    fn the_relay_is_first_on_path() {
        assert_eq!(relay_first(Some(OsStr::new("/bin"))), "/opt/tideover/relay:/bin");
        assert_eq!(relay_first(None), "/opt/tideover/relay");
    }
}
