//! `delete`: the mark of a restored container goes with it, and the place of a supervised one, and the shim with the last container of a node that Tideover
//! was taken off.

use super::marker::Markers;
use super::runtime::{Runtime, exit_code};
use super::stand_in;
use crate::agent::install::{InstallError, remove_if_last};
use crate::local::INSTALL_ROOT;
use crate::supervised::{PLACES, Place, PlaceError};
use std::ffi::OsString;
use std::path::Path;
use thiserror::Error;

/// Left behind by the agent when it was uninstalled while containers still ran under the shim.
const UNINSTALLED: &str = "uninstalled";

/// Why a container was not deleted.
#[derive(Debug, Error)]
pub(super) enum DeleteError {
    /// The marker is still there.
    #[error("clear the mark of a restored container")]
    Marker(#[source] std::io::Error),
    /// What stood in the container's place is still there.
    #[error("end what stands in the container's place")]
    StandIn(#[source] std::io::Error),
    /// What the container had on the node is still there.
    #[error("take away what a supervised container had on the node")]
    Place(#[source] PlaceError),
    /// The runtime could not be executed.
    #[error("execute the container runtime")]
    Execute(#[source] std::io::Error),
    /// The container is deleted; the shim is not.
    #[error("remove Tideover after the last container")]
    Remove(#[source] InstallError),
}

/// How a `delete` ended in this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Deleted {
    /// Go on as the runtime, with these arguments.
    HandOver(Vec<OsString>),
    /// The runtime has ended with this code.
    Done(i32),
}

/// Clears the mark; where Tideover was uninstalled, also deletes and cleans up.
pub(super) fn delete(runtime: &Runtime, id: &str, arguments: &[OsString]) -> Result<Deleted, DeleteError> {
    let markers = Markers::of_node();
    let mark = markers.get(id).map_err(DeleteError::Marker)?.unwrap_or_default();
    if stand_in::stands_alone(&mark) {
        stand_in::see_it_end(&mark).map_err(DeleteError::StandIn)?;
    }
    // containerd has seen the end of the stand-in. What it stood for may be alive where that was killed, be it in the restore.
    let arguments = if mark.stand_in.is_some() { &forced(arguments) } else { arguments };
    markers.clear(id).map_err(DeleteError::Marker)?;
    Place::of(Path::new(PLACES), id).end().map_err(DeleteError::Place)?;
    if !Path::new(INSTALL_ROOT).join(UNINSTALLED).exists() {
        return Ok(Deleted::HandOver(arguments.to_vec()));
    }
    let status = runtime.command(arguments).status().map_err(DeleteError::Execute)?;
    if status.success() {
        remove_if_last(id).map_err(DeleteError::Remove)?;
    }
    Ok(Deleted::Done(exit_code(status)))
}

/// A `delete` that also ends what runs, which may have said so already.
fn forced(arguments: &[OsString]) -> Vec<OsString> {
    let command = arguments.iter().position(|argument| argument == "delete").map_or(arguments.len(), |at| at + 1);
    let (before, after) = arguments.split_at(command);
    [before, &["--force".into()], after].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_outlives_its_stand_in_is_ended_with_the_container() {
        let arguments = ["--root", "/r", "delete", "c"].map(OsString::from);
        assert_eq!(forced(&arguments), ["--root", "/r", "delete", "--force", "c"].map(OsString::from));
    }
}
