//! What one container of the pod has on its target: its connection from the source, its restore, its relay. The pod is committed
//! when all of them are where it needs them; see [`TargetLocal::of_pod`](crate::agent::duty::TargetLocal::of_pod).

use super::placing::Placing;
use super::receiving::Receiving;
use super::syncing::Syncing;
use crate::agent::duty::LaneLocal;
use crate::agent::journal::{LaneEntry, RestoreEntry};
use crate::agent::transfer::link::LinkSender;
use crate::agent::transfer::message::{FromTarget, MappedFile};
use crate::agent::transfer::receive::Landing;
use crate::agent::transfer::session::Renewed;
use crate::agent::transfer::wire::TargetStream;
use crate::causes::chain;
use crate::local::{Create, ToRelay, ToShim};
use crate::throttle::CpuLimits;
use std::time::Instant;
use tokio::sync::mpsc;
use tracing::warn;

/// One container of the pod.
#[derive(Debug, Default)]
pub(super) struct Lane {
    /// Name of the container in the pod. Empty in what an agent wrote down that knew of one container a pod only.
    pub(super) container: String,
    pub(super) local: LaneLocal,
    pub(super) landing: Option<Landing>,
    /// To the source, while it is connected.
    pub(super) source: Option<LinkSender<FromTarget>>,
    /// The session of that connection, and what takes those that follow on it.
    pub(super) again: Option<(String, mpsc::Sender<Renewed<TargetStream>>)>,
    /// The task that writes what the source sends.
    pub(super) receiving: Option<Receiving>,
    /// What `runc restore` needs from the start is here.
    pub(super) early: bool,
    /// What the processes have in memory of files, by the source.
    pub(super) mapped: Vec<MappedFile>,
    /// A shim's question that is not answered yet.
    pub(super) asked: Option<(Create, mpsc::Sender<ToShim>)>,
    /// The restore that a shim was told to begin last.
    pub(super) restore: Option<RestoreEntry>,
    /// Whether that has not been heard to have ended.
    pub(super) running: bool,
    pub(super) relay: Option<mpsc::Sender<ToRelay>>,
    /// Cpu limits of the container that is being restored.
    pub(super) limits: CpuLimits,
    /// Files that are put in place for that restore.
    pub(super) placing: Placing,
    /// What has landed, on its way onto the disk.
    pub(super) syncing: Syncing,
    /// What had landed is in place, in a container that waits.
    pub(super) in_place: bool,
    /// CRIU was not given its request, and why is reported: that this restore ends is no news.
    pub(super) refused: bool,
    /// It was heard of the restore that was begun last that it has failed.
    pub(super) failed: bool,
    pub(super) released: Option<Instant>,
    /// CRIU has had its request in the restore that was begun last: it may have left something behind.
    pub(super) had_request: bool,
    /// Its processes were told to run.
    pub(super) told: bool,
    /// It was found in the journal: what lies on the disk has been through the end of an agent, or of the node.
    pub(super) adopted: bool,
    /// An agent before this one began its restore, and nothing has been heard of it since.
    pub(super) unheard: bool,
}

impl Lane {
    /// A container of which nothing is here yet.
    pub(super) fn new(container: &str) -> Self {
        Self { container: container.to_owned(), ..Self::default() }
    }

    /// Whether it is that of the container with this name.
    pub(super) fn is_of(&self, container: &str) -> bool {
        self.container == container || self.container.is_empty()
    }

    /// What the journal has of it.
    pub(super) fn entry(&self) -> LaneEntry {
        LaneEntry {
            container: self.container.clone(),
            restore: self.restore.clone(),
            resumed: self.local.resumed,
            cpu: self.limits.records(),
        }
    }

    /// Whether the restore that was begun last has this token.
    pub(super) fn has_token(&self, token: &str) -> bool {
        self.restore.as_ref().is_some_and(|restore| restore.token == token)
    }

    /// A restore was begun, of which nothing has been heard.
    pub(super) fn begun(&mut self, restore: RestoreEntry) {
        self.restore = Some(restore);
        self.running = true;
        (self.refused, self.failed, self.had_request, self.told) = (false, false, false, false);
        self.relay = None;
        (self.in_place, self.unheard) = (false, false);
        let LaneLocal { staged, resumed, .. } = self.local;
        self.local = LaneLocal { staged, resumed, ..LaneLocal::default() };
    }

    /// Its restore will not come about.
    pub(super) fn takes_no_part(&mut self) {
        self.restore_limits();
        (self.in_place, self.told) = (false, false);
        (self.local.waiting, self.local.released, self.local.held) = (false, false, false);
    }

    /// Whether its processes may have files of the pod's volumes open, or be about to open them: they run, or CRIU uses the images.
    /// `unreleased`: it is certain that CRIU has had none for any container of the pod.
    pub(super) fn may_use_volumes(&self, unreleased: bool) -> bool {
        let LaneLocal { released, resumed, .. } = self.local;
        resumed || released || (self.running && self.unheard && !unreleased)
    }

    /// Whether it has run here, in another pod than this one: what it had in the pod's volumes is not there.
    pub(super) fn has_run_beside(&self, pod_uid: &str) -> bool {
        self.local.resumed && self.restore.as_ref().is_some_and(|restore| restore.pod_uid != pod_uid)
    }

    /// Puts back the cpu limits that were found: the restore has ended. A few writes to files of the kernel. What can't be put back is
    /// kept, and tried again where the attempt comes to its end.
    pub(super) fn restore_limits(&mut self) {
        if let Err(error) = self.limits.restore() {
            warn!(container = self.container, error = %chain(&error), "a cpu limit is not as it was found");
        }
    }

    /// Lets the source go, and ends the writing of what it sends.
    pub(super) async fn hang_up(&mut self) {
        (self.source, self.again) = (None, None);
        if let Some(receiving) = self.receiving.take() {
            receiving.end().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(local: LaneLocal) -> Lane {
        Lane { local, running: true, ..Lane::new("one") }
    }

    #[test]
    fn volumes_are_in_use_from_the_release_on_and_not_only_once_the_processes_are_seen_to_run() {
        let waiting = LaneLocal { staged: true, waiting: true, ..LaneLocal::default() };
        assert!(!lane(waiting).may_use_volumes(false));
        let released = LaneLocal { released: true, ..waiting };
        assert!(lane(released).may_use_volumes(false));
        // Told to run: held no more, and not heard to run yet.
        assert!(lane(LaneLocal { held: true, ..released }).may_use_volumes(false));
        let ended = LaneLocal { resumed: true, ..LaneLocal::default() };
        assert!(Lane { running: false, ..lane(ended) }.may_use_volumes(false));
    }

    #[test]
    fn what_has_run_in_another_pod_is_not_there_for_this_one() {
        let mut ran = lane(LaneLocal { resumed: true, ..LaneLocal::default() });
        assert!(!ran.has_run_beside("pod"), "nobody knows where");
        let [token, pod_uid, container_id] = ["token", "pod", "container"].map(str::to_owned);
        ran.restore = Some(RestoreEntry { token, pod_uid, container_id, bundle: "/bundle".into() });
        assert!(!ran.has_run_beside("pod") && ran.has_run_beside("another"));
        ran.local.resumed = false;
        assert!(!ran.has_run_beside("another"));
    }

    #[test]
    fn what_takes_no_part_was_told_nothing_and_holds_nothing() {
        let mut told = lane(LaneLocal { staged: true, waiting: true, released: true, held: true, resumed: false });
        (told.told, told.in_place, told.had_request) = (true, true, true);
        told.takes_no_part();
        assert_eq!(told.local, LaneLocal { staged: true, ..LaneLocal::default() });
        assert!(!told.told && !told.in_place && told.had_request, "it may have left something behind all the same");
    }

    #[test]
    fn what_an_agent_before_has_begun_may_use_volumes_unless_no_request_was_given() {
        let mut found = Lane { unheard: true, ..lane(LaneLocal::default()) };
        assert!(found.may_use_volumes(false));
        assert!(!found.may_use_volumes(true));
        let [token, pod_uid, container_id] = ["token", "pod", "container"].map(str::to_owned);
        found.begun(RestoreEntry { token, pod_uid, container_id, bundle: "/bundle".into() });
        assert!(!found.may_use_volumes(false), "begun anew");
        let ended = Lane { unheard: true, running: false, ..Lane::new("one") };
        assert!(!ended.may_use_volumes(false));
    }
}
