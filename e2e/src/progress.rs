//! Shows what is going on: spinners on a terminal, plain lines elsewhere.
//!
//! Owns standard error while a command of several steps runs. Never decides anything.

use std::borrow::Cow;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

const TICK: Duration = Duration::from_millis(100);
/// A plain log has a line for what a step is doing at most this often.
const PLAIN_INTERVAL: Duration = Duration::from_secs(20);

/// All steps of one command.
#[derive(Debug)]
pub struct Progress {
    terminal: Option<MultiProgress>,
}

/// One step. Dropped without [`Step::done`] it shows as not done.
#[derive(Debug)]
pub struct Step {
    name: Cow<'static, str>,
    started: Instant,
    last_line: Instant,
    view: View,
    finished: bool,
}

#[derive(Debug)]
enum View {
    Spinner(ProgressBar),
    Plain,
}

impl Progress {
    /// Spinners where standard error is a terminal.
    pub fn new() -> Self {
        Self { terminal: io::stderr().is_terminal().then(MultiProgress::new) }
    }

    /// Begins a step.
    pub fn step(&self, name: impl Into<Cow<'static, str>>) -> Step {
        let name = name.into();
        let view = match &self.terminal {
            Some(terminal) => {
                // A template that does not parse is a programming error; the default style serves as well.
                let style = ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg:.dim}")
                    .unwrap_or_else(|_| ProgressStyle::default_spinner());
                let bar = terminal.add(ProgressBar::new_spinner().with_style(style).with_prefix(name.clone()));
                bar.enable_steady_tick(TICK);
                View::Spinner(bar)
            }
            None => View::Plain,
        };
        let now = Instant::now();
        Step { name, started: now, last_line: now, view, finished: false }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Step {
    /// What the step is doing now.
    pub fn say(&mut self, line: &str) {
        match &self.view {
            View::Spinner(bar) => bar.set_message(line.to_owned()),
            View::Plain if self.last_line.elapsed() >= PLAIN_INTERVAL => {
                self.last_line = Instant::now();
                eprintln!("  {}: {line}", self.name);
            }
            View::Plain => {}
        }
    }

    /// The step is done.
    pub fn done(mut self) {
        self.finish("");
    }

    /// The step is done, and there is something to say about it.
    pub fn done_with(mut self, remark: &str) {
        self.finish(remark);
    }

    fn finish(&mut self, remark: &str) {
        self.finished = true;
        let seconds = self.started.elapsed().as_secs_f64();
        let remark = if remark.is_empty() { String::new() } else { format!(" ({remark})") };
        self.close(&format!("✓ {} {seconds:.1} s{remark}", self.name));
    }

    fn close(&self, line: &str) {
        match &self.view {
            View::Spinner(bar) => {
                bar.finish_and_clear();
                bar.suspend(|| eprintln!("{line}"));
            }
            View::Plain => eprintln!("{line}"),
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.finished {
            self.close(&format!("✗ {}", self.name));
        }
    }
}
