//! What CRIU is to read of `/proc/PID/smaps`, read for it while it does something else.
//!
//! For the sums in that file the kernel walks through all page tables, 10 to 60 ms for 1 GiB, in the freeze. CRIU wants none of them.
//! The library in it (`dump-preload`) gives it the lines that it wants from a memfd, as soon as they are there. They are made without
//! that walk where it can be ([`Flags`]).

use super::error::WithholdError;
use crate::memory::Flags;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Environment variable that names the memfd to the library.
pub(super) const VARIABLE: &str = "TIDEOVER_MAPPINGS";

// The library's `mappings.rs` has the same format, words of 64 bits; a test below reads with that what is written here.
const LENGTH: u64 = 64 << 20;
const STATE_AT: u64 = 0;
const COUNT_AT: u64 = 1;
const ENTRIES_AT: u64 = 2;
const MOST_ENTRIES: u64 = 4096;
const TEXTS_AT: u64 = (ENTRIES_AT + 3 * MOST_ENTRIES) * 8;
const TO_COME: u64 = 1;
const ALL_HERE: u64 = 2;

/// The texts, none at first. A clone is the same.
#[derive(Clone, Debug)]
pub struct Mappings {
    memory: Arc<File>,
}

impl Mappings {
    pub(super) fn new() -> Result<Self, WithholdError> {
        // Not in the freeze.
        Flags::find_out();
        let made = memfd_create("tideover-mappings", MemfdFlags::CLOEXEC)
            .and_then(|memory| ftruncate(&memory, LENGTH).map(|()| memory));
        let memory = made.map_err(|errno| WithholdError::List(errno.into()))?;
        Ok(Self { memory: Arc::new(memory.into()) })
    }

    /// What CRIU inherits.
    pub(super) fn descriptor(&self) -> Result<File, WithholdError> {
        self.memory.try_clone().map_err(WithholdError::List)
    }

    /// Says that texts are to come. CRIU, which must not be at work yet, waits for them; but only for seconds.
    ///
    /// # Errors
    /// [`WithholdError`]: CRIU reads for itself then.
    pub fn expect(&self) -> Result<(), WithholdError> {
        self.put(STATE_AT, &[TO_COME])
    }

    /// Reads for CRIU what it will want of `pids`, which must be frozen, and stay as they are until CRIU has come to them. What can't be
    /// read, or has no room, CRIU reads for itself. Blocking.
    ///
    /// # Errors
    /// [`WithholdError`]: CRIU waits in vain then, and reads for itself.
    pub fn read(&self, pids: &[i32]) -> Result<(), WithholdError> {
        let flags = Flags::of_this_kernel();
        self.fill(pids.iter().filter_map(|pid| {
            // Who can't be read that way may be by the other.
            if let Some(text) = flags.and_then(|flags| flags.of_frozen(*pid).ok().flatten()) {
                return Some((*pid, text));
            }
            let smaps = std::fs::read(format!("/proc/{pid}/smaps")).ok().filter(|smaps| !smaps.is_empty())?;
            Some((*pid, wanted(&smaps)))
        }))
    }

    fn fill(&self, texts: impl Iterator<Item = (i32, Vec<u8>)>) -> Result<(), WithholdError> {
        let mut at = TEXTS_AT;
        for (count, (pid, text)) in (0..MOST_ENTRIES).zip(texts) {
            let length = text.len() as u64;
            if at + length > LENGTH {
                break;
            }
            self.memory.write_all_at(&text, at).map_err(WithholdError::List)?;
            self.put(ENTRIES_AT + 3 * count, &[pid.unsigned_abs().into(), at, length])?;
            // After its text: the library looks at what is counted.
            self.put(COUNT_AT, &[count + 1])?;
            at += length;
        }
        self.put(STATE_AT, &[ALL_HERE])
    }

    fn put(&self, word: u64, words: &[u64]) -> Result<(), WithholdError> {
        let bytes: Vec<u8> = words.iter().copied().flat_map(u64::to_ne_bytes).collect();
        self.memory.write_all_at(&bytes, word * 8).map_err(WithholdError::List)
    }
}

/// The lines of an smaps file that CRIU reads: of each mapping the first, which begins with an address, and its flags. The others
/// begin with a name in capitals. Source: `parse_smaps` in CRIU's `criu/proc_parse.c`; proc_pid_smaps(5).
fn wanted(smaps: &[u8]) -> Vec<u8> {
    let lines = smaps.split_inclusive(|byte| *byte == b'\n');
    let is_wanted = |line: &&[u8]| line.starts_with(b"VmFlags:") || !line.first().is_some_and(u8::is_ascii_uppercase);
    lines.filter(is_wanted).flatten().copied().collect()
}

#[cfg(test)]
use super::withheld::list;

/// The library's own code.
#[cfg(test)]
#[path = "../../dump-preload/src/mappings.rs"]
mod library;

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
    use std::time::Duration;

    fn pair() -> (Mappings, library::Mappings) {
        let written = Mappings::new().expect("a memfd");
        let descriptor = written.descriptor().expect("a descriptor").into_raw_fd();
        (written, library::Mappings::mapped(descriptor).expect("mapped"))
    }

    fn text(library: &library::Mappings, process: u64) -> Option<String> {
        let descriptor = library.open(process)?;
        let mut text = String::new();
        // SAFETY: it was opened for the caller.
        let mut file = File::from(unsafe { OwnedFd::from_raw_fd(descriptor) });
        file.read_to_string(&mut text).expect("text");
        Some(text)
    }

    #[test]
    fn the_library_reads_what_is_written_here() {
        let (written, library) = pair();
        assert_eq!(text(&library, 7), None, "nothing is asked for");
        written.expect().expect("written");
        written.fill([(7, b"seven".to_vec()), (i32::MAX, Vec::new())].into_iter()).expect("written");
        assert_eq!(text(&library, 7).as_deref(), Some("seven"));
        assert_eq!(text(&library, 7).as_deref(), Some("seven"), "each has a descriptor of its own");
        assert_eq!(text(&library, 1 << 31), None);
        assert_eq!(text(&library, u64::from(i32::MAX.unsigned_abs())).as_deref(), Some(""));
    }

    #[test]
    fn a_text_is_waited_for() {
        let (written, library) = pair();
        written.expect().expect("written");
        let reading = std::thread::spawn(move || (text(&library, 7), text(&library, 8)));
        std::thread::sleep(Duration::from_millis(5));
        written.fill([(7, b"seven".to_vec())].into_iter()).expect("written");
        assert_eq!(reading.join().expect("read"), (Some("seven".to_owned()), None));
    }

    #[test]
    fn what_has_no_room_is_left_to_criu() {
        let (written, library) = pair();
        let large = vec![b'x'; (LENGTH - TEXTS_AT) as usize - 3];
        let texts = [(1, b"one".to_vec()), (2, large), (3, b"y".to_vec())];
        written.fill(texts.into_iter()).expect("written");
        assert_eq!(text(&library, 2).map(|text| text.len() as u64), Some(LENGTH - TEXTS_AT - 3));
        assert_eq!((text(&library, 1).as_deref(), text(&library, 3)), (Some("one"), None));
    }

    #[test]
    fn the_lines_that_criu_reads_are_those_of_maps_and_the_flags() {
        let smaps = std::fs::read("/proc/self/smaps").expect("smaps");
        let wanted = String::from_utf8(wanted(&smaps)).expect("text");
        let (flags, first): (Vec<&str>, Vec<&str>) = wanted.lines().partition(|line| line.starts_with("VmFlags: "));
        assert_eq!(flags.len(), first.len());
        let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
        let known = maps.lines().filter(|line| first.contains(line)).count();
        assert!(known > 10, "the same lines, but for what other tests map meanwhile: {wanted}");
        let own = (std::process::id().cast_signed(), u64::from(std::process::id()));
        let (written, library) = pair();
        written.read(&[own.0, i32::MAX]).expect("written");
        assert!(text(&library, own.1).expect("this process").contains("VmFlags: "));
        assert_eq!(text(&library, u64::from(i32::MAX.unsigned_abs())), None, "there is no such process");
    }
}
