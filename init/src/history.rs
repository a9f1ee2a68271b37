//! What of the past matters for the next start.

use crate::clock::Moment;
use crate::config::StartLimit;
use std::collections::VecDeque;
use std::time::Duration;

/// When the application was started on this node, as far back as the start limit looks, how often it was restarted, and when it
/// came here if it was moved because of that limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    starts: VecDeque<Moment>,
    restarts: u32,
    arrived: Option<Moment>,
}

impl History {
    /// Notes a start, the first one or another.
    pub fn started(&mut self, at: Moment, limit: &StartLimit) {
        self.starts.push_back(at);
        while self.starts.len() > limit.burst as usize {
            self.starts.pop_front();
        }
    }

    /// Notes that a restart was decided on.
    pub fn restarting(&mut self) {
        self.restarts = self.restarts.saturating_add(1);
    }

    /// Forgets the restarts, on RESTART_RESET=1: the delay begins anew. The start limit is not affected.
    pub fn reset(&mut self) {
        self.restarts = 0;
    }

    /// Begins anew on another node, to which the container was moved because of the start limit: starts and restarts on the one
    /// before say nothing about this one.
    pub fn arrived(&mut self, at: Moment) {
        *self = Self { arrived: Some(at), ..Self::default() };
    }

    /// Whether that was less than `period` ago.
    pub fn has_arrived_within(&self, period: Duration, now: Moment) -> bool {
        self.arrived.is_some_and(|at| now.since(at) < period)
    }

    /// How many restarts there were since the beginning or the last [`Self::reset`].
    pub fn restarts(&self) -> u32 {
        self.restarts
    }

    /// Whether a start at `at` keeps within `limit`: at most `burst` starts in *any* window of its length.
    ///
    /// systemd counts in windows that begin with a start, so that twice as many can fall into an unlucky one; here the
    /// window slides.
    pub fn allows(&self, at: Moment, limit: &StartLimit) -> bool {
        if limit.interval.is_zero() || limit.burst == 0 {
            return true;
        }
        let recent = self.starts.iter().filter(|start| at.since(**start) < limit.interval).count();
        recent < limit.burst as usize
    }
}
