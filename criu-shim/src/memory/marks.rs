//! Soft-dirty marks: clearing those of a process, and whether this kernel keeps any. The `unsafe` in it is a page to try that on.

use super::AttachError;
use super::entries::{self, Entry};
use super::sent::PAGE;
use super::tracker::is_gone;
use super::{Range, TrackError};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// Makes the kernel clear the marks of all pages and mappings. Source: Documentation/admin-guide/mm/soft-dirty.rst of the kernel.
const CLEAR: &[u8] = b"4";

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

/// What [`are_kept`] has found out. Held for as long as it is tried: two at once would clear each other's marks.
static KNOWN: Mutex<Option<bool>> = Mutex::new(None);

/// Whether this kernel marks what is written, tried once with memory of this process. A kernel without that takes the command and
/// marks nothing.
fn are_kept() -> io::Result<bool> {
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(kept) = *known {
        return Ok(kept);
    }
    let kept = try_own_memory()?;
    *known = Some(kept);
    Ok(kept)
}

fn try_own_memory() -> io::Result<bool> {
    let memory = OwnPage::new()?;
    let pagemap = File::open("/proc/self/pagemap")?;
    let is_marked = || -> io::Result<bool> {
        let (mut marked, start) = (false, memory.0 as u64);
        entries::walk(&pagemap, Range { start, end: start + PAGE }, |_, entry: Entry| marked = entry.is_soft_dirty())?;
        Ok(marked)
    };
    memory.write(1);
    OpenOptions::new().write(true).open("/proc/self/clear_refs")?.write_all(CLEAR)?;
    let before = is_marked()?;
    memory.write(2);
    Ok(!before && is_marked()?)
}

/// A page whose mapping is of this page alone. What is allocated as ever may lie on a huge page together with what other threads
/// write, or this one as it looks; and a mapping made right beside it may become one with it, which marks all of both: a thread's
/// stack, say, that another thread makes meanwhile.
struct OwnPage(*mut u8);

/// Bytes that are mapped: the page, and one before and behind it that nobody may use, with which it can't become one.
const MAPPED: usize = 3 * PAGE as usize;

impl OwnPage {
    fn new() -> io::Result<Self> {
        // SAFETY: a new mapping at an address that the kernel chooses, and the access to its second page.
        unsafe {
            let mapped = mmap_anonymous(std::ptr::null_mut(), MAPPED, ProtFlags::empty(), MapFlags::PRIVATE)?;
            let page = Self(mapped.cast::<u8>().add(PAGE as usize));
            mprotect(page.0.cast(), PAGE as usize, MprotectFlags::READ | MprotectFlags::WRITE)?;
            Ok(page)
        }
    }

    fn write(&self, byte: u8) {
        // SAFETY: writable, for as long as this is there.
        unsafe { self.0.write_volatile(byte) }
    }
}

impl Drop for OwnPage {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's, and nobody uses it any more. It fails for a range that is none.
        unsafe { munmap(self.0.sub(PAGE as usize).cast(), MAPPED) }.ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As much as makes the kernel use huge pages.
    const MUCH: usize = 8 << 20;

    #[test]
    fn what_is_written_beside_the_page_that_is_tried_makes_no_mark_on_it() {
        let _alone = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = try_own_memory().unwrap();
        let mut others: Vec<Vec<u8>> = (0..MUCH / PAGE as usize).map(|_| vec![1; PAGE as usize]).collect();
        std::thread::scope(|scope| {
            let (stop, stopped) = std::sync::mpsc::channel::<()>();
            let others = &mut others;
            scope.spawn(move || {
                while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                    others.iter_mut().for_each(|other| other[0] = other[0].wrapping_add(1));
                }
            });
            for _ in 0..20 {
                assert_eq!(try_own_memory().unwrap(), kept);
            }
            drop(stop);
        });
    }

    #[test]
    fn mappings_that_are_made_beside_the_page_that_is_tried_make_no_mark_on_it() {
        let _alone = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = try_own_memory().unwrap();
        std::thread::scope(|scope| {
            let (stop, stopped) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || {
                while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                    // With a stack, on which the kernel puts no huge pages either.
                    std::thread::spawn(|| {}).join().unwrap();
                }
            });
            for _ in 0..200 {
                assert_eq!(try_own_memory().unwrap(), kept);
            }
            drop(stop);
        });
    }

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
