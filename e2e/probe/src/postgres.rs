//! The little of PostgreSQL's protocol that a client on the same machine needs: a trusted user, plain queries, text.
//!
//! Source: PostgreSQL 18, chapter "Frontend/Backend Protocol".

use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Protocol 3.0.
const VERSION: i32 = 3 << 16;
/// Longest message that is read, bytes.
const LONGEST: usize = 1 << 20;
/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// Rows of columns; what is NULL is empty.
pub(crate) type Rows = Vec<Vec<String>>;

/// A session of the user and database `postgres`.
pub(crate) struct Session {
    stream: BufReader<UnixStream>,
}

impl Session {
    /// Opens a session on the socket `path`.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        let mut session = Self { stream: BufReader::new(stream) };
        let mut start = VERSION.to_be_bytes().to_vec();
        start.extend_from_slice(b"user\0postgres\0database\0postgres\0\0");
        session.send(None, &start)?;
        session.rows()?;
        Ok(session)
    }

    /// As [`Session::open`], again and again for up to `limit`, while the server comes up.
    pub(crate) fn open_within(path: &Path, limit: Duration) -> io::Result<Self> {
        let start = Instant::now();
        loop {
            match Self::open(path) {
                Err(_) if start.elapsed() < limit => std::thread::sleep(Duration::from_millis(50)),
                result => return result,
            }
        }
    }

    /// Runs `sql`, which may be several statements, and returns the rows of them all.
    pub(crate) fn query(&mut self, sql: &str) -> io::Result<Rows> {
        self.send(Some(b'Q'), format!("{sql}\0").as_bytes())?;
        self.rows()
    }

    /// The one value that `sql` gives.
    pub(crate) fn value(&mut self, sql: &str) -> io::Result<String> {
        match <[Vec<String>; 1]>::try_from(self.query(sql)?) {
            Ok([row]) if row.len() == 1 => Ok(row.concat()),
            other => Err(io::Error::other(format!("{sql}: {other:?}"))),
        }
    }

    fn send(&mut self, kind: Option<u8>, content: &[u8]) -> io::Result<()> {
        let length = i32::try_from(content.len() + 4).map_err(io::Error::other)?;
        let mut message: Vec<u8> = kind.into_iter().collect();
        message.extend_from_slice(&length.to_be_bytes());
        message.extend_from_slice(content);
        self.stream.get_mut().write_all(&message)
    }

    /// Reads up to "ready for query".
    fn rows(&mut self) -> io::Result<Rows> {
        let (mut rows, mut refused) = (Vec::new(), None);
        loop {
            let (kind, content) = self.message()?;
            match kind {
                b'Z' => return refused.map_or(Ok(rows), |error: io::Error| Err(error)),
                b'D' => rows.push(row(&content).ok_or_else(|| io::Error::other("a row that is none"))?),
                // Fields of a letter and a text each. The server hangs up after one that is fatal.
                b'E' => refused = Some(io::Error::other(String::from_utf8_lossy(&content).replace('\0', " "))),
                // Anything but "authenticated".
                b'R' if content != [0; 4] => return Err(io::Error::other("the server asks for a password")),
                _ => {}
            }
        }
    }

    fn message(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut head = [0; 5];
        self.stream.read_exact(&mut head)?;
        let [kind, length @ ..] = head;
        let length = usize::try_from(i32::from_be_bytes(length)).ok().and_then(|length| length.checked_sub(4));
        let length =
            length.filter(|length| *length <= LONGEST).ok_or_else(|| io::Error::other("a message without end"))?;
        let mut content = vec![0; length];
        self.stream.read_exact(&mut content)?;
        Ok((kind, content))
    }
}

/// A row of columns, each with its length before it.
fn row(content: &[u8]) -> Option<Vec<String>> {
    let (count, mut rest) = content.split_first_chunk()?;
    let mut columns = Vec::new();
    for _ in 0..i16::from_be_bytes(*count) {
        let (length, after) = rest.split_first_chunk()?;
        // -1 is NULL.
        let length = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
        let (value, after) = after.split_at_checked(length)?;
        columns.push(String::from_utf8_lossy(value).into_owned());
        rest = after;
    }
    Some(columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_read_and_one_that_is_cut_off_is_not() {
        let content = [&2_i16.to_be_bytes()[..], &2_i32.to_be_bytes(), b"42", &(-1_i32).to_be_bytes()].concat();
        assert_eq!(row(&content), Some(vec!["42".to_owned(), String::new()]));
        assert_eq!(row(&content[..7]), None);
    }

    #[test]
    fn a_refusal_ends_with_the_next_readiness_and_keeps_its_text() {
        let (server, client) = UnixStream::pair().expect("a pair");
        let mut session = Session { stream: BufReader::new(client) };
        let answer = [&b"E\0\0\0\x0bSERROR\0D\0\0\0\x0b\0\x01\0\0\0\x011Z\0\0\0\x05I"[..]].concat();
        (&server).write_all(&answer).expect("an answer");
        assert!(session.query("SELECT 1/0").expect_err("a refusal").to_string().contains("ERROR"));
        (&server).write_all(b"D\0\0\0\x0b\0\x01\0\0\0\x017Z\0\0\0\x05I").expect("an answer");
        assert_eq!(session.value("SELECT 7").expect("a value"), "7");
    }
}
