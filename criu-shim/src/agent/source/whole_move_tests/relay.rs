//! The agent's end of the line to the relay.

use crate::local::{FromRelay, Hello, RelayStage, ReleaseOptions, SOCKET, ToRelay, decode, encode};
use serde::de::DeserializeOwned;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

pub(super) struct Relay(BufReader<UnixStream>);

impl Relay {
    pub(super) fn listen() -> UnixListener {
        let socket = Path::new(SOCKET);
        std::fs::create_dir_all(socket.parent().expect("a directory")).expect("directory");
        // That of the test before.
        std::fs::remove_file(socket).ok();
        UnixListener::bind(socket).expect("socket")
    }

    /// The relay with this token, which has runc's request. Others have outlived a test that has failed.
    pub(super) fn accept(listener: &UnixListener, expected: &str) -> Self {
        loop {
            let (stream, _) = listener.accept().expect("a relay");
            stream.set_read_timeout(Some(super::LIMIT)).expect("limit");
            let mut relay = Self(BufReader::new(stream));
            relay.next::<Hello>().check().expect("its version");
            match relay.next() {
                FromRelay::Relay { token, .. } if token != expected => {}
                FromRelay::Relay { stage: RelayStage::Requested, criu: Some(_), .. } => return relay,
                other => panic!("{other:?}"),
            }
        }
    }

    pub(super) fn release(&mut self, options: ReleaseOptions) {
        self.say(&ToRelay::Release { options });
    }

    /// Waits for the processes to be rebuilt.
    pub(super) fn is_held(&mut self) -> Result<(), FromRelay> {
        match self.next() {
            FromRelay::Held => Ok(()),
            other => Err(other),
        }
    }

    /// Lets them run, and hears that they do.
    pub(super) fn resume(&mut self) {
        self.say(&ToRelay::Resume);
        match self.next() {
            FromRelay::Ended { success: true, .. } => self.say(&ToRelay::Heard),
            other => panic!("{other:?}"),
        }
    }

    fn say(&mut self, message: &ToRelay) {
        self.0.get_mut().write_all(&encode(message).expect("a line")).expect("say");
    }

    fn next<T: DeserializeOwned>(&mut self) -> T {
        let mut line = Vec::new();
        self.0.read_until(b'\n', &mut line).expect("a line");
        decode(&line).expect("a message")
    }
}
