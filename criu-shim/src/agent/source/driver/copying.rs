//! Before the freeze: connecting, and rounds of memory and files for as long as they are worth it.

use super::{SourceDriver, together};
use crate::agent::beside::Size;
use crate::agent::context::News;
use crate::agent::duty::SourceAt;
use crate::agent::failure::{permanent, retryable};
use crate::agent::journal::{Side, SlowedEntry};
use crate::agent::programs;
use crate::agent::source::calm::calm;
use crate::agent::source::connect::{self, Connected, Peer, PodTrees};
use crate::agent::source::freeze::millis;
use crate::agent::source::precopy::converge::{self, Decision, Progress, Refusal, RoundSeen, Stage};
use crate::agent::source::precopy::estimate::estimate;
use crate::agent::source::precopy::{self, Followed, PreCopy};
use crate::agent::source::watching::Watching;
use crate::causes::chain;
use futures::future::try_join_all;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};
use tideover_crds::{
    Convergence, Failure, FailureReason, MemoryEngine, Migration, PreCopied, Round, SourceStep, Strategy,
};
use tokio::sync::watch::error::RecvError;
use tracing::info;

/// How long the target is waited for that takes the attempt. One that has not by then does so within the freeze.
const TAKING_LIMIT: Duration = Duration::from_secs(1);
/// Most rounds that a report lists: those before the handover.
const LISTED: usize = 32;

impl SourceDriver {
    pub(super) async fn connect(&mut self, migration: &Migration, attempt: u32) {
        let status = migration.status.as_ref();
        let address = status.and_then(|status| status.target_now()?.address.clone());
        let node = status.and_then(|status| status.target_node.clone());
        let (Some(address), Some(node)) = (address, node) else { return };
        let replace_first = status.is_some_and(|status| status.strategy == Some(Strategy::ReplaceFirst));
        self.replace_first = replace_first;
        self.pace = self.pace.under(status.and_then(|status| status.policy.as_ref()));
        let peer = Peer { node, address };
        let last = self.inspected.len().saturating_sub(1);
        let connecting = self.inspected.iter().enumerate().map(|(at, inspected)| {
            let others = || self.inspected.iter().take(last).map(|other| other.container.freezer.clone());
            let pod_trees = if at == last { PodTrees::Too { beside: others().collect() } } else { PodTrees::Elsewhere };
            let (context, key, peer) = (&self.context, &self.key, &peer);
            async move {
                let connected = connect::connect(context, key, attempt, peer, inspected.clone(), pod_trees).await;
                connected.map_err(|failure| inspected.fails(failure))
            }
        });
        let mut lanes = match try_join_all(connecting).await {
            Ok(lanes) => lanes,
            Err(failure) => return self.fail(failure).await,
        };
        let limit = share_of(self.pace.bandwidth_limit, lanes.len());
        for lane in &mut lanes {
            let following = precopy::follow(lane.inspected.container.freezer.clone(), &self.context.node).await;
            lane.sender.set_limit(limit);
            let engine = match &following {
                Ok(followed) => {
                    self.report.notes.extend(followed.fallbacks().into_iter().map(|why| lane.inspected.says(why)));
                    followed.engine()
                }
                Err(reason) => {
                    self.report.notes.push(lane.inspected.says(reason.clone()));
                    MemoryEngine::StopAndCopy
                }
            };
            // What is said of the pod is what is so of the container whose memory comes by the worst way.
            self.report.engine = self.report.engine.max(Some(engine));
            let precopy = PreCopy::new(following.ok(), lane.trees.clone(), lane.round);
            // Elsewhere the processes are rebuilt before the commit, which then needs no disk.
            lane.precopy = Some(if replace_first { precopy } else { precopy.lasting() });
        }
        self.lanes = lanes;
        if self.lanes.len() > 1 && self.lanes.iter().any(|lane| lane.criu.is_outside_ipc()) {
            // Each restore would take away what the one before it has made. What comes from here on is found in the freeze.
            let message = "the pod has several containers, which share System V objects";
            return self.fail(permanent(FailureReason::NotDumpable, message)).await;
        }
        self.reach(SourceAt::Connected, SourceStep::PreCopying);
    }

    /// Waits for news of the object, or from the target. Meanwhile memory and files are copied. A container that is slowed down
    /// does not wait for an agent that was told to end.
    pub(super) async fn wait(&mut self, news: &mut News) -> Result<(), RecvError> {
        if self.lanes.is_empty() {
            return news.changed().await;
        }
        let slowed = self.lanes.iter().any(|lane| !lane.cpu.limits.records().is_empty());
        let copied = tokio::select! {
            changed = news.changed() => return changed,
            () = self.context.told_to_leave(), if slowed => {
                self.leave_slowed().await;
                return Ok(());
            }
            copied = try_join_all(self.lanes.iter_mut().map(round)) => copied,
        };
        match copied {
            Ok(rounds) => self.copied(&rounds).await,
            Err(failure) => self.fail(failure).await,
        }
        Ok(())
    }

    /// How the rounds of all containers have come, each for itself, and what is next for each.
    fn decide(&mut self, stage: Stage, left: Duration) -> Vec<Decision> {
        let progress: Vec<_> = (self.lanes.iter())
            .filter_map(|lane| {
                let precopy = lane.precopy.as_ref()?;
                let beside = self.context.beside.predict(precopy.size(lane.inspected.memory_bytes));
                Some((precopy.follows_memory(), precopy.progress(stage, beside, left)))
            })
            .collect();
        let of_memory = progress.iter().filter(|(follows_memory, _)| *follows_memory);
        self.report.convergence = together::convergence(of_memory.filter_map(|(_, progress)| convergence(progress)));
        self.report.pre_copied = together::pre_copied(progress.iter().map(|(_, progress)| pre_copied(progress.rounds)));
        if stage == Stage::AtTheGo {
            let placing = |(_, progress): &(bool, Progress<'_>)| {
                estimate(progress.rounds, progress.since, progress.beside).map(|estimate| estimate.placing)
            };
            self.placing = progress.iter().filter_map(placing).max().unwrap_or_default();
        }
        progress.iter().map(|(_, progress)| converge::next(&self.pace.aims, progress)).collect()
    }

    fn each_precopy(&mut self, what: impl FnMut(&mut PreCopy)) {
        self.lanes.iter_mut().filter_map(|lane| lane.precopy.as_mut()).for_each(what);
    }

    /// Another round of each container has landed.
    async fn copied(&mut self, rounds: &[RoundSeen]) {
        let (left, converged) = (self.pace.left_before(Instant::now()), self.report.step >= SourceStep::Converged);
        let decisions = self.decide(Stage::Before, left);
        let decision = together::decision(&decisions);
        // Processes come, and one that was protected may have to be compared. Said when the whole becomes worse, and not of every
        // process of a crowd that comes and goes.
        let engine = |lane: &Connected| {
            let (engine, fallbacks) = lane.precopy.as_ref()?.engine()?;
            Some((engine, fallbacks.into_iter().map(|why| lane.inspected.says(why)).collect::<Vec<_>>()))
        };
        for (engine, fallbacks) in self.lanes.iter().filter_map(engine).collect::<Vec<_>>() {
            if self.report.engine < Some(engine) {
                self.report.engine = Some(engine);
                fallbacks.into_iter().for_each(|why| self.note(why));
            }
        }
        // All go to the same node, so that what is decided for one is much the same as for another.
        let compression = self.lanes.iter().find_map(|lane| lane.sender.compression());
        if decision != Decision::Again {
            self.each_precopy(PreCopy::rest);
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
            let took = rounds.iter().map(|round| round.took).max().unwrap_or_default();
            let bytes = rounds.iter().map(|round| round.bytes).sum();
            self.report.rounds.push(Round { bytes, millis: millis(took) });
        }
        match decision {
            Decision::Again => self.reporter.report(self.report.clone()),
            Decision::Wait => {
                self.note("memory is written too fast: waiting for the application to be quieter".to_owned());
                self.reporter.report(self.report.clone());
            }
            Decision::Throttle { .. } => {
                self.slow_down(&decisions, Stage::Before).await;
                self.reporter.report(self.report.clone());
            }
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

    /// Gives what is slowed down its cpu time back at once, and ends the attempt: who comes next begins another.
    async fn leave_slowed(&mut self) {
        self.restore_limits().await;
        let message = "the source's agent was told to end while the container was slowed down";
        self.fail(retryable(FailureReason::AgentRestarted, message)).await;
        self.forget_freeze().await;
    }

    /// Says it once.
    fn note(&mut self, sentence: String) {
        if !self.report.notes.contains(&sentence) {
            self.report.notes.push(sentence);
        }
    }

    /// Leaves each container for which that was decided the percent of the cpu time that it used which the decision says. Where that
    /// can't be done, the policy is asked without it.
    async fn slow_down(&mut self, decisions: &[Decision], stage: Stage) {
        let slowed = self.take_cpu_time(decisions, stage).await;
        for (lane, decision) in self.lanes.iter_mut().zip(decisions) {
            let Some(precopy) = &mut lane.precopy else { continue };
            if let (Ok(()), Decision::Throttle { percent }) = (&slowed, decision) {
                precopy.slowed_down(*percent);
            }
            precopy.hurry();
        }
        match slowed {
            Ok(()) => self.note("the container was slowed down to make its memory converge".to_owned()),
            Err(why) => {
                self.pace.aims.auto_converge = false;
                self.note(format!("the container can't be slowed down: {why}"));
            }
        }
    }

    /// Says in the journal what is about to be changed, and changes it. At the go, what the others have planned is for the freeze.
    async fn take_cpu_time(&mut self, decisions: &[Decision], stage: Stage) -> Result<(), String> {
        let now = Instant::now();
        for (lane, decision) in self.lanes.iter_mut().zip(decisions) {
            if let Decision::Throttle { percent } = decision {
                let planned = lane.cpu.plan_share(*percent, now).map_err(|error| chain(&error))?;
                let container = &lane.inspected.name;
                info!(migration = self.key.name, container, percent, ?stage, ?planned, "to be slowed down");
            }
        }
        // Whoever comes after a kill must know what to put back.
        let written = match stage {
            Stage::Before => {
                let cpu = self.lanes.iter().flat_map(|lane| lane.cpu.limits.records()).collect();
                self.write_journal(self.local.attempt, Side::Slowed(SlowedEntry { cpu })).await
            }
            // There the journal says already that the pod may be frozen, and goes on to say so.
            Stage::AtTheGo => self.write_down(self.local.attempt).await.map(drop),
        };
        written.map_err(|failure| failure.message)?;
        for (lane, decision) in self.lanes.iter_mut().zip(decisions) {
            if matches!(decision, Decision::Throttle { .. }) {
                lane.cpu.carry_out().await.map_err(|error| chain(&error))?;
            }
        }
        Ok(())
    }

    /// What is expected of the freeze to come, to learn from what it will have been. Of several containers one can't be told from
    /// the other afterwards, so that nothing is learned, nor where a pod has to go and another to come within the freeze.
    pub(super) fn expected(&self) -> Option<(Size, f64)> {
        let [lane] = self.lanes.as_slice() else { return None };
        let precopy = lane.precopy.as_ref().filter(|precopy| precopy.follows_memory() && !precopy.lasts())?;
        let size = precopy.size(lane.inspected.memory_bytes);
        Some((size, self.report.convergence.as_ref()?.sent_per_second))
    }

    /// Learns from a freeze that ended in a commit what the next takes beside its pages.
    pub(super) fn learn(&self, expected: Option<(Size, f64)>) {
        let Some(((size, rate), timings)) = expected.zip(self.report.timings.as_ref()) else { return };
        if let Some(frozen) = timings.freeze_millis
            && rate > 0.0
        {
            let crossing = Duration::try_from_secs_f64(timings.bytes as f64 / rate).unwrap_or(Duration::MAX);
            let crossing = crossing.saturating_add(self.placing);
            self.context.beside.learn(size, Duration::from_secs_f64(frozen / 1e3), crossing);
        }
    }

    /// A round right before the cut, so that little is left for it.
    ///
    /// # Errors
    /// As [`SourceDriver::last_rounds`].
    pub(super) async fn round_before_the_cut(&mut self, attempt: u32, news: &mut News) -> Result<(), Failure> {
        let mut watching = Watching::new(news, attempt);
        self.finish_rounds(&mut watching).await?;
        self.each_precopy(PreCopy::hurry);
        a_round_each(self.lanes.iter_mut(), &mut watching).await
    }

    /// Waits for the rounds that are on their way.
    async fn finish_rounds(&mut self, watching: &mut Watching<'_>) -> Result<(), Failure> {
        let is_sending = |lane: &&mut Connected| lane.precopy.as_ref().is_some_and(PreCopy::is_sending);
        a_round_each(self.lanes.iter_mut().filter(is_sending), watching).await
    }

    /// The last rounds before the freeze, at least one of each container, side by side: none of them is done before all are. Returns
    /// what has followed their memory, where something has.
    ///
    /// # Errors
    /// With the failure to report, also where the attempt is called off meanwhile. Nothing is frozen.
    pub(super) async fn last_rounds(
        &mut self,
        attempt: u32,
        news: &mut News,
    ) -> Result<Vec<Option<Followed>>, Failure> {
        let (go, mut watching) = (Instant::now(), Watching::new(news, attempt).unless_deleted());
        // Containers' `create`s wait, and the application is about to stand still for what is sent from here on.
        self.lanes.iter().for_each(|lane| lane.sender.set_limit(None));
        programs::read_ahead(&self.context);
        // What is being sent was looked at before the go.
        self.finish_rounds(&mut watching).await?;
        if self.replace_first {
            // What that write sets going is over before the calm.
            watching.taken(TAKING_LIMIT).await;
        }
        tokio::select! {
            () = calm() => {}
            failure = watching.called_off() => return Err(failure),
        }
        self.each_precopy(PreCopy::at_the_go);
        loop {
            a_round_each(self.lanes.iter_mut(), &mut watching).await?;
            let left = self.pace.left_at_the_go(go, Instant::now());
            let decisions = self.decide(Stage::AtTheGo, left);
            match together::decision(&decisions) {
                Decision::Again => {}
                Decision::Throttle { .. } => {
                    self.slow_down(&decisions, Stage::AtTheGo).await;
                    // It took the place of what was planned for the freeze, and that may be more than is written down.
                    self.plan_dump().await;
                    self.write_down(attempt).await?;
                }
                Decision::Wait => self.each_precopy(PreCopy::rest),
                Decision::Freeze { .. } => break,
                Decision::GiveUp(refusal) => return Err(not_converging(&refusal)),
            }
        }
        let mut all = Vec::new();
        for lane in &mut self.lanes {
            let Some(precopy) = lane.precopy.take() else { return Err(no_rounds()) };
            let (followed, round) = precopy.finish()?;
            lane.round = round;
            all.push(followed);
        }
        Ok(all)
    }
}

/// One more round of one container, or what the target says that ends the attempt.
async fn round(lane: &mut Connected) -> Result<RoundSeen, Failure> {
    let Connected { inspected, sender, receiver, precopy, .. } = lane;
    match precopy {
        Some(precopy) => precopy.next(sender, receiver).await.map_err(|failure| inspected.fails(failure)),
        None => Err(no_rounds()),
    }
}

fn no_rounds() -> Failure {
    retryable(FailureReason::TransferFailed, "the rounds of this attempt have ended")
}

/// A round of each of these containers, unless the attempt is called off.
async fn a_round_each(lanes: impl Iterator<Item = &mut Connected>, watching: &mut Watching<'_>) -> Result<(), Failure> {
    tokio::select! {
        rounds = try_join_all(lanes.map(round)) => rounds.map(drop),
        failure = watching.called_off() => Err(failure),
    }
}

/// What each of `lanes` connections may send in a second, bytes, where all together have a limit.
fn share_of(limit: Option<NonZeroU64>, lanes: usize) -> Option<NonZeroU64> {
    let limit = limit?.get() / u64::try_from(lanes.max(1)).unwrap_or(1);
    NonZeroU64::new(limit.max(1))
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
