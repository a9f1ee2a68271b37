//! The relay's line to the agent, which may break and is then made again.

use crate::local::{Client, ClientError, FromRelay, RelayStage, Role, ToRelay};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Pause between attempts to connect.
const RETRY: Duration = Duration::from_millis(100);

/// How long the rest of a line may take once its beginning is there.
const REST_OF_LINE: Duration = Duration::from_millis(200);

/// How long the agent may take to come back for the last message.
const LAST_WORD: Duration = Duration::from_secs(60);

/// The line to the agent.
#[derive(Debug)]
pub(super) struct AgentLine {
    socket: PathBuf,
    token: String,
    /// The process that is CRIU.
    criu: Option<i32>,
    client: Option<Client>,
    next_try: Instant,
    heard: Instant,
}

impl AgentLine {
    pub(super) fn new(socket: PathBuf, token: String, criu: Option<i32>) -> Self {
        let now = Instant::now();
        Self { socket, token, criu, client: None, next_try: now, heard: now }
    }

    /// Connects, if the line is down and it is time to try, and says who this is and where it stands.
    pub(super) fn keep_up(&mut self, stage: RelayStage) {
        if self.client.is_some() || Instant::now() < self.next_try {
            return;
        }
        self.next_try = Instant::now() + RETRY;
        let connect = || -> Result<Client, ClientError> {
            let mut client = Client::connect(&self.socket, Role::Relay)?;
            client.send(&FromRelay::Relay { token: self.token.clone(), stage, criu: self.criu })?;
            Ok(client)
        };
        self.client = connect().ok();
    }

    /// What to wait on; none while the line is down.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.client.as_ref().map(AsFd::as_fd)
    }

    /// Everything that the agent has said, once [`Self::descriptor`] is readable. A broken line says nothing more.
    pub(super) fn receive(&mut self) -> Vec<ToRelay> {
        let mut said = Vec::new();
        while let Some(client) = &mut self.client {
            match client.receive(Some(REST_OF_LINE)) {
                Ok(message) => {
                    said.push(message);
                    self.heard = Instant::now();
                    if !client.has_message() {
                        break;
                    }
                }
                Err(_) => self.client = None,
            }
        }
        said
    }

    /// How long nothing has been heard.
    pub(super) fn silence(&self) -> Duration {
        self.heard.elapsed()
    }

    /// Tells the agent. On a broken line it is told by the stage when the line is up again.
    pub(super) fn tell(&mut self, message: &FromRelay) {
        if self.client.as_mut().is_some_and(|client| client.send(message).is_err()) {
            self.client = None;
        }
    }

    /// Tells the agent how it ended, and tries for a while until the agent has taken it: one that ended with the message
    /// unread would leave its successor without it.
    pub(super) fn tell_the_end(&mut self, message: &FromRelay, stage: RelayStage) {
        let deadline = Instant::now() + LAST_WORD;
        while Instant::now() < deadline {
            self.keep_up(stage);
            self.tell(message);
            if self.is_heard(deadline) {
                return;
            }
            std::thread::sleep(RETRY);
        }
    }

    /// Waits for the answer to the last message, on a line that breaks for good where none comes.
    fn is_heard(&mut self, deadline: Instant) -> bool {
        while let Some(client) = &mut self.client {
            match client.receive(Some(deadline.saturating_duration_since(Instant::now()))) {
                Ok(ToRelay::Heard | ToRelay::Abandon) => return true,
                // Said before, or a sign of life.
                Ok(_) => {}
                Err(_) => self.client = None,
            }
        }
        false
    }
}
