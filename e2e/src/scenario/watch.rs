//! `kubectl get migrations --watch`: every state of every Migration, as soon as it is there.

use std::io::BufReader;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::sandbox::Sandbox;

/// The Migrations of one namespace; it ends when dropped.
#[derive(Debug)]
pub struct Watch {
    child: Child,
    thread: Option<JoinHandle<()>>,
    states: Receiver<Value>,
}

impl Watch {
    /// Begins to watch: what there is, then what comes.
    ///
    /// # Errors
    /// When kubectl can't be started.
    pub fn start(sandbox: &Sandbox) -> Result<Self> {
        let words = ["--namespace", sandbox.namespace(), "get", "migrations", "--watch", "--output=json"];
        let mut command = sandbox.kube().command(&words);
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("start kubectl get --watch")?;
        let output = child.stdout.take().context("kubectl has no output")?;
        let (sender, states) = channel();
        let thread = std::thread::spawn(move || {
            let objects = serde_json::Deserializer::from_reader(BufReader::new(output)).into_iter();
            // An end of the stream, whatever the reason, ends the channel.
            for object in objects.map_while(Result::ok) {
                if sender.send(object).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, thread: Some(thread), states })
    }

    /// The next state of any Migration, if one comes within `pause`.
    ///
    /// # Errors
    /// When kubectl has ended.
    pub fn next(&self, pause: Duration) -> Result<Option<Value>> {
        match self.states.recv_timeout(pause) {
            Ok(object) => Ok(Some(object)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!("kubectl get --watch has ended"),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("kubectl get --watch is left: {error}");
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the thread that reads kubectl get --watch panicked");
        }
    }
}
