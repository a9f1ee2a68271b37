//! The little of the RESP protocol that a writing client needs.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// One connection to a store.
pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Connects to `address` (`host:port`); every later call gives up after two seconds.
    pub(crate) fn open(address: &str) -> io::Result<Self> {
        let resolved =
            address.to_socket_addrs()?.next().ok_or_else(|| io::Error::other("address resolves to nothing"))?;
        let stream = TcpStream::connect_timeout(&resolved, Duration::from_secs(2))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.set_write_timeout(Some(Duration::from_secs(2)))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// As [`Connection::open`], again and again for up to `limit`: a Service takes a moment to lead to a pod that has just
    /// become ready.
    pub(crate) fn open_within(address: &str, limit: Duration) -> io::Result<Self> {
        let start = Instant::now();
        loop {
            match Self::open(address) {
                Err(error) if start.elapsed() < limit => println!("not connected yet: {error}"),
                result => return result,
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Sends `commands` in one go and returns one reply each. A reply is the text after its type byte; a missing
    /// value is `None`.
    pub(crate) fn call(&mut self, commands: &[Vec<String>]) -> io::Result<Vec<Option<String>>> {
        let mut request = Vec::new();
        for command in commands {
            write!(request, "*{}\r\n", command.len())?;
            for word in command {
                write!(request, "${}\r\n{word}\r\n", word.len())?;
            }
        }
        self.stream.get_mut().write_all(&request)?;
        commands.iter().map(|_| self.reply()).collect()
    }

    fn reply(&mut self) -> io::Result<Option<String>> {
        let line = self.line()?;
        let (kind, rest) = line.split_at_checked(1).ok_or_else(|| io::Error::other("empty reply"))?;
        match kind {
            "+" | ":" => Ok(Some(rest.to_owned())),
            "$" if rest == "-1" => Ok(None),
            "$" => {
                let length: usize = rest.parse().map_err(io::Error::other)?;
                let mut value = vec![0; length + 2];
                self.stream.read_exact(&mut value)?;
                value.truncate(length);
                String::from_utf8(value).map(Some).map_err(io::Error::other)
            }
            _ => Err(io::Error::other(format!("the store answers: {line}"))),
        }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }
}
