//! Connections to the target of one attempt: the first, and those that go on where one was lost.

use crate::agent::context::{Context, Key};
use crate::agent::identity::Tls;
use crate::agent::source::connect::Peer;
use crate::agent::transfer::hello::{self, Answer, GoOn, Hello};
use crate::agent::transfer::message::{Codec, MappedFile, Preamble, VERSION};
use crate::agent::transfer::session::{Renewal, Renewed};
use crate::agent::transfer::wire::{self, SourceStream};
use crate::causes::chain;
use rustls::pki_types::ServerName;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tideover_crds::names;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::warn;

/// How long a lost connection may take to be made again. The application runs meanwhile, but a container may wait on the target.
pub const AGAIN_LIMIT: Duration = Duration::from_secs(20);
/// How long one try may take.
const TRY_LIMIT: Duration = Duration::from_secs(5);
/// Pause after the first try that has failed; each further one is twice as long, up to [`LONGEST`].
const PAUSE: Duration = Duration::from_millis(50);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(1);

/// What it takes to connect.
#[derive(Debug)]
pub struct Dial {
    identity: watch::Receiver<Option<Arc<Tls>>>,
    address: SocketAddr,
    name: ServerName<'static>,
    link: GoOn,
}

/// Why a link does not go on yet.
enum Not {
    /// Another try may do better.
    Now(String),
    /// The target has said no.
    Ever(String),
}

impl Dial {
    /// For attempt `attempt` of `key`, to `peer`.
    ///
    /// # Errors
    /// With a sentence, where that is no address, or no random number is to be had.
    pub fn new(context: &Context, key: &Key, attempt: u32, peer: &Peer) -> Result<Self, String> {
        let address: SocketAddr =
            peer.address.parse().map_err(|_| "the address is not of the form ip:port".to_owned())?;
        let name = ServerName::try_from(names::agent_identity(&peer.node)).map_err(|error| chain(&error))?;
        let session = hello::new_session().map_err(|error| format!("draw a session: {error}"))?;
        let link = GoOn { version: VERSION, migration: key.uid.clone(), attempt, session, taken: 0 };
        Ok(Self { identity: context.identity.clone(), address, name, link })
    }

    /// The first connection, of `source_node` for `container`, by which about `bytes` bytes will come, of processes that have `mapped`
    /// this.
    ///
    /// # Errors
    /// With a sentence.
    pub async fn begin(
        &mut self,
        source_node: &str,
        container: &str,
        bytes: u64,
        mapped: Vec<MappedFile>,
    ) -> Result<SourceStream, String> {
        let mut stream = self.connect().await?;
        let GoOn { version, migration, attempt, session, .. } = self.link.clone();
        let (source_node, container, codecs) = (source_node.to_owned(), container.to_owned(), vec![Codec::Lz4]);
        let preamble = Preamble { version, migration, attempt, container, session, source_node, bytes, codecs, mapped };
        hello::say(&mut stream, &Hello::Begin(preamble)).await.map_err(|error| chain(&error))?;
        Ok(stream)
    }

    async fn connect(&mut self) -> Result<SourceStream, String> {
        let tls = self.identity.wait_for(Option::is_some).await.ok().and_then(|tls| tls.clone());
        let tls = tls.ok_or_else(|| "this node gets no certificate".to_owned())?;
        let stream = TcpStream::connect(self.address).await.map_err(|error| chain(&error))?;
        wire::connect(stream, &tls, self.name.clone()).await.map_err(|error| chain(&error))
    }

    async fn go_on(&mut self, taken: u64) -> Result<Renewed<SourceStream>, Not> {
        let mut stream = self.connect().await.map_err(Not::Now)?;
        let link = GoOn { taken, ..self.link.clone() };
        match hello::go_on(&mut stream, link).await {
            Ok(Some(Answer::GoesOn { taken })) => Ok(Renewed { stream, peer_has: taken, unanswered: false }),
            Ok(Some(Answer::Refused { message })) => Err(Not::Ever(message)),
            Ok(None) => Err(Not::Ever("it answered something else".to_owned())),
            Err(error) => Err(Not::Now(chain(&error))),
        }
    }
}

impl Renewal for Dial {
    type Stream = SourceStream;

    async fn renew(&mut self, taken: u64) -> Option<Renewed<SourceStream>> {
        let (deadline, mut pause) = (Instant::now() + AGAIN_LIMIT, PAUSE);
        loop {
            let limit = deadline.min(Instant::now() + TRY_LIMIT);
            let error = match timeout_at(limit, self.go_on(taken)).await {
                Ok(Ok(renewed)) => return Some(renewed),
                Ok(Err(Not::Ever(message))) => {
                    warn!(address = %self.address, message, "the target does not go on");
                    return None;
                }
                Ok(Err(Not::Now(error))) => error,
                Err(_) => "no answer".to_owned(),
            };
            warn!(address = %self.address, error, "a lost connection could not be made again");
            if Instant::now() + pause >= deadline {
                return None;
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST);
        }
    }
}
