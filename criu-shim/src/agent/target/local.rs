//! The unix socket on which shim and relay of this node talk to the agent.

use crate::agent::checkpoint::desk;
use crate::agent::context::{Context, Key};
use crate::agent::journal::Side;
use crate::agent::target::create::{Start, has_run, start, start_rehearsal, start_stray, start_without};
use crate::agent::target::event::Event;
use crate::agent::target::registry::Registry;
use crate::causes::chain;
use crate::local::{
    ContainerType, Create, FromRelay, FromShim, Hello, LineError, MAX_LINE, Role, ToRelay, ToShim, VersionMismatch,
    decode, encode,
};
use kube::api::Api;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tideover_crds::Migration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

/// How often a shim or relay that waits hears that somebody is there. It gives up after 100 s of silence.
const STILL_HERE: Duration = Duration::from_secs(5);
/// How long one question to the API server may take before it is asked again.
const ASK_LIMIT: Duration = Duration::from_secs(3);
/// How often an undecided question is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// How long the first list of Migrations is waited for before a pod that nothing is known of starts cold.
const SYNC_LIMIT: Duration = Duration::from_secs(5);

/// Why the socket does not work.
#[derive(Debug, Error)]
pub enum LocalError {
    /// It can't be made.
    #[error("listen at {path:?}")]
    Bind {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A connection failed.
    #[error("talk to shim or relay")]
    Stream(#[source] std::io::Error),
    /// A line is no message.
    #[error("understand shim or relay")]
    Line(#[from] LineError),
    /// Another version.
    #[error("refuse shim or relay")]
    Version(#[from] VersionMismatch),
    /// It ended before it had said what it must.
    #[error("shim or relay hung up too early")]
    Early,
}

/// Makes the socket (0600) in place of one that an agent before this one left.
///
/// # Errors
/// [`LocalError::Bind`].
pub fn bind(path: &Path) -> Result<UnixListener, LocalError> {
    let failed = |source| LocalError::Bind { path: path.to_owned(), source };
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(failed)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// Takes connections for ever.
pub async fn serve(context: Arc<Context>, registry: Registry, listener: UnixListener) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "accepting a local connection failed");
                tokio::time::sleep(LOOK_AGAIN).await;
                continue;
            }
        };
        let (context, registry) = (context.clone(), registry.clone());
        tokio::spawn(async move {
            if let Err(error) = talk(&context, &registry, stream).await {
                warn!(error = %chain(&error), "a local connection ended");
            }
        });
    }
}

async fn talk(context: &Arc<Context>, registry: &Registry, stream: UnixStream) -> Result<(), LocalError> {
    let mut line = Line::new(stream);
    match heard(&mut line).await? {
        Role::Shim => shim(context, registry, line).await,
        Role::Relay => relay(registry, line).await,
    }
}

/// Who it is. One of another version was started before an upgrade of the agent. Such a shim just sees the line end: it starts cold
/// what has nothing to do with a move, and else refuses after a while. A relay would wait for ever with what it has rebuilt, so it is
/// told to give up, which no version may say in other words; kubelet begins again, with a relay of this version.
async fn heard(line: &mut Line) -> Result<Role, LocalError> {
    let hello: Hello = line.expect().await?;
    let role = hello.check();
    if role.is_err() && hello.role == Role::Relay {
        // What it says comes first: it does not listen before.
        line.expect::<serde_json::Value>().await?;
        line.say(&ToRelay::Abandon).await?;
    }
    Ok(role?)
}

async fn shim(context: &Arc<Context>, registry: &Registry, mut line: Line) -> Result<(), LocalError> {
    match line.expect().await? {
        FromShim::Restored { token, exit_code } => {
            restored(registry, token, exit_code).await;
            Ok(())
        }
        FromShim::Create(create) => {
            let answer = answer(context, registry, &create, &mut line).await?;
            info!(pod = create.pod_name, container = create.container_id, answer = answer_name(&answer), "create");
            line.say(&answer).await?;
            if let (ToShim::Restore { .. }, Some(FromShim::Restored { token, exit_code })) =
                (answer, line.next().await?)
            {
                restored(registry, token, exit_code).await;
            }
            Ok(())
        }
    }
}

/// For the log; the token in a restore is nobody else's business.
fn answer_name(answer: &ToShim) -> &'static str {
    match answer {
        ToShim::Wait => "wait",
        ToShim::ColdStart => "cold start",
        ToShim::Restore { stand_in: false, .. } => "restore",
        ToShim::Restore { stand_in: true, .. } => "restore below a stand-in",
        ToShim::Refuse { .. } => "refuse",
    }
}

async fn restored(registry: &Registry, token: String, exit_code: i32) {
    if let Some(target) = registry.target_of_token(&token) {
        // A task that has ended has nothing left to decide.
        target.send(Event::Restored { token, exit_code }).await.ok();
    }
}

/// Waits until it is known how the container shall start. The shim hears `Wait` meanwhile.
async fn answer(
    context: &Arc<Context>,
    registry: &Registry,
    create: &Create,
    line: &mut Line,
) -> Result<ToShim, LocalError> {
    let begun = tokio::time::Instant::now();
    let mut still_here = tokio::time::interval_at(begun + STILL_HERE, STILL_HERE);
    // Before anything is asked of the API server: from here on the shim knows that starting cold is not its to decide.
    line.say(&ToShim::Wait).await?;
    loop {
        let synced = registry.is_synced() || begun.elapsed() > SYNC_LIMIT;
        let mut deciding = std::pin::pin!(decide(context, registry, create, synced));
        let decided = loop {
            tokio::select! {
                decided = &mut deciding => break decided,
                _ = still_here.tick() => line.say(&ToShim::Wait).await?,
                hung_up = line.hung_up() => return Err(hung_up),
            }
        };
        match decided {
            Start::Cold => match from_checkpoint(context, registry, create, line, &mut still_here).await? {
                Some(answer) => return Ok(answer),
                None => continue,
            },
            Start::Refuse(reason) | Start::Stray(reason) => return Ok(ToShim::Refuse { reason }),
            Start::Undecided => {}
            Start::Restore { uid } => {
                let (answer, answers) = mpsc::channel(1);
                let question = Event::Create { create: create.clone(), answer };
                if let Some(answer) = ask(registry, &uid, question, answers, line, &mut still_here).await? {
                    return Ok(answer);
                }
            }
            Start::Rehearse { uid } => {
                let (answer, answers) = mpsc::channel(1);
                let question = Event::Rehearse { create: create.clone(), answer };
                if let Some(answer) = ask(registry, &uid, question, answers, line, &mut still_here).await? {
                    return Ok(answer);
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_AGAIN) => {}
            _ = still_here.tick() => line.say(&ToShim::Wait).await?,
            hung_up = line.hung_up() => return Err(hung_up),
        }
    }
}

/// What the container is told that nobody moves: whether it goes on from a checkpoint. `None` where the task that knows has ended
/// meanwhile.
async fn from_checkpoint(
    context: &Arc<Context>,
    registry: &Registry,
    create: &Create,
    line: &mut Line,
    still_here: &mut tokio::time::Interval,
) -> Result<Option<ToShim>, LocalError> {
    if create.container_type == ContainerType::Sandbox {
        return Ok(Some(ToShim::ColdStart));
    }
    // Looking at a checkpoint takes as long as reading it.
    let mut looking = std::pin::pin!(desk::start(context, registry, create));
    let start = loop {
        tokio::select! {
            start = &mut looking => break start,
            _ = still_here.tick() => line.say(&ToShim::Wait).await?,
            hung_up = line.hung_up() => return Err(hung_up),
        }
    };
    match start {
        desk::Start::Cold => Ok(Some(ToShim::ColdStart)),
        desk::Start::Cut => {
            Ok(Some(ToShim::Refuse { reason: "the restore of its checkpoint was cut short".to_owned() }))
        }
        desk::Start::Restore(name) => {
            let (answer, answers) = mpsc::channel(1);
            let question = Event::Create { create: create.clone(), answer };
            ask(registry, &name, question, answers, line, still_here).await
        }
    }
}

/// Asks the task of the Migration, or of the restore of a checkpoint, `uid`. `None` where there is none, or it has let go of the
/// question: then it is asked again from the beginning.
async fn ask(
    registry: &Registry,
    uid: &str,
    question: Event,
    mut answers: mpsc::Receiver<ToShim>,
    line: &mut Line,
    still_here: &mut tokio::time::Interval,
) -> Result<Option<ToShim>, LocalError> {
    let Some(target) = registry.target(uid) else { return Ok(None) };
    if target.send(question).await.is_err() {
        return Ok(None);
    }
    loop {
        tokio::select! {
            answer = answers.recv() => return Ok(answer),
            _ = still_here.tick() => line.say(&ToShim::Wait).await?,
            hung_up = line.hung_up() => return Err(hung_up),
        }
    }
}

/// Looks at everything that may have to do with the pod, live where it matters.
async fn decide(context: &Context, registry: &Registry, create: &Create, synced: bool) -> Start {
    let node = &context.settings.node_name;
    if let Some(name) = &create.rehearsal_of {
        return match named(context, create, name).await {
            Some(named) => start_rehearsal(create, named.as_ref(), node),
            None => Start::Undecided,
        };
    }
    for shown in registry.concerning(&create.pod_uid) {
        match context.ownership(&Key::of(&shown)).read().await {
            Ok(migration) => match start(create, &migration, node) {
                Start::Cold => {}
                other => return other,
            },
            Err(crate::agent::owner::OwnerError::Gone { .. }) => {}
            Err(error) => {
                warn!(pod = create.pod_name, error = %chain(&error), "whether the pod may start is unknown");
                return Start::Undecided;
            }
        }
    }
    if let Some(name) = &create.replacement_of {
        let Some(named) = named(context, create, name).await else { return Start::Undecided };
        match named.map_or_else(|| start_without(name), |named| start(create, &named, node)) {
            // As far as the move that brought it goes. It may be the source of another by now.
            Start::Cold => {}
            Start::Stray(reason) => match stray(context, create, reason).await {
                Start::Cold => {}
                other => return other,
            },
            other => return other,
        }
    }
    if !synced || journal_may_have(context, &create.pod_uid).await { Start::Undecided } else { Start::Cold }
}

/// The Migration that the pod names, if it exists; `None` where there is no answer.
async fn named(context: &Context, create: &Create, name: &str) -> Option<Option<Migration>> {
    let api: Api<Migration> = Api::namespaced(context.client.clone(), &create.pod_namespace);
    match tokio::time::timeout(ASK_LIMIT, api.get_opt(name)).await {
        Ok(Ok(named)) => Some(named),
        Ok(Err(error)) => {
            warn!(pod = create.pod_name, %error, "whether the pod is to be restored is unknown");
            None
        }
        Err(_) => None,
    }
}

/// Looks whether the container of a pod that nobody restores has run before.
async fn stray(context: &Context, create: &Create, reason: String) -> Start {
    let pods = context.pods(&create.pod_namespace);
    match crate::agent::context::answer(pods.get_opt(&create.pod_name)).await {
        Ok(pod) => {
            let pod = pod.filter(|pod| pod.metadata.uid.as_deref() == Some(&create.pod_uid));
            start_stray(reason, pod.is_some_and(|pod| has_run(&pod)))
        }
        Err(error) => {
            warn!(pod = create.pod_name, error = %chain(&error), "whether the pod has run before is unknown");
            Start::Undecided
        }
    }
}

/// Whether the journal says that this pod was about to be moved away, or can't be read. Then the watch will show its
/// Migration.
async fn journal_may_have(context: &Context, pod_uid: &str) -> bool {
    let journal = context.journal.clone();
    match tokio::task::spawn_blocking(move || journal.entries()).await {
        Ok(Ok(entries)) => {
            entries.iter().any(|entry| matches!(&entry.side, Side::Source(source) if source.pod_uid == pod_uid))
        }
        Ok(Err(error)) => {
            warn!(error = %chain(&error), "whether the pod may start is unknown");
            true
        }
        Err(error) => {
            warn!(%error, "reading the journal ended unexpectedly");
            true
        }
    }
}

async fn relay(registry: &Registry, mut line: Line) -> Result<(), LocalError> {
    let FromRelay::Relay { token, stage, criu } = line.expect().await? else { return Err(LocalError::Early) };
    let (words, mut to_say) = mpsc::channel(4);
    let Some(target) = registry.target_of_token(&token) else {
        info!(?stage, "a relay that nobody waits for");
        return line.say(&ToRelay::Abandon).await;
    };
    if target.send(Event::Relay { token: token.clone(), stage, line: words, criu }).await.is_err() {
        return line.say(&ToRelay::Abandon).await;
    }
    let mut still_here = tokio::time::interval_at(tokio::time::Instant::now() + STILL_HERE, STILL_HERE);
    let ended = loop {
        tokio::select! {
            _ = still_here.tick() => {
                if let Err(error) = line.say(&ToRelay::Wait).await {
                    break Err(error);
                }
            }
            word = to_say.recv() => match word {
                Some(word) => {
                    if let Err(error) = line.say(&word).await {
                        break Err(error);
                    }
                }
                None => break Ok(()),
            },
            said = line.next() => match said {
                Ok(Some(FromRelay::Held)) => { target.send(Event::Held { token: token.clone() }).await.ok(); }
                Ok(Some(FromRelay::Ended { success, message })) => {
                    let (heard, taken) = oneshot::channel();
                    let ended = Event::Ended { token: token.clone(), success, message, heard };
                    // Without an answer the relay comes back and says it again.
                    if target.send(ended).await.is_err() || taken.await.is_err() {
                        return Ok(());
                    }
                    return line.say(&ToRelay::Heard).await;
                }
                Ok(Some(FromRelay::Relay { .. })) => {}
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            },
        }
    };
    target.send(Event::RelayLost { token }).await.ok();
    ended
}

/// One connection, line by line.
#[derive(Debug)]
struct Line {
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    buffer: Vec<u8>,
}

impl Line {
    fn new(stream: UnixStream) -> Self {
        let (reader, writer) = stream.into_split();
        Self { reader, writer, buffer: Vec::new() }
    }

    async fn say<T: Serialize>(&mut self, message: &T) -> Result<(), LocalError> {
        self.writer.write_all(&encode(message)?).await.map_err(LocalError::Stream)
    }

    async fn expect<T: DeserializeOwned>(&mut self) -> Result<T, LocalError> {
        self.next().await?.ok_or(LocalError::Early)
    }

    /// The next message; `None` at the end. Dropping the future loses nothing.
    async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, LocalError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(Some(decode(&line)?));
            }
            if self.buffer.len() > MAX_LINE {
                return Err(LineError::TooLong.into());
            }
            if self.reader.read_buf(&mut self.buffer).await.map_err(LocalError::Stream)? == 0 {
                return Ok(None);
            }
        }
    }

    /// Ends when the other side does. Nothing is expected from it meanwhile.
    async fn hung_up(&mut self) -> LocalError {
        match self.next::<serde_json::Value>().await {
            Err(error) => error,
            Ok(_) => LocalError::Early,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What one that says these lines is told, and whether it is taken for what it is.
    async fn told(said: &str) -> (String, Result<Role, LocalError>) {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        theirs.write_all(said.as_bytes()).await.expect("said");
        let mut line = Line::new(ours);
        let role = heard(&mut line).await;
        drop(line);
        let mut answer = String::new();
        theirs.read_to_string(&mut answer).await.expect("an answer");
        (answer, role)
    }

    #[tokio::test]
    async fn a_relay_from_before_an_upgrade_is_told_to_give_up() {
        let relay = r#"{"type":"relay","token":"t","stage":"held"}"#;
        let (answer, role) = told(&format!("{{\"version\":2,\"role\":\"relay\"}}\n{relay}\n")).await;
        assert_eq!(answer, "{\"type\":\"abandon\"}\n");
        assert!(matches!(role, Err(LocalError::Version(VersionMismatch { theirs: 2 }))), "{role:?}");
    }

    #[tokio::test]
    async fn a_shim_from_before_an_upgrade_sees_the_line_end() {
        let (answer, role) = told("{\"version\":2,\"role\":\"shim\"}\n").await;
        assert_eq!(answer, "");
        assert!(matches!(role, Err(LocalError::Version(_))), "{role:?}");
        let hello = serde_json::to_string(&Hello::new(Role::Shim)).expect("a line");
        let (answer, role) = told(&format!("{hello}\n")).await;
        assert!(matches!((answer.as_str(), role), ("", Ok(Role::Shim))));
    }
}
