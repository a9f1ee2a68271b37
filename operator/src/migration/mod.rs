//! Moves Migrations along: observes, asks [`crate::transition`], writes the status, carries the actions out.
//!
//! It never decides anything about a move, and it never acts on what a watch showed: watches only say when to look.

mod apply;
mod controller;
mod drive;
mod observe;
mod status_patch;

pub use controller::run;
pub use observe::ObserveError;
pub(crate) use observe::claim_modes;
pub use status_patch::status_patch;

use crate::settings::Settings;
use kube::Client;
use kube::runtime::events::Recorder;
use std::sync::Arc;
use tokio::sync::Mutex;

/// What every controller of the operator works with.
#[derive(Clone)]
pub struct Context {
    /// Towards the API server.
    pub client: Client,
    /// Command line.
    pub settings: Arc<Settings>,
    /// Events.
    pub recorder: Recorder,
    /// Held while one Migration is accepted, so that two can't both take the last place.
    acceptance: Arc<Mutex<()>>,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Context {
    /// A context for the controllers of one process.
    pub fn new(client: Client, settings: Arc<Settings>, recorder: Recorder) -> Self {
        Self { client, settings, recorder, acceptance: Arc::default() }
    }
}
