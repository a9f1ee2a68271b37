//! What the application says of itself.

use super::run::{Run, Stage, limit};
use super::{Act, Machine, Phase};
use crate::clock::Moment;
use crate::exit::Cause;
use crate::notice::{self, Notice, Watchdog};
use std::time::Duration;

impl Machine {
    pub(super) fn notified(&mut self, notice: Notice, main_pid: Option<i32>, now: Moment, acts: &mut Vec<Act>) {
        let Phase::Up(run) = &mut self.phase else { return };
        // A run whose main process has ended is over; what the others still say is no news of the next one.
        if run.exit.is_some() {
            return;
        }
        if let Some(pid) = main_pid {
            run.main = pid;
        }
        if notice.status.is_some() {
            run.status = notice.status;
        }
        if notice.errno.is_some() {
            run.errno = notice.errno;
        }
        if notice.restart_reset {
            self.history.reset();
        }
        let settings = &self.settings;
        match notice.phase {
            Some(notice::Phase::Ready) if run.stage == Stage::Starting => run.started_up(settings, now),
            Some(notice::Phase::Ready) if run.stage == Stage::Reloading => run.enter(Stage::Running, None),
            Some(notice::Phase::Reloading { since_usec }) if run.stage == Stage::Running => {
                let late = since_usec.is_some() && since_usec <= run.reload_usec;
                if !late {
                    run.reload_usec = since_usec.or(run.reload_usec);
                    run.enter(Stage::Reloading, limit(now, settings.timeout_start));
                }
            }
            Some(notice::Phase::Stopping) if run.is_in_service() && run.stage != Stage::Leaving => {
                run.watchdog = None;
                run.runtime = None;
                run.enter(Stage::Leaving, limit(now, settings.timeout_stop));
            }
            _ => {}
        }
        if let Some(usec) = notice.watchdog_usec {
            // Both are "no watchdog" in systemd.
            let off = usec == 0 || usec == u64::MAX;
            run.period = (!off).then(|| Duration::from_micros(usec));
            rearm(run, now);
        }
        match notice.watchdog {
            Some(Watchdog::Ping) if run.watchdog.is_some() => rearm(run, now),
            Some(Watchdog::Trigger) if run.is_in_service() => {
                run.blame(Cause::Watchdog);
                run.abort(settings, now, acts);
            }
            _ => {}
        }
        if let Some(usec) = notice.extend_usec {
            let extended = now + Duration::from_micros(usec);
            for timer in [&mut run.limit, &mut run.runtime, &mut run.watchdog] {
                *timer = timer.map(|at| at.max(extended));
            }
        }
    }
}

/// The watchdog runs while the application is in service and its start-up is complete.
fn rearm(run: &mut Run, now: Moment) {
    let armed = matches!(run.stage, Stage::Running | Stage::Reloading);
    run.watchdog = run.period.filter(|_| armed).map(|period| now + period);
}
