//! One move during which one process is ended, and the proof of when.
//!
//! A strike counts for a moment only if the move was seen in it before the signal was sent, and a look that began after
//! the signal finds the move in it still. For the phases before the freeze, which may be shorter than a look at the object,
//! the times in `status.phases` say the same: they and the signal are by one clock.
//!
//! The agent that follows upon one that was ended commits within a tenth of a second what that one had taken, and a look at the
//! object takes as long. It is kept back until that look is over.

use anyhow::{Context, Result};
use e2e::scenario::moment::{Moment, Signs, phase_throughout};
use e2e::scenario::sandbox::Pod;
use e2e::scenario::under_way::UnderWay;
use e2e::scenario::victim::{Stopped, Victim};
use e2e::scenario::watch::Watch;
use e2e::scenario::{Cluster, LIMIT, Sandbox, migration, until};
use jiff::Timestamp;
use serde_json::Value;
use std::collections::BTreeMap;

/// Who is ended.
#[derive(Debug, Clone, Copy)]
pub enum Who {
    /// The leading replica of the operator.
    Operator,
    /// The agent on the source.
    SourceAgent,
    /// The agent on the target.
    TargetAgent,
    /// The CRIU that dumps on the source.
    SourceCriu,
    /// The CRIU that restores on the target.
    TargetCriu,
}

impl Who {
    /// Whether it costs the attempt at most.
    pub fn is_criu(self) -> bool {
        matches!(self, Self::SourceCriu | Self::TargetCriu)
    }

    /// Who would start it again, where that is quick, on each node on which it may be; stopped.
    fn keepers(self, cluster: &Cluster, source: &str) -> Result<Vec<Stopped>> {
        let nodes = match self {
            Self::SourceAgent => vec![source.to_owned()],
            Self::TargetAgent => cluster.workers().into_iter().filter(|node| node != source).collect(),
            Self::Operator | Self::SourceCriu | Self::TargetCriu => Vec::new(),
        };
        nodes.iter().map(|node| Stopped::new(cluster.keeper(node)?)).collect()
    }
}

/// What came of a move.
pub struct Outcome {
    /// The Migration at its end.
    pub object: Value,
    /// Whether the victim was ended in the moment that was wanted, beyond doubt.
    pub proven: bool,
    /// The phase that the object was in when the signal was sent; `None` where it changed just then, or none was sent.
    pub phase: Option<String>,
}

/// Moves the pod, ends `who` at `moment`, and waits for the end of the move, whatever it is.
pub fn strike(
    cluster: &Cluster,
    sandbox: &Sandbox,
    watch: &Watch,
    name: &str,
    pod: &Pod,
    (who, moment): (Who, Moment),
) -> Result<Outcome> {
    let before = Victims::find(cluster, who, &pod.node)?;
    let kept_back = who.keepers(cluster, &pod.node)?;
    let mut under_way = UnderWay::begin(cluster, sandbox, watch, name, &pod.name)?;
    let victims = match before {
        Some(victims) => Some(victims),
        None => under_way.seen_in(Moment::Handover, |object| Victims::warm(cluster, who, object))?,
    };
    let struck = match victims {
        Some(victims) => under_way.seen_in(moment, |object| {
            let strike = |victim: &Victim| {
                let before = Timestamp::now();
                victim.kill().map(|was_there| (was_there, before, Timestamp::now()))
            };
            let struck = strike(victims.of(object)?);
            // runc asks a CRIU for its version first, which may have been the one that was found.
            if matches!(struck, Ok((false, ..)))
                && let Some(Victims::One(victim)) = Victims::warm(cluster, who, object)
            {
                return Some(strike(&victim));
            }
            Some(struck)
        })?,
        None => None,
    };
    let Some(struck) = struck else {
        drop(kept_back);
        let object = migration::ended(sandbox, &pod.name, LIMIT)?;
        return Ok(Outcome { object, proven: false, phase: None });
    };
    let found = under_way.signs();
    let (was_there, before, after) = struck?;
    let later = sandbox.get(&["migration", name])?.context("the Migration is gone")?;
    drop(kept_back);
    let still = moment.held_until(&found, Signs::of(&later).owner);
    let object = migration::ended(sandbox, &pod.name, LIMIT)?;
    let phase = phase_throughout(&object, before, after);
    let in_time = match (who, moment.phase()) {
        // What it was ended in is over at once, and the attempt has failed for it: before the commit, therefore.
        (Who::TargetCriu, _) => has_failed(&object, "RestoreFailed"),
        // What holds the source's processes, and no more, is not missed: the commit comes when it comes.
        (Who::SourceCriu, None) if moment == Moment::Restoring => moment.holds(&found),
        (_, Some(wanted)) => phase.as_deref() == Some(wanted),
        (_, None) => still,
    };
    Ok(Outcome { object, proven: was_there && in_time, phase })
}

/// Whether an attempt of the move has failed for `reason`.
fn has_failed(object: &Value, reason: &str) -> bool {
    let failures = object["status"]["failures"].as_array();
    failures.is_some_and(|failures| failures.iter().any(|failure| failure["reason"] == reason))
}

/// The processes that may have to be ended, found before the move comes to the moment.
enum Victims {
    One(Victim),
    /// The agent of each node that may become the target.
    Targets(BTreeMap<String, Victim>),
}

impl Victims {
    /// Those that run before the move begins: waits until they do, because those of the move before may not be back yet.
    fn find(cluster: &Cluster, who: Who, source: &str) -> Result<Option<Self>> {
        let look = || match who {
            Who::Operator => Ok(Some(Self::One(cluster.leading_operator()?))),
            Who::SourceAgent => Ok(Some(Self::One(cluster.agent(source)?))),
            Who::TargetAgent => {
                let others = cluster.workers().into_iter().filter(|node| node != source);
                let agents = others.map(|node| Ok((node.clone(), cluster.agent(&node)?)));
                Ok(Some(Self::Targets(agents.collect::<Result<_>>()?)))
            }
            Who::SourceCriu | Who::TargetCriu => Ok::<_, anyhow::Error>(None),
        };
        until(format!("{who:?} to run"), LIMIT, || Ok(look().ok()))
    }

    /// Those that are started for the move, long before they get anything to do.
    fn warm(cluster: &Cluster, who: Who, object: &Value) -> Option<Self> {
        let node = match who {
            Who::SourceCriu => &object["status"]["sourcePod"]["node"],
            Who::TargetCriu => &object["status"]["targetNode"],
            Who::Operator | Who::SourceAgent | Who::TargetAgent => return None,
        };
        cluster.criu(node.as_str()?).ok().map(Self::One)
    }

    /// The one to end, once it is known.
    fn of(&self, object: &Value) -> Option<&Victim> {
        match self {
            Self::One(victim) => Some(victim),
            Self::Targets(agents) => agents.get(object["status"]["targetNode"].as_str()?),
        }
    }
}
