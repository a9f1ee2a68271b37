//! The pod's System V objects: what CRIU needs of its IPC namespace before a restore, and what is left to do after it.
//!
//! The relay is in that namespace (`handover`), and so is CRIU, which makes the objects (`ipc-preload`). Never done to the
//! node's own namespace.

use crate::local::SystemV;
use crate::system_v::{self, Kind};
use std::os::unix::fs::MetadataExt;
use thiserror::Error;

/// Why the objects are not as they must be.
#[derive(Debug, Error)]
pub(super) enum SystemVError {
    #[error("the pod shares the node's IPC namespace: no System V objects are restored into it")]
    Node,
    #[error("list the pod's System V objects")]
    List(#[source] std::io::Error),
    #[error("remove the {kind} {id}")]
    Remove {
        kind: Kind,
        id: i32,
        #[source]
        source: std::io::Error,
    },
}

/// The IPC namespace that this thread is in, as stat(2) tells it from others.
pub(super) fn namespace() -> std::io::Result<(u64, u64)> {
    let metadata = std::fs::metadata("/proc/thread-self/ns/ipc")?;
    Ok((metadata.dev(), metadata.ino()))
}

/// The objects that a restore makes. Until it begins there are none.
#[derive(Debug)]
pub(super) struct PodObjects {
    of_images: SystemV,
}

impl PodObjects {
    /// Removes whatever is in the way of those in the images: what an init container has made, of which the source's state has its own,
    /// or an earlier try. Only where this namespace is `apart` from the one that the relay was started in.
    pub(super) fn none_but(of_images: SystemV, apart: bool) -> Result<Self, SystemVError> {
        if !apart {
            return Err(SystemVError::Node);
        }
        remove_all()?;
        Ok(Self { of_images })
    }

    /// Removes once more the segments that were removed at the source: they are mapped again, and go with the last mapping.
    pub(super) fn mark_removed(&self) -> Result<(), SystemVError> {
        self.of_images.removed.iter().try_for_each(|id| remove(Kind::Segment, *id))
    }

    /// Removes what a restore that failed has made.
    pub(super) fn remove(self) -> Result<(), SystemVError> {
        remove_all()
    }
}

fn remove_all() -> Result<(), SystemVError> {
    let objects = system_v::list().map_err(SystemVError::List)?;
    objects.into_iter().try_for_each(|object| remove(object.kind, object.id))
}

fn remove(kind: Kind, id: i32) -> Result<(), SystemVError> {
    system_v::remove(kind, id).map_err(|source| SystemVError::Remove { kind, id, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system_v::fixture::{in_new_namespace, queue, segment, semaphores};

    #[test]
    fn a_restore_finds_nothing_and_a_failed_one_leaves_nothing() {
        in_new_namespace(|| {
            let make = || (segment(4096), semaphores(&[3]), queue(&[9]));
            make();
            let objects = PodObjects::none_but(SystemV::default(), true).unwrap();
            assert_eq!(system_v::list().unwrap(), []);
            make();
            objects.remove().unwrap();
            assert_eq!(system_v::list().unwrap(), []);
        });
    }

    #[test]
    fn only_what_was_removed_at_the_source_is_removed_again() {
        in_new_namespace(|| {
            let (kept, removed) = (segment(4096), segment(4096));
            PodObjects { of_images: SystemV { removed: vec![removed] } }.mark_removed().unwrap();
            assert!(matches!(system_v::list().unwrap()[..], [object] if object.id == kept));
        });
    }

    #[test]
    fn the_nodes_namespace_is_left_alone() {
        let node = namespace().unwrap();
        in_new_namespace(|| {
            assert_ne!(namespace().unwrap(), node);
            let id = segment(4096);
            let refused = PodObjects::none_but(SystemV::default(), false).unwrap_err();
            assert!(matches!(refused, SystemVError::Node), "{refused}");
            assert!(matches!(system_v::list().unwrap()[..], [object] if object.id == id));
        });
    }
}
