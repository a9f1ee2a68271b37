//! Before the freeze: connecting, and rounds of memory and files for as long as they are worth it.

use super::SourceDriver;
use crate::agent::beside::Size;
use crate::agent::context::News;
use crate::agent::duty::SourceAt;
use crate::agent::failure::retryable;
use crate::agent::journal::{Side, SlowedEntry};
use crate::agent::source::calm::calm;
use crate::agent::source::connect::{self, Connected, Peer};
use crate::agent::source::cpu;
use crate::agent::source::freeze::millis;
use crate::agent::source::precopy::converge::{self, Decision, Progress, Refusal, RoundSeen, Stage};
use crate::agent::source::precopy::estimate::estimate;
use crate::agent::source::precopy::{self, Followed, PreCopy};
use crate::agent::source::watching::Watching;
use crate::agent::transfer::link::Incoming;
use crate::agent::transfer::message::FromTarget;
use crate::causes::chain;
use std::time::{Duration, Instant};
use tideover_crds::{
    Convergence, Failure, FailureReason, MemoryEngine, Migration, PreCopied, Round, SourceReport, SourceStep, Strategy,
};
use tokio::sync::watch::error::RecvError;
use tracing::info;

/// Most rounds that a report lists: those before the handover.
const LISTED: usize = 32;

/// What is said where a state waits on the target's disk for the name to be free.
const ON_DISK: &str =
    "all memory is copied in the freeze, because the state lies on the target's disk until the pod's name is free";

impl SourceDriver {
    pub(super) async fn connect(&mut self, migration: &Migration, attempt: u32) {
        let status = migration.status.as_ref();
        let address = status.and_then(|status| status.target_now()?.address.clone());
        let node = status.and_then(|status| status.target_node.clone());
        let (Some(address), Some(node), Some(inspected)) = (address, node, self.inspected.clone()) else { return };
        let replace_first = status.is_some_and(|status| status.strategy == Some(Strategy::ReplaceFirst));
        self.pace = self.pace.under(status.and_then(|status| status.policy.as_ref()));
        let peer = Peer { node, address };
        let mut connected = match connect::connect(&self.context, &self.key, attempt, &peer, inspected).await {
            Ok(connected) => connected,
            Err(failure) => return self.fail(failure).await,
        };
        let freezer = connected.inspected.container.freezer.clone();
        let following = if replace_first { precopy::follow(freezer).await } else { Err(ON_DISK.to_owned()) };
        let (trees, round) = (connected.trees.clone(), connected.round);
        if replace_first {
            connected.sender.set_limit(self.pace.bandwidth_limit);
        }
        match following {
            Ok(followed) => {
                self.report.engine = Some(followed.engine());
                self.report.notes.extend(followed.fallbacks());
                connected.precopy = Some(PreCopy::new(Some(followed), trees, round));
                self.connected = Some(connected);
                self.reach(SourceAt::Connected, SourceStep::PreCopying);
            }
            Err(reason) => {
                self.report.notes.push(reason);
                self.report.engine = Some(MemoryEngine::StopAndCopy);
                connected.precopy = replace_first.then(|| PreCopy::new(None, trees, round));
                self.connected = Some(connected);
                self.reach(SourceAt::Connected, SourceStep::PreCopying);
                if !replace_first {
                    // Without a round before the freeze, it has converged as soon as it is connected.
                    self.reach(SourceAt::Connected, SourceStep::Converged);
                }
            }
        }
    }

    /// Waits for news of the object, or from the target. Meanwhile memory and files are copied. A container that is slowed down
    /// does not wait for an agent that was told to end.
    pub(super) async fn wait(&mut self, news: &mut News) -> Result<(), RecvError> {
        let Some(connected) = &mut self.connected else { return news.changed().await };
        let Connected { sender, receiver, precopy, cpu, .. } = connected;
        let slowed = !cpu.limits.records().is_empty();
        let copied = match precopy {
            Some(precopy) => tokio::select! {
                changed = news.changed() => return changed,
                () = self.context.told_to_leave(), if slowed => {
                    self.leave_slowed().await;
                    return Ok(());
                }
                copied = precopy.next(sender, receiver) => copied,
            },
            None => tokio::select! {
                changed = news.changed() => return changed,
                said = receiver.next() => Err(match said {
                    Ok(Incoming::Message(FromTarget::Failed { failure })) => failure,
                    Ok(other) => retryable(FailureReason::TransferFailed, format!("the target said {other:?} too early")),
                    Err(error) => retryable(FailureReason::TransferFailed, chain(&error)),
                }),
            },
        };
        match copied {
            Ok(round) => self.copied(round).await,
            Err(failure) => self.fail(failure).await,
        }
        Ok(())
    }

    /// Another round has landed.
    async fn copied(&mut self, round: RoundSeen) {
        let (left, converged) = (self.pace.left_before(Instant::now()), self.report.step >= SourceStep::Converged);
        let Some(connected) = &mut self.connected else { return };
        let Some(precopy) = &mut connected.precopy else { return };
        let beside = self.context.beside.predict(precopy.size(connected.inspected.memory_bytes));
        let progress = precopy.progress(Stage::Before, beside, left);
        let decision = converge::next(&self.pace.aims, &progress);
        self.report.convergence = convergence(&progress).filter(|_| precopy.follows_memory());
        self.report.pre_copied = Some(pre_copied(progress.rounds));
        // Processes come, and one that was protected may have to be compared. Said when the whole becomes worse, and not of every
        // process of a crowd that comes and goes.
        if let Some((engine, fallbacks)) = precopy.engine().filter(|(engine, _)| self.report.engine < Some(*engine)) {
            self.report.engine = Some(engine);
            fallbacks.into_iter().for_each(|why| note(&mut self.report, why));
        }
        let compression = connected.sender.compression();
        if decision != Decision::Again {
            precopy.rest();
        }
        if let Some(verdict) = compression.filter(|_| self.report.compression.is_none()) {
            self.report.compression = Some(verdict.compression);
            self.note(verdict.to_string());
        }
        if converged {
            // What rounds come to until the go is looked at then.
            return;
        }
        if self.report.rounds.len() < LISTED {
            self.report.rounds.push(Round { bytes: round.bytes, millis: millis(round.took) });
        }
        match decision {
            Decision::Again => self.reporter.report(self.report.clone()),
            Decision::Wait => {
                self.note("memory is written too fast: waiting for the application to be quieter".to_owned());
                self.reporter.report(self.report.clone());
            }
            Decision::Throttle { percent } => self.slow_down(percent).await,
            Decision::Freeze { predicted } => {
                let aim = self.pace.aims.max_downtime;
                if predicted > aim {
                    self.note(format!(
                        "memory is written about as fast as it is copied: the freeze may take {:.0} ms, {:.0} ms were aimed for",
                        millis(predicted),
                        millis(aim)
                    ));
                }
                self.reach(SourceAt::Connected, SourceStep::Converged);
            }
            Decision::GiveUp(refusal) => self.fail(not_converging(&refusal)).await,
        }
    }

    /// Gives the container its cpu time back at once, and ends the attempt: who comes next begins another.
    async fn leave_slowed(&mut self) {
        if let Some(connected) = &mut self.connected {
            cpu::restored(std::mem::take(&mut connected.cpu.limits)).await;
        }
        let message = "the source's agent was told to end while the container was slowed down";
        self.fail(retryable(FailureReason::AgentRestarted, message)).await;
        self.forget_freeze().await;
    }

    /// Says it once.
    fn note(&mut self, sentence: String) {
        note(&mut self.report, sentence);
    }

    /// Leaves the container `percent` of the cpu time that it used. Where that can't be done, the policy is asked without it.
    async fn slow_down(&mut self, percent: u32) {
        let Some(mut connected) = self.connected.take() else { return };
        if let Some(mut precopy) = connected.precopy.take() {
            let slowed = self.take_cpu_time(&mut connected, percent, Stage::Before).await;
            self.slowed_down(&mut precopy, percent, slowed);
            connected.precopy = Some(precopy);
        }
        self.connected = Some(connected);
        self.reporter.report(self.report.clone());
    }

    fn slowed_down(&mut self, precopy: &mut PreCopy, percent: u32, slowed: Result<(), String>) {
        match slowed {
            Ok(()) => {
                precopy.slowed_down(percent);
                self.note("the container was slowed down to make its memory converge".to_owned());
            }
            Err(why) => {
                self.pace.aims.auto_converge = false;
                self.note(format!("the container can't be slowed down: {why}"));
            }
        }
        precopy.hurry();
    }

    async fn take_cpu_time(&self, connected: &mut Connected, percent: u32, stage: Stage) -> Result<(), String> {
        let planned = connected.cpu.plan_share(percent, Instant::now()).map_err(|error| chain(&error))?;
        // Whoever comes after a kill must know what to put back.
        let written = match stage {
            Stage::Before => {
                let slowed = SlowedEntry { cpu: connected.cpu.limits.records() };
                self.write_journal(connected.attempt, Side::Slowed(slowed)).await
            }
            // There the journal says already that the pod may be frozen, and goes on to say so.
            Stage::AtTheGo => self.write_down(connected.attempt, connected).await.map(drop),
        };
        written.map_err(|failure| failure.message)?;
        connected.cpu.carry_out().await.map_err(|error| chain(&error))?;
        info!(migration = self.key.name, attempt = connected.attempt, percent, ?stage, ?planned, "slowed down");
        Ok(())
    }

    /// What is expected of the freeze to come, to learn from what it will have been.
    pub(super) fn expected(&self, connected: &Connected) -> Option<(Size, f64)> {
        let precopy = connected.precopy.as_ref().filter(|precopy| precopy.follows_memory())?;
        let size = precopy.size(connected.inspected.memory_bytes);
        Some((size, self.report.convergence.as_ref()?.sent_per_second))
    }

    /// Learns from a freeze that ended in a commit what the next takes beside its pages.
    pub(super) fn learn(&self, expected: Option<(Size, f64)>) {
        let Some(((size, rate), timings)) = expected.zip(self.report.timings.as_ref()) else { return };
        if rate > 0.0 && timings.freeze_millis > 0.0 {
            let crossing = Duration::try_from_secs_f64(timings.bytes as f64 / rate).unwrap_or(Duration::MAX);
            let crossing = crossing.saturating_add(self.placing);
            self.context.beside.learn(size, Duration::from_secs_f64(timings.freeze_millis / 1e3), crossing);
        }
    }

    /// The last rounds before the freeze, at least one. Returns what has followed the memory, if anything has.
    ///
    /// # Errors
    /// With the failure to report, also where the attempt is called off meanwhile. Nothing is frozen.
    pub(super) async fn last_rounds(
        &mut self,
        connected: &mut Connected,
        news: &mut News,
    ) -> Result<Option<Followed>, Failure> {
        let Some(mut precopy) = connected.precopy.take() else { return Ok(None) };
        let (go, mut watching) = (Instant::now(), Watching::new(news, connected.attempt));
        // A container's `create` waits, and the application is about to stand still for what is sent from here on.
        connected.sender.set_limit(None);
        if precopy.is_sending() {
            // What it sends was looked at before the go.
            round_at_the_go(&mut precopy, connected, &mut watching).await?;
        }
        tokio::select! {
            () = calm() => {}
            failure = watching.called_off() => return Err(failure),
        }
        precopy.at_the_go();
        loop {
            round_at_the_go(&mut precopy, connected, &mut watching).await?;
            let beside = self.context.beside.predict(precopy.size(connected.inspected.memory_bytes));
            let left = self.pace.left_at_the_go(go, Instant::now());
            let progress = precopy.progress(Stage::AtTheGo, beside, left);
            self.report.convergence = convergence(&progress).filter(|_| precopy.follows_memory());
            self.report.pre_copied = Some(pre_copied(progress.rounds));
            self.placing = estimate(progress.rounds, progress.since, beside).map_or(Duration::ZERO, |one| one.placing);
            match converge::next(&self.pace.aims, &progress) {
                Decision::Again => {}
                Decision::Throttle { percent } => {
                    let slowed = self.take_cpu_time(connected, percent, Stage::AtTheGo).await;
                    // It took the place of what was planned for the freeze.
                    connected.cpu.plan_lift();
                    self.slowed_down(&mut precopy, percent, slowed);
                }
                Decision::Wait => precopy.rest(),
                Decision::Freeze { .. } => break,
                Decision::GiveUp(refusal) => return Err(not_converging(&refusal)),
            }
        }
        let (followed, round) = precopy.finish()?;
        connected.round = round;
        Ok(followed)
    }
}

fn note(report: &mut SourceReport, sentence: String) {
    if !report.notes.contains(&sentence) {
        report.notes.push(sentence);
    }
}

async fn round_at_the_go(
    precopy: &mut PreCopy,
    connected: &mut Connected,
    watching: &mut Watching<'_>,
) -> Result<RoundSeen, Failure> {
    tokio::select! {
        round = precopy.next(&connected.sender, &mut connected.receiver) => round,
        failure = watching.called_off() => Err(failure),
    }
}

/// What is reported of the rounds so far.
fn convergence(progress: &Progress<'_>) -> Option<Convergence> {
    let estimate = estimate(progress.rounds, progress.since, progress.beside)?;
    Some(Convergence {
        sent_per_second: estimate.sent_per_second,
        written_per_second: estimate.written_per_second,
        predicted_freeze_millis: millis(estimate.predicted),
        cpu_percent: (progress.cpu_percent < 100).then_some(progress.cpu_percent),
    })
}

fn not_converging(refusal: &Refusal) -> Failure {
    retryable(FailureReason::NotConverging, refusal.to_string())
}

/// All that crossed in `rounds`.
fn pre_copied(rounds: &[RoundSeen]) -> PreCopied {
    PreCopied {
        rounds: u32::try_from(rounds.len()).unwrap_or(u32::MAX),
        bytes: rounds.iter().map(|round| round.bytes).sum(),
        millis: rounds.iter().map(|round| millis(round.took)).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_round_counts() {
        let round = |(bytes, took)| RoundSeen {
            bytes,
            took: Duration::from_millis(took),
            exposed: Duration::ZERO,
            held_back: Duration::ZERO,
            all_looked: true,
            placing: None,
        };
        let rounds = [(7, 2), (3, 1)].map(round);
        assert_eq!(pre_copied(&rounds), PreCopied { rounds: 2, bytes: 10, millis: 3.0 });
    }
}
