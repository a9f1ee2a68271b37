//! Checkpoints of this node's containers: taken while they run, and restored when one gives up and asks for it.
//!
//! Pure decisions: [`due`] says when one is taken, [`obstacle`] of which pods none is, [`keep`] which ones stay, [`about`] which may be
//! restored, [`ledger`] whether a container is to come back from one and which must not be used again, [`stage`] what follows from what
//! a restore does. Around them: [`watch`] looks what is due, [`take`] takes it (the freeze is
//! [`source::snapshot`](crate::agent::source::snapshot)), [`desk`] answers the shim, [`restore`] sees a restore through, [`tell`]
//! tells of it, and [`shelf`] alone touches what is stored.
//!
//! Nothing here has to do with a Migration, and never is a checkpoint taken beside one of the same pod.

pub mod about;
pub mod desk;
pub mod due;
pub mod keep;
pub mod ledger;
pub mod obstacle;
pub mod restore;
pub mod shelf;
pub mod stage;
pub mod take;
pub mod tell;
pub mod watch;

use crate::supervised::Identity;
use serde::{Deserialize, Serialize};
use shelf::Shelf;
use std::path::PathBuf;
use std::sync::Arc;
use tell::Figures;
use tokio::sync::watch::{Receiver, Sender, channel};

/// A container of a pod, however often kubelet makes it anew.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Subject {
    /// Namespace of the pod.
    pub pod_namespace: String,
    /// Name of the pod.
    pub pod_name: String,
    /// UID of the pod.
    pub pod_uid: String,
    /// Name of the container in the pod.
    pub container_name: String,
}

impl From<&Identity> for Subject {
    fn from(identity: &Identity) -> Self {
        let Identity { pod_namespace, pod_name, pod_uid, container_name, .. } = identity.clone();
        Self { pod_namespace, pod_name, pod_uid, container_name }
    }
}

/// What all parts of the agent share about checkpoints.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    /// Where they are.
    pub shelf: Shelf,
    /// What is counted.
    pub figures: Figures,
    /// UID of the pod whose processes are being looked at for one.
    under_way: Arc<Sender<Option<String>>>,
}

impl Checkpoints {
    /// Those in `directory`, of which all together take `quota` bytes at most.
    pub fn new(directory: PathBuf, quota: u64, figures: Figures) -> Self {
        Self { shelf: Shelf::new(directory, quota), figures, under_way: Arc::new(channel(None).0) }
    }

    /// Says that the pod's processes are about to be looked at, until the result is dropped. One at a time.
    fn begin(&self, pod_uid: &str) -> UnderWay {
        self.under_way.send_replace(Some(pod_uid.to_owned()));
        UnderWay(self.under_way.clone())
    }

    /// Waits until no checkpoint of the pod is under way. Whoever is about to move it has been seen by then by whoever would take
    /// the next one.
    pub async fn leave(&self, pod_uid: &str) {
        let mut under_way: Receiver<_> = self.under_way.subscribe();
        // The sender is in `self`, so there is always an answer.
        under_way.wait_for(|uid| uid.as_deref() != Some(pod_uid)).await.ok();
    }
}

/// A checkpoint that is being taken.
#[derive(Debug)]
struct UnderWay(Arc<Sender<Option<String>>>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.send_replace(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn a_move_waits_for_the_checkpoint_of_its_pod_and_for_no_other() {
        let checkpoints = Checkpoints::new("/nowhere".into(), 0, Figures::default());
        let soon = |uid| tokio::time::timeout(Duration::from_millis(20), checkpoints.leave(uid));
        let under_way = checkpoints.begin("u");
        assert!(soon("other").await.is_ok());
        assert!(soon("u").await.is_err());
        drop(under_way);
        assert!(soon("u").await.is_ok());
    }
}
