//! Standard input: who started the daemon says there whom it is to serve, and that it is still there.
//!
//! One line with the pids that the images use, in decimal, apart by spaces. It may come long after the daemon has begun to
//! listen, and comes before CRIU does. The end of the input before CRIU has come is the end of the restore.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read};

/// Most bytes of the line: more processes than any container has.
const MAX_LINE: usize = 1 << 20;

/// What was heard so far.
#[derive(Debug, Default)]
pub(super) struct Tie {
    line: Vec<u8>,
    told: bool,
}

/// What one read has brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// Nothing to act on yet.
    Nothing,
    /// These are to be served.
    Serve(BTreeSet<i32>),
    /// Nobody is there any more.
    Gone,
}

impl Tie {
    /// Reads once from `input`, which waits where there is nothing to read.
    ///
    /// # Errors
    /// What reading says, or `InvalidData` for a line that names no processes.
    pub(super) fn read(&mut self, mut input: impl Read) -> io::Result<Told> {
        let mut piece = [0; 4096];
        let length = loop {
            match input.read(&mut piece) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        if length == 0 {
            return Ok(Told::Gone);
        }
        if self.told {
            return Err(invalid("more than one line"));
        }
        self.line.extend_from_slice(&piece[..length]);
        let Some(line) = self.line.strip_suffix(b"\n") else {
            return if self.line.len() > MAX_LINE { Err(invalid("too long a line")) } else { Ok(Told::Nothing) };
        };
        self.told = true;
        pids(line).map(Told::Serve).ok_or_else(|| invalid("a line that names no processes"))
    }

    /// Reads until the line is there.
    ///
    /// # Errors
    /// As [`Tie::read`], and `UnexpectedEof` where nobody is there to say it.
    pub(super) fn read_line(&mut self, mut input: impl Read) -> io::Result<BTreeSet<i32>> {
        loop {
            match self.read(&mut input)? {
                Told::Nothing => {}
                Told::Serve(pids) => return Ok(pids),
                Told::Gone => return Err(ErrorKind::UnexpectedEof.into()),
            }
        }
    }
}

fn pids(line: &[u8]) -> Option<BTreeSet<i32>> {
    let pids: BTreeSet<i32> = std::str::from_utf8(line)
        .ok()?
        .split(' ')
        .map(|pid| pid.parse().ok().filter(|pid| *pid > 0))
        .collect::<Option<_>>()?;
    (!pids.is_empty()).then_some(pids)
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("standard input has {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives one piece at each read.
    struct Pieces<'a>(Vec<&'a [u8]>);

    impl Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Ok(0);
            }
            let piece = self.0.remove(0);
            buffer[..piece.len()].copy_from_slice(piece);
            Ok(piece.len())
        }
    }

    #[test]
    fn a_line_may_come_in_pieces() {
        let mut input = Pieces(vec![b"1 1", b"7\n"]);
        let mut tie = Tie::default();
        assert_eq!(tie.read(&mut input).unwrap(), Told::Nothing);
        assert_eq!(tie.read(&mut input).unwrap(), Told::Serve([1, 17].into()));
        assert_eq!(tie.read(&mut input).unwrap(), Told::Gone);
        assert_eq!(Tie::default().read_line(Pieces(vec![b"3", b"\n"])).unwrap(), [3].into());
    }

    #[test]
    fn what_names_no_processes_is_refused() {
        for line in ["\n", "0\n", "-1\n", "1 x\n", "1\n2"] {
            let mut tie = Tie::default();
            assert!(tie.read(line.as_bytes()).is_err() || tie.read(&b"3\n"[..]).is_err(), "{line:?}");
        }
        assert_eq!(Tie::default().read_line(&b"1 2"[..]).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        let mut tie = Tie::default();
        tie.read(&b"1\n"[..]).unwrap();
        assert!(tie.read(&b"2\n"[..]).is_err(), "nobody is added to those that were announced");
    }
}
