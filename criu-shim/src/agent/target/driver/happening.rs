//! What happens to a target: the source comes and sends, a shim asks, a relay speaks.

use super::integrity::{is_the_only_one, not_received, strategy_of};
use super::receiving::Receiving;
use super::{TargetDriver, WORD_LIMIT};
use crate::agent::failure::retryable;
use crate::agent::source::freeze::millis;
use crate::agent::target::event::{Arrival, Event, Return};
use crate::agent::transfer::hello::{self, Answer};
use crate::agent::transfer::message::{Codec, FromTarget, Preamble, VERSION};
use crate::agent::transfer::receive::{ReceiveError, Round, RoundKind};
use crate::agent::transfer::session::Renewed;
use crate::causes::chain;
use crate::local::{Create, ToShim};
use tideover_crds::{FailureReason, Migration, TargetStep, names};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tracing::warn;

impl TargetDriver {
    /// Takes one thing that happened. `migration` is the newest object, if there is one.
    pub(super) async fn take(&mut self, event: Event, migration: Option<&Migration>) {
        match event {
            event if self.rehearsal.concerns(&event) => self.rehearse(event, migration).await,
            Event::Rehearse { create, answer } => self.rehearsal.ask(create, answer).await,
            Event::Source(arrival) => self.source_arrived(arrival, migration).await,
            Event::Again(returned) => self.source_returned(*returned, migration).await,
            Event::Round { attempt, container, round } if attempt == self.local.attempt => {
                if let Some(lane) = self.lane_of(&container) {
                    self.landed(lane, round, migration).await;
                }
            }
            Event::Round { .. } => {}
            Event::Archive { attempt, container, archive } if attempt == self.local.attempt => {
                if let Some(lane) = self.lane_of(&container) {
                    self.archive_lands(lane, archive);
                }
            }
            Event::Archive { .. } => {}
            Event::Create { create, answer } => self.ask(create, answer).await,
            Event::Relay { token, stage, line, criu } => self.relay_came(&token, stage, line, criu).await,
            Event::Placed { container, number, result } => {
                if let Some(lane) = self.lane_of(&container) {
                    self.were_placed(lane, number, result).await;
                }
            }
            Event::Synced { attempt, container, round, result } if attempt == self.local.attempt => {
                if let Some(lane) = self.lane_of(&container) {
                    self.was_synced(lane, round, result).await;
                }
            }
            Event::Synced { .. } => {}
            Event::Taken { attempt, outcome } if attempt == self.local.attempt => self.was_taken(outcome).await,
            Event::StillTaken { attempt, since } if attempt == self.local.attempt => self.is_still_taken(since),
            Event::Kept { attempt, decision } if attempt == self.local.attempt => self.was_kept(decision).await,
            Event::Overdue { attempt } if attempt == self.local.attempt => self.is_overdue().await,
            Event::Taken { .. } | Event::StillTaken { .. } | Event::Kept { .. } | Event::Overdue { .. } => {}
            Event::Held { token } => {
                if let Some(lane) = self.lane_of_token(&token) {
                    self.held(lane, migration).await;
                }
            }
            Event::Ended { token, success, message, heard } => {
                // Of a restore before this one nothing follows.
                if let Some(lane) = self.lane_of_token(&token) {
                    self.lanes[lane].running = false;
                    self.lanes[lane].relay = None;
                    if success { self.resumed(lane).await } else { self.restore_failed(lane, message, migration).await }
                }
                // A relay that is gone has been heard before.
                heard.send(()).ok();
            }
            Event::Restored { token, exit_code } => {
                if let Some(lane) = self.lane_of_token(&token) {
                    self.runc_ended(lane, exit_code, migration).await;
                }
            }
            Event::RelayLost { token } => {
                if let Some(lane) = self.lane_of_token(&token) {
                    let lane = &mut self.lanes[lane];
                    lane.relay = None;
                    lane.in_place = false;
                    lane.local.waiting = false;
                    lane.local.held = false;
                    lane.placing.leave_container();
                }
            }
        }
        self.answer(migration).await;
        self.answer_rehearsal().await;
    }

    /// Takes what has happened while something else was done.
    pub(super) async fn take_what_came(&mut self, migration: &Migration) {
        while let Ok(event) = self.events.try_recv() {
            self.take(event, Some(migration)).await;
        }
    }

    /// Keeps a shim's question.
    pub(super) async fn ask(&mut self, create: Create, answer: mpsc::Sender<ToShim>) {
        match self.lane_of(&create.container_name) {
            Some(lane) => self.lanes[lane].asked = Some((create, answer)),
            // A shim that is gone has been answered by that.
            None => {
                let reason = format!("nothing is to be restored as {}", create.container_name);
                answer.send(ToShim::Refuse { reason }).await.ok();
            }
        }
    }

    async fn runc_ended(&mut self, lane: usize, exit_code: i32, migration: Option<&Migration>) {
        let ended_unheard = std::mem::take(&mut self.lanes[lane].running);
        let restored = exit_code == 0;
        if restored && self.committed_here() {
            // Nothing lets CRIU go on but the word after the commit. The relay may be gone before it could say so.
            self.resumed(lane).await;
        } else if !restored && ended_unheard {
            self.restore_failed(lane, format!("runc restore ended with {exit_code}"), migration).await;
        }
    }

    async fn source_arrived(&mut self, arrival: Arrival, migration: Option<&Migration>) {
        let codec = arrival.preamble.codecs.iter().copied().find(|codec| *codec == Codec::Lz4);
        let Preamble { version, attempt, container, session, bytes, mapped, .. } = arrival.preamble;
        let lane = self.lane_of(&container);
        let refusal = match (self.refusal(&arrival.names, version, attempt, migration), lane) {
            (Some(refusal), _) => Some(refusal),
            (None, None) => Some(format!("no container {container} is expected here")),
            (None, Some(lane)) if self.local.failed || self.lanes[lane].source.is_some() => {
                Some("this attempt has had its connection".to_owned())
            }
            (None, Some(_)) => None,
        };
        let lane = lane.filter(|_| refusal.is_none());
        let landing = lane.and_then(|lane| Some((lane, self.lanes[lane].landing.take()?)));
        let Some((lane, mut landing)) = landing else {
            let message = refusal.unwrap_or_else(|| "nothing is expected here".to_owned());
            warn!(migration = self.key.name, message, "source refused");
            arrival.sender.say(&FromTarget::Refused { message }).await.ok();
            return;
        };
        self.lanes[lane].source = Some(arrival.sender);
        self.lanes[lane].again = Some((session, arrival.again));
        self.lanes[lane].mapped = mapped;
        self.warm(lane);
        if let Err(error) = landing.expect(bytes) {
            return self.fail(retryable(FailureReason::TransferFailed, chain(&error))).await;
        }
        self.tell_source_of(lane, FromTarget::Accepted { codec }).await;
        let (events, mut receiver) = (self.own_events.clone(), arrival.receiver);
        let mut landing = landing.followed_by(self.follower(attempt, &container));
        self.lanes[lane].receiving = Some(Receiving::begin(async move {
            loop {
                let round = landing.round(&mut receiver).await;
                let last = round.as_ref().map_or(true, |round| round.kind == RoundKind::Last);
                let container = container.clone();
                if events.send(Event::Round { attempt, container, round }).await.is_err() || last {
                    return;
                }
            }
        }));
    }

    /// Hands a connection over to the link that it goes on with.
    async fn source_returned(&mut self, returned: Return, migration: Option<&Migration>) {
        let Return { names, link, mut stream } = returned;
        let refusal = self.refusal(&names, link.version, link.attempt, migration);
        let mut links = self.lanes.iter().filter_map(|lane| lane.again.as_ref());
        let again = links.find(|(session, _)| *session == link.session).filter(|_| !self.local.failed);
        let message = match (refusal, again) {
            (Some(refusal), _) => refusal,
            (None, None) => "there is nothing to go on with".to_owned(),
            (None, Some((_, again))) => {
                match again.try_send(Renewed { stream, peer_has: link.taken, unanswered: true }) {
                    Ok(()) => return,
                    Err(TrySendError::Full(renewed) | TrySendError::Closed(renewed)) => stream = renewed.stream,
                }
                "what it was to go on with has ended".to_owned()
            }
        };
        warn!(migration = self.key.name, message, "source refused");
        // One that does not listen is gone all the same.
        tokio::time::timeout(WORD_LIMIT, hello::answer(&mut stream, &Answer::Refused { message })).await.ok();
    }

    /// Why a source with these `names` in its certificate is not the one that is expected, if it is not.
    fn refusal(&self, names: &[String], version: u32, attempt: u32, migration: Option<&Migration>) -> Option<String> {
        match migration.and_then(|migration| migration.status.as_ref()?.source_pod.as_ref()?.node.clone()) {
            None => Some("the move has no source yet".to_owned()),
            Some(node) if !names.contains(&names::agent_identity(&node)) => {
                Some(format!("the certificate is not that of node {node}"))
            }
            Some(_) if version != VERSION => Some(format!("this agent speaks version {VERSION} and not {version}")),
            Some(_) if attempt != self.local.attempt => {
                Some(format!("the attempt here is {} and not {attempt}", self.local.attempt))
            }
            Some(_) => None,
        }
    }

    async fn landed(&mut self, lane: usize, round: Result<Round, ReceiveError>, migration: Option<&Migration>) {
        let settled = match (round, strategy_of(migration)) {
            (Ok(round), Ok(strategy)) => {
                self.settle(lane, &round, strategy).await.map(|()| (round, is_the_only_one(strategy)))
            }
            (Ok(_), Err(failure)) => Err(failure),
            (Err(error), _) => Err(not_received(&error)),
        };
        match settled {
            Ok((round, only)) => {
                let digest = round.manifest.digest();
                self.tell_source_of(lane, FromTarget::Verified { round: round.number, digest }).await;
                match round.kind {
                    RoundKind::Early => {
                        self.lanes[lane].early = true;
                        self.lanes[lane].placing.landed(round.number);
                        if only {
                            self.bring_to_disk(lane, round.number);
                        } else if self.lanes[lane].local.waiting {
                            self.place_what_landed(lane);
                        }
                    }
                    RoundKind::Rehearsal => self.rehearsal.land(&self.lanes[lane].container),
                    RoundKind::Last => {
                        self.lanes[lane].early = true;
                        self.lanes[lane].local.staged = true;
                        let timings = self.timings();
                        timings.receive_millis = timings.receive_millis.max(millis(round.took));
                        if self.pod().staged {
                            self.reach(TargetStep::Staged);
                            self.expect_restore();
                        }
                    }
                }
            }
            Err(failure) => self.fail(failure).await,
        }
    }
}
