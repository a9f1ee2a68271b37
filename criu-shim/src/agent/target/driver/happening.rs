//! What happens to a target: the source comes and sends, a shim asks, a relay speaks.

use super::integrity::not_received;
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
use tideover_crds::{FailureReason, Migration, TargetStep, names};
use tokio::sync::mpsc::error::TrySendError;
use tracing::warn;

impl TargetDriver {
    /// Takes one thing that happened. `migration` is the newest object, if there is one.
    pub(super) async fn take(&mut self, event: Event, migration: Option<&Migration>) {
        match event {
            event if self.rehearsal.concerns(&event) => self.rehearse(event, migration).await,
            Event::Rehearse { create, answer } => self.rehearsal.ask(create, answer),
            Event::Source(arrival) => self.source_arrived(arrival, migration).await,
            Event::Again(returned) => self.source_returned(*returned, migration).await,
            Event::Round { attempt, round } if attempt == self.local.attempt => self.landed(round, migration).await,
            Event::Round { .. } => {}
            Event::Create { create, answer } => self.asked = Some((create, answer)),
            Event::Relay { token, stage, line, criu } => self.relay_came(&token, stage, line, criu).await,
            Event::Placed { number, result } => self.were_placed(number, result).await,
            Event::Held { token } if self.is_current(&token) => self.held().await,
            Event::Held { .. } => {}
            Event::Ended { token, success, message, heard } if self.is_current(&token) => {
                self.running = false;
                self.relay = None;
                if success {
                    self.resumed().await
                } else {
                    self.restore_failed(message, migration).await
                }
                // A relay that is gone has been heard before.
                heard.send(()).ok();
            }
            Event::Restored { token, exit_code } if self.is_current(&token) => {
                let ended_unheard = std::mem::take(&mut self.running);
                let restored = exit_code == 0;
                if restored && self.committed_here() {
                    // Nothing lets CRIU go on but the word after the commit. The relay may be gone before it could say so.
                    self.resumed().await;
                } else if !restored && ended_unheard {
                    self.restore_failed(format!("runc restore ended with {exit_code}"), migration).await;
                }
            }
            // Of a restore before this one: nothing follows from it.
            Event::Ended { heard, .. } => {
                heard.send(()).ok();
            }
            Event::Restored { .. } => {}
            Event::RelayLost { token } if self.is_current(&token) => {
                self.relay = None;
                self.local.waiting = false;
                self.local.held = false;
                self.placing.leave_container();
            }
            Event::RelayLost { .. } => {}
        }
        self.answer(migration).await;
        self.answer_rehearsal().await;
    }

    pub(super) fn is_current(&self, token: &str) -> bool {
        self.restore.as_ref().is_some_and(|restore| restore.token == token)
    }

    async fn source_arrived(&mut self, arrival: Arrival, migration: Option<&Migration>) {
        let Preamble { version, attempt, .. } = arrival.preamble;
        let codec = arrival.preamble.codecs.iter().copied().find(|codec| *codec == Codec::Lz4);
        let refusal = match self.refusal(&arrival.names, version, attempt, migration) {
            None if self.local.failed || self.source.is_some() => {
                Some("this attempt has had its connection".to_owned())
            }
            refusal => refusal,
        };
        let landing = if refusal.is_none() { self.landing.take() } else { None };
        let Some(mut landing) = landing else {
            let message = refusal.unwrap_or_else(|| "nothing is expected here".to_owned());
            warn!(migration = self.key.name, message, "source refused");
            arrival.sender.say(&FromTarget::Refused { message }).await.ok();
            return;
        };
        self.source = Some(arrival.sender);
        self.again = Some((arrival.preamble.session, arrival.again));
        if let Err(error) = landing.expect(arrival.preamble.bytes) {
            return self.fail(retryable(FailureReason::TransferFailed, chain(&error))).await;
        }
        self.tell_source(FromTarget::Accepted { codec }).await;
        let (events, attempt, mut receiver) = (self.own_events.clone(), self.local.attempt, arrival.receiver);
        self.receiving = Some(Receiving::begin(async move {
            loop {
                let round = landing.round(&mut receiver).await;
                let last = round.as_ref().map_or(true, |round| round.kind == RoundKind::Last);
                if events.send(Event::Round { attempt, round }).await.is_err() || last {
                    return;
                }
            }
        }));
    }

    /// Hands a connection over to the link that it goes on with.
    async fn source_returned(&mut self, returned: Return, migration: Option<&Migration>) {
        let Return { names, link, mut stream } = returned;
        let refusal = self.refusal(&names, link.version, link.attempt, migration);
        let again = self.again.as_ref().filter(|(session, _)| *session == link.session && !self.local.failed);
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

    async fn landed(&mut self, round: Result<Round, ReceiveError>, migration: Option<&Migration>) {
        let strategy = migration.and_then(|migration| migration.status.as_ref()?.strategy);
        let settled = match round {
            Ok(round) => self.settle(&round, strategy).await.map(|()| round),
            Err(error) => Err(not_received(&error)),
        };
        match settled {
            Ok(round) => {
                let digest = round.manifest.digest();
                self.tell_source(FromTarget::Verified { round: round.number, digest }).await;
                match round.kind {
                    RoundKind::Early => {
                        self.early = true;
                        self.placing.landed(round.number);
                        if self.local.waiting {
                            self.place_what_landed();
                        }
                    }
                    RoundKind::Rehearsal => self.rehearsal.land(),
                    RoundKind::Last => {
                        self.early = true;
                        self.local.staged = true;
                        self.timings().receive_millis = millis(round.took);
                        self.reach(TargetStep::Staged);
                    }
                }
            }
            Err(failure) => self.fail(failure).await,
        }
    }
}
