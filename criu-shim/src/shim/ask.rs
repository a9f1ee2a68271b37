//! Asking the agent how a container shall start.

use crate::local::{Ahead, Client, ClientError, Create, FromShim, Role, SILENCE, ToShim};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the agent may be silent about a container that is no replacement, before it has said anything about it.
const SILENCE_COLD: Duration = Duration::from_secs(2);

/// Pause between attempts to reach the agent about a replacement.
const RETRY: Duration = Duration::from_millis(100);

/// How long to try to tell the agent how a restore ended. The relay has told it already; this is the last word.
const LAST_WORD: Duration = Duration::from_secs(5);

/// How a container shall start.
#[derive(Debug)]
pub(super) enum Answer {
    /// As runc would.
    Cold,
    /// From images.
    Restore(Restore),
    /// Not at all, for this reason.
    Refuse(String),
    /// Nobody said, for [`SILENCE`], how a container shall start that must not start unasked.
    Silent(ClientError),
}

/// A restore that the agent has ordered.
#[derive(Debug)]
pub(super) struct Restore {
    /// Names it towards the relay.
    pub token: String,
    /// Directory of the images.
    pub images_dir: PathBuf,
    /// Directory of logs and sockets.
    pub work_dir: PathBuf,
    /// Whether it is done below a stand-in, which `create` does not outlast.
    pub stand_in: bool,
    /// What the relay does before the images are there.
    pub ahead: Option<Box<Ahead>>,
    line: Option<Client>,
    socket: PathBuf,
}

/// What is known while there is no answer.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    /// When the agent has spoken last.
    heard: Instant,
    /// The container must not start unasked: its pod is a replacement, a rehearsal or in the journal, or the agent has said to wait.
    bound: bool,
}

impl Waiting {
    fn limit(&self) -> Duration {
        if self.bound { SILENCE } else { SILENCE_COLD }
    }
}

/// Whether the journal in `directory` speaks of the pod. After a boot kubelet may ask before there is an agent. What can't be
/// read may speak of any.
fn is_in_journal(directory: &Path, pod_uid: &str) -> bool {
    let entries = match directory.read_dir() {
        Ok(entries) => entries,
        Err(error) => return error.kind() != ErrorKind::NotFound,
    };
    let speaks = |path: &Path| match std::fs::read_to_string(path) {
        Ok(text) => text.contains(pod_uid),
        // Removed meanwhile: the agent is there.
        Err(error) => error.kind() != ErrorKind::NotFound,
    };
    entries.into_iter().any(|entry| entry.is_ok_and(|entry| speaks(&entry.path())))
}

/// Asks. A container that has nothing to do with a move, as far as its pod and the `journal` say, never waits for an agent
/// that is not there.
pub(super) fn ask(socket: &Path, journal: &Path, create: &Create) -> Answer {
    let stamped = create.replacement_of.is_some() || create.rehearsal_of.is_some();
    let bound = stamped || is_in_journal(journal, &create.pod_uid);
    let mut waiting = Waiting { heard: Instant::now(), bound };
    loop {
        match converse(socket, create, &mut waiting) {
            Ok(answer) => return answer,
            Err(_) if !waiting.bound => return Answer::Cold,
            Err(error) if waiting.heard.elapsed() >= waiting.limit() => return Answer::Silent(error),
            Err(_) => std::thread::sleep(RETRY),
        }
    }
}

/// One connection, until there is an answer or the connection is of no further use.
fn converse(socket: &Path, create: &Create, waiting: &mut Waiting) -> Result<Answer, ClientError> {
    let mut line = Client::connect(socket, Role::Shim)?;
    line.send(&FromShim::Create(create.clone()))?;
    loop {
        let message = line.receive(Some(waiting.limit().saturating_sub(waiting.heard.elapsed())))?;
        waiting.heard = Instant::now();
        match message {
            ToShim::Wait => waiting.bound = true,
            // Whatever agent this is: one that does not know rehearsals must not make a second copy.
            ToShim::ColdStart if create.rehearsal_of.is_some() => {
                return Ok(Answer::Refuse("the pod of a rehearsal never starts cold".to_owned()));
            }
            ToShim::ColdStart => return Ok(Answer::Cold),
            ToShim::Refuse { reason } => return Ok(Answer::Refuse(reason)),
            ToShim::Restore { token, images_dir, work_dir, stand_in, ahead } => {
                let socket = socket.to_owned();
                let line = Some(line);
                return Ok(Answer::Restore(Restore { token, images_dir, work_dir, stand_in, ahead, line, socket }));
            }
        }
    }
}

impl Restore {
    /// A restore without an agent behind it.
    #[cfg(test)]
    pub(super) fn example(token: &str, images_dir: &str, work_dir: &str) -> Self {
        Self {
            token: token.into(),
            images_dir: images_dir.into(),
            work_dir: work_dir.into(),
            stand_in: false,
            ahead: None,
            line: None,
            socket: "/nowhere/agent.sock".into(),
        }
    }

    /// Tells the agent how `runc restore` ended, on the same line, or on a new one if that has broken. An agent that
    /// stays away learns it from the container itself.
    pub(super) fn report(mut self, exit_code: i32) {
        let message = FromShim::Restored { token: self.token.clone(), exit_code };
        let deadline = Instant::now() + LAST_WORD;
        loop {
            let line = self.line.take().map_or_else(|| Client::connect(&self.socket, Role::Shim), Ok);
            if line.and_then(|mut line| line.send(&message)).is_ok() || Instant::now() >= deadline {
                return;
            }
            std::thread::sleep(RETRY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::{ContainerType, decode, encode};
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;

    const NO_JOURNAL: &str = "/nowhere/journal";

    #[test]
    fn a_pod_in_the_journal_is_known_without_an_agent() {
        let journal = tempfile::tempdir().unwrap();
        assert!(!is_in_journal(journal.path(), "uid-1"));
        std::fs::write(journal.path().join("m.json"), r#"{"side":{"source":{"podUid":"uid-1"}}}"#).unwrap();
        assert!(is_in_journal(journal.path(), "uid-1"));
        assert!(!is_in_journal(journal.path(), "uid-2"));
        assert!(!is_in_journal(NO_JOURNAL.as_ref(), "uid-1"));
    }

    fn create(replacement_of: Option<&str>) -> Create {
        Create {
            container_id: "c".into(),
            bundle: "/b".into(),
            pod_namespace: "n".into(),
            pod_name: "p".into(),
            pod_uid: "u".into(),
            container_name: "app".into(),
            container_type: ContainerType::Container,
            replacement_of: replacement_of.map(str::to_owned),
            rehearsal_of: None,
        }
    }

    /// An agent that says these messages to each connection in turn, then hangs up.
    fn agent(socket: PathBuf, said: Vec<Vec<ToShim>>) -> std::thread::JoinHandle<Vec<FromShim>> {
        let listener = UnixListener::bind(socket).unwrap();
        std::thread::spawn(move || {
            let mut heard = Vec::new();
            for messages in said {
                let (mut stream, _) = listener.accept().unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap());
                let mut hello = String::new();
                lines.read_line(&mut hello).unwrap();
                let mut question = String::new();
                lines.read_line(&mut question).unwrap();
                heard.push(decode(question.as_bytes()).unwrap());
                for message in messages {
                    stream.write_all(&encode(&message).unwrap()).unwrap();
                }
            }
            heard
        })
    }

    #[test]
    fn without_an_agent_a_pod_that_nobody_restores_starts_cold_at_once() {
        let begin = Instant::now();
        assert!(matches!(ask(Path::new("/nowhere/agent.sock"), NO_JOURNAL.as_ref(), &create(None)), Answer::Cold));
        assert!(begin.elapsed() < Duration::from_secs(1));
    }

    #[test]
    fn a_replacement_asks_again_after_a_lost_connection() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let restore = ToShim::Restore {
            token: "t".into(),
            images_dir: "/i".into(),
            work_dir: "/w".into(),
            stand_in: false,
            ahead: None,
        };
        let agent = agent(socket.clone(), vec![vec![ToShim::Wait], vec![ToShim::Wait, restore]]);
        let Answer::Restore(restore) = ask(&socket, NO_JOURNAL.as_ref(), &create(Some("mig"))) else {
            panic!("no restore")
        };
        assert_eq!(restore.token, "t");
        let heard = agent.join().unwrap();
        assert_eq!(heard.len(), 2);
        assert_eq!(heard[0], heard[1]);
    }

    #[test]
    fn a_rehearsal_asks_again_after_a_lost_connection() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let refuse = ToShim::Refuse { reason: "over".into() };
        let agent = agent(socket.clone(), vec![vec![], vec![refuse]]);
        let create = Create { rehearsal_of: Some("mig".into()), ..create(None) };
        assert!(matches!(ask(&socket, NO_JOURNAL.as_ref(), &create), Answer::Refuse(_)));
        assert_eq!(agent.join().unwrap().len(), 2);
    }

    #[test]
    fn a_rehearsal_does_not_start_cold_whoever_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let agent = agent(socket.clone(), vec![vec![ToShim::ColdStart]]);
        let create = Create { rehearsal_of: Some("mig".into()), ..create(None) };
        assert!(matches!(ask(&socket, NO_JOURNAL.as_ref(), &create), Answer::Refuse(_)));
        agent.join().unwrap();
    }

    #[test]
    fn a_pod_that_was_told_to_wait_does_not_start_cold_when_the_agent_goes() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let refuse = ToShim::Refuse { reason: "moved".into() };
        let agent = agent(socket.clone(), vec![vec![ToShim::Wait], vec![ToShim::Wait, refuse]]);
        assert!(matches!(ask(&socket, NO_JOURNAL.as_ref(), &create(None)), Answer::Refuse(_)));
        assert_eq!(agent.join().unwrap().len(), 2);
    }

    #[test]
    fn the_agents_refusal_carries_its_reason() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let agent = agent(socket.clone(), vec![vec![ToShim::Refuse { reason: "attempt is over".into() }]]);
        let answer = ask(&socket, NO_JOURNAL.as_ref(), &create(Some("mig")));
        assert!(matches!(answer, Answer::Refuse(reason) if reason == "attempt is over"));
        agent.join().unwrap();
    }
}
