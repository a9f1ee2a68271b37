//! What `/proc/PID/smaps` says of the flags of mappings, without the walk through all page tables that reading it is: 30 ms and more
//! for 1 GiB.
//!
//! The kernel writes two letters for each bit of a mapping's word of flags, in ascending order, from nothing but that word. The word is
//! handed out by a program in the kernel ([`program`]), where the kernel takes one; which letters a bit has is seen at
//! mappings of the agent's own ([`specimens`]). What a bit means nobody needs to know. Source: `show_smap_vma_flags` in the kernel's
//! `fs/proc/task_mmu.c`. It never touches a process.

mod btf;
mod program;
mod specimens;

use super::TrackError;
use super::tracker::{mappings_text, read_error};
use crate::causes::chain;
use program::{LoadError, Mapping, Program};
use specimens::Specimens;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use tracing::info;

/// What is known of flags on this kernel.
#[derive(Debug)]
pub struct Flags {
    program: Program,
    letters: Letters,
    /// The line with the flags of the mapping that every process has, none owns, and the program does not see.
    of_the_kernel: Vec<u8>,
}

static FLAGS: OnceLock<Flags> = OnceLock::new();
/// This kernel takes no program, and will take none.
static REFUSED: AtomicBool = AtomicBool::new(false);

/// The letters of each bit that was seen.
#[derive(Debug, Default)]
struct Letters(BTreeMap<u32, [u8; 2]>);

/// The beginning of the line with the flags.
const LINE: &[u8] = b"VmFlags: ";
/// The end of the first line of that mapping.
const OF_THE_KERNEL: &[u8] = b"[vsyscall]";

impl Flags {
    /// Finds out those of this kernel, unless they are known, or it has been seen to take no program. Some milliseconds. Blocking.
    pub fn find_out() {
        if FLAGS.get().is_some() || REFUSED.load(Ordering::Relaxed) {
            return;
        }
        match Self::load() {
            // Somebody else may have been faster: they are the same.
            Ok(flags) => {
                FLAGS.get_or_init(|| flags);
            }
            Err(error) => {
                info!(error = %chain(&error), "the flags of mappings are read with all page tables");
                REFUSED.fetch_or(error.stays(), Ordering::Relaxed);
            }
        }
    }

    /// Those of this kernel, the same for whoever asks, where they have been found out.
    pub fn of_this_kernel() -> Option<&'static Self> {
        FLAGS.get()
    }

    fn load() -> Result<Self, LoadError> {
        let program = Program::load()?;
        let specimens = Specimens::make();
        let own = std::process::id().cast_signed();
        let words = || program.mappings(own).map_err(LoadError::Refused);
        let before = words()?;
        let smaps = std::fs::read("/proc/self/smaps").map_err(LoadError::Described)?;
        // Other threads go on meanwhile.
        let after = words()?;
        drop(specimens);
        let (mut letters, mut of_the_kernel) = (Letters::default(), Vec::new());
        for (header, line) in entries(&smaps) {
            if is_of_the_kernel(header) {
                of_the_kernel = line.to_vec();
            }
            let same = before.iter().find(|word| range(header) == Some((word.start, word.end)));
            if let Some(word) = same.filter(|word| after.contains(word)) {
                letters.learn(word.flags, line)?;
            }
        }
        // What it reads must be what everybody sees: the mapping of this very code is among them.
        let here = Self::load as *const () as u64;
        let seen = before.iter().find(|word| word.start <= here && here < word.end);
        match seen.and_then(|word| letters.line(word.flags)) {
            Some(line) if line.starts_with(b"VmFlags: rd ex ") => Ok(Self { program, letters, of_the_kernel }),
            _ => Err(LoadError::Wrong),
        }
    }

    /// Of process `pid`, which does not run, the lines of smaps with where a mapping is and with its flags. None where a bit is set
    /// whose letters are not known; then smaps itself tells. Blocking.
    ///
    /// # Errors
    /// Where the process can't be read.
    pub fn of_frozen(&self, pid: i32) -> Result<Option<Vec<u8>>, TrackError> {
        let maps = mappings_text(pid, "maps")?;
        let words = self.program.mappings(pid);
        let words =
            words.map_err(|source| read_error(pid, PathBuf::from(format!("the mappings of process {pid}")), source))?;
        Ok(self.text(&maps, &words))
    }

    fn text(&self, maps: &[u8], words: &[Mapping]) -> Option<Vec<u8>> {
        let (mut words, mut text) = (words.iter(), Vec::new());
        for header in maps.split_inclusive(|byte| *byte == b'\n') {
            text.extend_from_slice(header);
            if is_of_the_kernel(header) {
                text.extend_from_slice(&self.of_the_kernel);
            } else {
                let word = words.next().filter(|word| range(header) == Some((word.start, word.end)))?;
                text.extend(self.letters.line(word.flags)?);
            }
        }
        words.next().is_none().then_some(text)
    }
}

impl Letters {
    /// Takes what `line` says of the bits of `word`. Not where some have no letters: it can't be told which.
    ///
    /// # Errors
    /// Where a bit has other letters than before: then it is not what is written here that the kernel does.
    fn learn(&mut self, word: u64, line: &[u8]) -> Result<(), LoadError> {
        let Some(written) = line.strip_prefix(LINE) else { return Err(LoadError::Wrong) };
        let names: Vec<&[u8]> = written.trim_ascii_end().split(|byte| *byte == b' ').collect();
        let bits = (0..u64::BITS).filter(|bit| word >> bit & 1 == 1);
        if names.len() != word.count_ones() as usize {
            return Ok(());
        }
        for (bit, name) in bits.zip(names) {
            let name: [u8; 2] = name.try_into().map_err(|_| LoadError::Wrong)?;
            if *self.0.entry(bit).or_insert(name) != name {
                return Err(LoadError::Wrong);
            }
        }
        Ok(())
    }

    /// The line for `word`; none where one of its bits was not seen.
    fn line(&self, word: u64) -> Option<Vec<u8>> {
        let mut line = LINE.to_vec();
        for bit in (0..u64::BITS).filter(|bit| word >> bit & 1 == 1) {
            line.extend(self.0.get(&bit)?);
            line.push(b' ');
        }
        line.push(b'\n');
        Some(line)
    }
}

/// Of the text of an smaps file, for each mapping its first line and the one with its flags.
fn entries(smaps: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut header: &[u8] = &[];
    smaps.split_inclusive(|byte| *byte == b'\n').filter_map(move |line| {
        if !line.first().is_some_and(u8::is_ascii_uppercase) {
            header = line;
        }
        line.starts_with(LINE).then_some((header, line))
    })
}

fn is_of_the_kernel(header: &[u8]) -> bool {
    header.trim_ascii_end().ends_with(OF_THE_KERNEL)
}

/// The addresses at the beginning of a line of maps or smaps.
fn range(header: &[u8]) -> Option<(u64, u64)> {
    let addresses = header.split(|byte| *byte == b' ').next()?;
    let (start, end) = std::str::from_utf8(addresses).ok()?.split_once('-')?;
    let address = |text: &str| u64::from_str_radix(text, 16).ok();
    Some((address(start)?, address(end)?))
}

#[cfg(test)]
mod tests;
