//! Files that moved are put in place: into the new container's root file system and the new pod's volumes.

use crate::agent::context::Context;
use crate::agent::failure::retryable;
use crate::agent::files::TreeKind;
use crate::agent::files::places;
use crate::agent::files::process::unpack_into;
use crate::agent::journal::RestoreEntry;
use crate::agent::source::preflight::free_bytes;
use crate::agent::transfer::message::FILES;
use crate::causes::chain;
use crate::criu::Bundle;
use std::path::{Path, PathBuf};
use tideover_crds::{Failure, FailureReason};

/// Puts every archive of the attempt in `directory` in place. Blocking.
///
/// # Errors
/// With the failure to report: a place that the new pod does not have, or an archive that can't be unpacked.
pub fn place_files(context: &Context, directory: &Path, restore: &RestoreEntry) -> Result<(), Failure> {
    let files = directory.join(FILES);
    let failed = |error: &dyn std::error::Error| retryable(FailureReason::RestoreFailed, chain(error));
    let mut archives = Vec::new();
    for entry in files.read_dir().map_err(|error| failed(&error))? {
        archives.push(entry.map_err(|error| failed(&error))?.file_name().to_string_lossy().into_owned());
    }
    archives.sort();
    for archive in archives {
        let (root, kind) = place(context, restore, &archive)?;
        let limit = free_bytes(&root);
        unpack_into(&root, kind, &files.join(&archive), limit).map_err(|error| failed(&error))?;
    }
    Ok(())
}

/// Where the archive of this name belongs, as this process sees it.
fn place(context: &Context, restore: &RestoreEntry, archive: &str) -> Result<(PathBuf, TreeKind), Failure> {
    let missing = |what: String| retryable(FailureReason::RestoreFailed, format!("the replacement has no {what}"));
    if archive == "layer.tar" {
        let bundle = Bundle::read(&restore.bundle, context.node.root())
            .map_err(|error| retryable(FailureReason::RestoreFailed, chain(&error)))?;
        return Ok((context.node.path(&bundle.rootfs), TreeKind::Layer));
    }
    if archive == "shm.tar" {
        let place = places::shared_memory(&context.node, &restore.bundle)
            .map_err(|error| retryable(FailureReason::RestoreFailed, chain(&error)))?;
        let place = place.ok_or_else(|| missing("shared memory at /dev/shm".to_owned()))?;
        return Ok((context.node.path(&place), TreeKind::Volume));
    }
    let name = archive.strip_prefix("volume-").and_then(|name| name.strip_suffix(".tar"));
    let name = name.ok_or_else(|| missing(format!("place for the archive {archive}")))?;
    let path = context.node.path(&places::empty_dir(&context.settings.kubelet_root, &restore.pod_uid, name));
    if path.is_dir() { Ok((path, TreeKind::Volume)) } else { Err(missing(format!("emptyDir volume {name}"))) }
}
