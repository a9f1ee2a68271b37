//! Soft-dirty marks: clearing those of a process, and whether this kernel keeps any.

use super::AttachError;
use super::entries::{self, Entry};
use super::sent::PAGE;
use super::tracker::is_gone;
use super::{Range, TrackError};
use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// Makes the kernel clear the marks of all pages and mappings. Source: Documentation/admin-guide/mm/soft-dirty.rst of the kernel.
const CLEAR: &[u8] = b"4";

/// How often a page of our own may turn out to be on a large one with something that is just being written.
const TRIES: usize = 3;

/// The marks of one process.
#[derive(Debug)]
pub struct Marks {
    pid: i32,
    clear: File,
}

impl Marks {
    /// Those of process `pid`. Nothing is changed yet.
    ///
    /// # Errors
    /// Where the kernel keeps none, or these may not be cleared.
    pub fn open(pid: i32) -> Result<Self, AttachError> {
        if !are_kept().map_err(AttachError::ProbeMarks)? {
            return Err(AttachError::NoMarks);
        }
        let path = PathBuf::from(format!("/proc/{pid}/clear_refs"));
        match OpenOptions::new().write(true).open(&path) {
            Ok(clear) => Ok(Self { pid, clear }),
            Err(error) if is_gone(&error) => Err(AttachError::Gone { pid }),
            Err(source) => Err(AttachError::ClearMarks { path, source }),
        }
    }

    /// Clears all of them. What is written from then on is marked.
    ///
    /// # Errors
    /// [`TrackError::Gone`]; others leave it open what is cleared.
    pub fn clear(&self) -> Result<(), TrackError> {
        match (&self.clear).write_all(CLEAR) {
            Err(error) if is_gone(&error) => Err(TrackError::Gone { pid: self.pid }),
            Err(source) => Err(TrackError::ClearMarks { pid: self.pid, source }),
            Ok(()) => Ok(()),
        }
    }
}

/// Whether this kernel marks what is written, tried once with memory of this process. A kernel without that takes the command and
/// marks nothing.
fn are_kept() -> io::Result<bool> {
    static KNOWN: Mutex<Option<bool>> = Mutex::new(None);
    // Held throughout: two that try at once would clear each other's marks.
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(kept) = *known {
        return Ok(kept);
    }
    let mut kept = false;
    for _ in 0..TRIES {
        kept = kept || try_own_memory()?;
    }
    *known = Some(kept);
    Ok(kept)
}

fn try_own_memory() -> io::Result<bool> {
    let pagemap = File::open("/proc/self/pagemap")?;
    let mut memory = vec![1_u8; 2 * PAGE as usize];
    let first = (memory.as_ptr() as u64).next_multiple_of(PAGE);
    let inside = (first - memory.as_ptr() as u64) as usize;
    let is_marked = || -> io::Result<bool> {
        let mut marked = false;
        entries::walk(&pagemap, Range { start: first, end: first + PAGE }, |_, entry: Entry| {
            marked = entry.is_soft_dirty();
        })?;
        Ok(marked)
    };
    OpenOptions::new().write(true).open("/proc/self/clear_refs")?.write_all(CLEAR)?;
    let before = is_marked()?;
    black_box(&mut memory)[inside] = 2;
    black_box(&memory);
    Ok(!before && is_marked()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_can_do_is_found_out_by_many_at_once_with_one_result() {
        let found: Vec<bool> = std::thread::scope(|scope| {
            let asked: Vec<_> = (0..8).map(|_| scope.spawn(|| are_kept().unwrap())).collect();
            asked.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(found.iter().all(|kept| *kept == found[0]), "{found:?}");
        // What the kernel says of itself, where it does: the letters are there only if it keeps marks.
        let marked = std::fs::read_to_string("/proc/self/smaps").unwrap();
        assert!(found[0] || !marked.lines().any(|line| line.starts_with("VmFlags:") && line.contains(" sd")));
    }
}
