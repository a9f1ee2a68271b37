//! Two programs that count beside each other, each in a file that the other reads: a cut that is not one for both makes one of
//! them see the other's count go back.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The two files. Both stay open.
#[derive(Debug)]
pub(crate) struct Beside {
    ours: File,
    theirs: File,
    /// The last count of the other that was seen.
    seen: u64,
}

impl Beside {
    /// Counts in `ours` beside a program that counts in `theirs`. Both are made where they are not there.
    pub(crate) fn open(ours: &Path, theirs: &Path) -> io::Result<Self> {
        let open = |path: &Path| OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        Ok(Self { ours: open(ours)?, theirs: open(theirs)?, seen: 0 })
    }

    /// Looks at the other's count, and tells ours.
    ///
    /// # Errors
    /// Where the other's has gone back.
    pub(crate) fn count(&mut self, ours: u64) -> io::Result<()> {
        let mut theirs = [0; 8];
        // Nothing is in it before the other has counted.
        if self.theirs.read_at(&mut theirs, 0)? == theirs.len() {
            let now = u64::from_le_bytes(theirs);
            if now < self.seen {
                return Err(io::Error::other(format!("the other's count went back from {} to {now}", self.seen)));
            }
            self.seen = now;
        }
        self.ours.write_all_at(&ours.to_le_bytes(), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_that_goes_back_is_noticed_and_one_that_stands_still_is_not() {
        let directory = std::env::temp_dir().join(format!("beside-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let (a, b) = (directory.join("a"), directory.join("b"));
        let mut first = Beside::open(&a, &b).expect("files");
        let mut second = Beside::open(&b, &a).expect("files");
        first.count(1).expect("nobody counts beside it yet");
        for count in [5, 5, 6] {
            second.count(count).expect("counts");
            first.count(2).expect("it goes on or stands still");
        }
        second.count(4).expect("counts");
        let back = first.count(3).expect_err("it went back");
        std::fs::remove_dir_all(&directory).expect("remove");
        assert_eq!(back.to_string(), "the other's count went back from 6 to 4");
    }
}
