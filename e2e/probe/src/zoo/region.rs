//! Memory of one kind: writing to it, and looking whether it is what it must be.

use super::content::{page_at, version, word};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const PAGE: usize = 4096;
const WORDS: usize = PAGE / size_of::<u64>();

/// Some memory, and which of its pages are written.
pub(super) struct Region {
    pub(super) name: &'static str,
    id: u64,
    pub(super) held: Held,
    pages: u64,
    /// Every eighth page from the fourth on is this.
    pub(super) eighth: Eighth,
    /// Nothing is written after the beginning.
    pub(super) fixed: bool,
}

/// Where it is.
pub(super) enum Held {
    /// Mapped.
    Memory(&'static mut [u64]),
    /// In a file that is read and written and never mapped.
    File(File),
}

/// What every eighth page is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Eighth {
    /// As the others.
    Plain,
    /// Given back to the kernel: zeros.
    Dropped,
    /// Not to be touched.
    Guard,
}

impl Region {
    /// Memory that is there for as long as the program. Its length is that of 2^n pages.
    pub(super) fn new(name: &'static str, id: u64, memory: &'static mut [u64]) -> Self {
        let pages = (memory.len() / WORDS) as u64;
        Self { name, id, held: Held::Memory(memory), pages, eighth: Eighth::Plain, fixed: false }
    }

    /// A file of 2^n pages.
    pub(super) fn file(name: &'static str, id: u64, file: File) -> io::Result<Self> {
        let pages = file.metadata()?.len() / PAGE as u64;
        Ok(Self { name, id, held: Held::File(file), pages, eighth: Eighth::Plain, fixed: false })
    }

    /// Half of the whole pages in a frame that is never left.
    pub(super) fn borrowed(name: &'static str, id: u64, frame: &mut [u64]) -> io::Result<Self> {
        let (skip, length) = (frame.as_ptr().align_offset(PAGE), frame.len() / 2);
        let memory = frame.get_mut(skip..skip + length).ok_or_else(|| io::Error::other("the frame is too short"))?;
        // SAFETY: the caller's loop ends with the program, and uses this memory in no other way.
        Ok(Self::new(name, id, unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr(), length) }))
    }

    /// Writes every page for the first time.
    pub(super) fn fill(&mut self) -> io::Result<()> {
        (0..self.pages).try_for_each(|page| self.put(page, 0))
    }

    /// Writes the page whose turn it is.
    pub(super) fn write(&mut self, step: u64) -> io::Result<()> {
        let page = page_at(step, self.pages);
        if self.fixed || (self.is_eighth(page) && self.eighth != Eighth::Plain) { Ok(()) } else { self.put(page, step) }
    }

    /// Looks at every page; returns how many there are.
    pub(super) fn verify(&self, step: u64) -> io::Result<u64> {
        let mut buffer = [0; WORDS];
        let mut pages = 0;
        for page in 0..self.pages {
            let odd = self.is_eighth(page);
            if odd && self.eighth == Eighth::Guard {
                continue;
            }
            self.get(page, &mut buffer)?;
            let version = if self.fixed { 0 } else { version(page, step, self.pages) };
            let zero = odd && self.eighth == Eighth::Dropped;
            let expected = |index| if zero { 0 } else { word(self.id, page, version, index) };
            if let Some(index) = (0..WORDS).find(|index| buffer[*index] != expected(*index)) {
                let found = buffer[index];
                let name = self.name;
                return Err(io::Error::other(format!(
                    "{name}: word {index} of page {page} is {found:#x} at step {step}"
                )));
            }
            pages += 1;
        }
        Ok(pages)
    }

    /// The mapped bytes of every eighth page.
    pub(super) fn eighths(&mut self) -> impl Iterator<Item = *mut libc::c_void> {
        let memory: &mut [u64] = match &mut self.held {
            Held::Memory(memory) => memory,
            Held::File(_) => &mut [],
        };
        memory.chunks_exact_mut(WORDS).skip(3).step_by(8).map(|page| page.as_mut_ptr().cast())
    }

    fn is_eighth(&self, page: u64) -> bool {
        page % 8 == 3
    }

    fn put(&mut self, page: u64, version: u64) -> io::Result<()> {
        let id = self.id;
        let at = page as usize * WORDS;
        match &mut self.held {
            Held::Memory(memory) => {
                memory[at..at + WORDS]
                    .iter_mut()
                    .enumerate()
                    .for_each(|(index, it)| *it = word(id, page, version, index));
                Ok(())
            }
            Held::File(file) => {
                let bytes: Vec<u8> =
                    (0..WORDS).flat_map(|index| word(id, page, version, index).to_ne_bytes()).collect();
                file.write_all_at(&bytes, page * PAGE as u64)
            }
        }
    }

    fn get(&self, page: u64, buffer: &mut [u64; WORDS]) -> io::Result<()> {
        let at = page as usize * WORDS;
        match &self.held {
            Held::Memory(memory) => buffer.copy_from_slice(&memory[at..at + WORDS]),
            Held::File(file) => {
                let mut bytes = [0; PAGE];
                file.read_exact_at(&mut bytes, page * PAGE as u64)?;
                for (word, bytes) in buffer.iter_mut().zip(bytes.as_chunks().0) {
                    *word = u64::from_ne_bytes(*bytes);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region() -> Region {
        let memory: &'static mut [u64] = vec![0; 16 * WORDS].leak();
        Region::new("test", 1, memory)
    }

    #[test]
    fn a_page_that_is_an_older_one_is_noticed() {
        let mut region = region();
        region.fill().expect("memory");
        for step in 1..40 {
            region.write(step).expect("memory");
            assert_eq!(region.verify(step).expect("memory"), 16);
        }
        let page = page_at(39, 16);
        region.put(page, 39 - 16).expect("memory");
        assert!(region.verify(39).expect_err("a wrong page").to_string().contains(&format!("page {page} ")));
    }

    #[test]
    fn dropped_pages_are_zeros_and_guards_are_not_looked_at() {
        let mut region = region();
        region.eighth = Eighth::Dropped;
        region.fill().expect("memory");
        assert!(region.verify(0).is_err());
        region.eighth = Eighth::Guard;
        assert_eq!(region.verify(0).expect("memory"), 14);
    }
}
