//! The memory that a dump left out: where it is, and what the images say of it in the end.
//!
//! Owns `pagemap-PID.img` and `pages-ID.img`, after the dump and before anybody reads them. It never touches shared memory
//! (`pagemap-shmem-*.img`).
//!
//! CRIU was told that withheld memory ([`super::withheld`]) is not there. What there is of it is on the target, and is called
//! lazy here: a page daemon brings it after the restore. Where it belongs to a mapping that no daemon is asked for
//! ([`super::lazy`]), as that of a library, it is called stored: the target puts it where CRIU would have put it ([`assemble`]), in a
//! pages file of another number, because what CRIU has written of one is a part of what was sent, as it was sent.
//!
//! CRIU calls pages that it did write lazy as well, where they could be, and a lazy restore then passes over them: it
//! expects a page daemon that reads the images. Ours does not, so in the end a page is lazy or in the images, never both.

use super::error::PagemapError;
use super::image::{self, ImageError};
use super::lazy;
use super::ranges::{self, PAGE};
use prost::Message;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Read, Write};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// `PAGEMAP_MAGIC`. Source: CRIU's `criu/include/magic.h`.
pub(super) const PAGEMAP_MAGIC: u32 = 0x5608_4025;

/// `PE_PARENT`: an earlier dump has the pages. Source of the three: CRIU's `criu/include/pagemap.h`.
const PARENT: u32 = 1;

/// `PE_LAZY`: the pages may come after the restore.
const LAZY: u32 = 2;

/// `PE_PRESENT`: the pages are in the pages file.
pub(super) const PRESENT: u32 = 4;

/// A pages file that the target makes has the number of CRIU's with this bit. CRIU counts from 1.
const ASSEMBLED: u32 = 1 << 31;

/// How much is copied at once, bytes.
const CHUNK: u64 = 1 << 20;

/// `pagemap_head`: the first entry of a pagemap image. Source: CRIU's `images/pagemap.proto`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct PagemapHead {
    /// Number in the name of the pages file.
    #[prost(uint32, required, tag = "1")]
    pub pages_id: u32,
}

/// `pagemap_entry`: the other entries. Source: the same.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct PagemapEntry {
    /// First address.
    #[prost(uint64, required, tag = "1")]
    pub vaddr: u64,
    /// Length in pages, before `nr_pages` came.
    #[prost(uint32, required, tag = "2")]
    pub compat_nr_pages: u32,
    /// What [`PARENT`] was, before `flags` came.
    #[prost(bool, optional, tag = "3")]
    pub in_parent: Option<bool>,
    /// [`PARENT`], [`LAZY`], [`PRESENT`].
    #[prost(uint32, optional, tag = "4")]
    pub flags: Option<u32>,
    /// Length in pages.
    #[prost(uint64, optional, tag = "5")]
    pub nr_pages: Option<u64>,
    /// Not CRIU's, which passes over it: the target has the pages, and they are in the pages file once that is assembled. The number is
    /// far from any that CRIU has.
    #[prost(bool, optional, tag = "20001")]
    pub stored: Option<bool>,
}

impl PagemapEntry {
    pub(super) fn new(range: &Range<u64>, flags: u32) -> Self {
        let nr_pages = Some((range.end - range.start) / PAGE);
        Self { vaddr: range.start, compat_nr_pages: 0, in_parent: None, flags: Some(flags), nr_pages, stored: None }
    }

    /// Whether the pages file has the pages, and nothing else.
    pub(super) fn is_present(&self) -> bool {
        self.in_parent != Some(true) && self.flags.unwrap_or(PRESENT) == PRESENT
    }

    /// The addresses; none if they are none.
    pub(super) fn range(&self) -> Option<Range<u64>> {
        let length = self.nr_pages.unwrap_or_else(|| self.compat_nr_pages.into()).checked_mul(PAGE)?;
        let range = self.vaddr..self.vaddr.checked_add(length)?;
        ranges::is_sorted(std::slice::from_ref(&range)).then_some(range)
    }
}

/// Name of the pagemap image of a process.
pub(super) fn pagemap_file(pid: i32) -> String {
    format!("pagemap-{pid}.img")
}

/// Name of a pages file.
fn pages_file(id: u32) -> String {
    format!("pages-{id}.img")
}

/// The processes of which there is memory in `images`: sorted.
///
/// # Errors
/// Where the directory can't be listed.
pub fn processes(images: &Path) -> std::io::Result<Vec<i32>> {
    let mut pids = Vec::new();
    for entry in images.read_dir()? {
        let name = entry?.file_name();
        let number: Option<i32> =
            name.to_str().and_then(|name| name.strip_prefix("pagemap-")?.strip_suffix(".img")?.parse().ok());
        pids.extend(number);
    }
    pids.sort_unstable();
    Ok(pids)
}

/// What came of the memory that a dump left out of one process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// What the page daemon has to bring: sorted.
    pub lazy: Vec<Range<u64>>,
    /// What the target has to put into the pages file before the restore: sorted.
    pub stored: Vec<Range<u64>>,
}

/// A pages file that was put together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assembled {
    /// Its name in the images.
    pub name: String,
    /// Its length, bytes.
    pub bytes: u64,
    /// Digest of these.
    pub digest: blake3::Hash,
}

/// An image, taken apart.
struct Pagemap<'a> {
    pages_id: u32,
    head: &'a [u8],
    entries: Vec<Entry<'a>>,
}

#[derive(Debug)]
struct Entry<'a> {
    range: Range<u64>,
    flags: u32,
    stored: bool,
    bytes: &'a [u8],
}

/// What to write, so that nothing is left out.
#[derive(Debug, PartialEq)]
struct Plan {
    image: Vec<u8>,
    settled: Settled,
}

/// The memory of one process that a restore fetches later, by its `pagemap-PID.img`: sorted.
///
/// # Errors
/// [`PagemapError`].
pub fn lazy(images: &Path, pid: i32) -> Result<Vec<Range<u64>>, PagemapError> {
    let path = images.join(pagemap_file(pid));
    let image = read(&path)?;
    let pagemap = parse(&image).map_err(|source| PagemapError::Image { path, source })?;
    Ok(pagemap.entries.into_iter().filter(|entry| entry.flags == LAZY).map(|entry| entry.range).collect())
}

/// Settles what the dump left out of process `pid`, in its images.
///
/// `left_out` is what there is of the memory that CRIU was told to leave out, and that the target has, or will have before the
/// restore: sorted, apart, of whole pages. It becomes lazy, where a restore can take it lazily, and stored where not. The image is
/// replaced atomically, unless it stays the same.
///
/// After success every page is lazy, stored, or in the images. After an error the images are of no use.
///
/// # Errors
/// [`PagemapError`].
pub fn settle(images: &Path, pid: i32, left_out: &[Range<u64>]) -> Result<Settled, PagemapError> {
    if !ranges::is_sorted(left_out) {
        return Err(PagemapError::LeftOut { pid });
    }
    let path = images.join(pagemap_file(pid));
    let image = read(&path)?;
    let pagemap = parse(&image).map_err(|source| PagemapError::Image { path: path.clone(), source })?;
    let is_settled = pagemap.entries.iter().all(|entry| matches!(entry.flags, PRESENT | LAZY));
    if left_out.is_empty() && is_settled {
        return Ok(Settled::default());
    }
    let lazy =
        if left_out.is_empty() { Vec::new() } else { ranges::intersection(left_out, &lazy::lazy_ranges(images, pid)?) };
    let plan = plan(&pagemap, pid, left_out, &lazy)?;
    replace(&path, |file| file.write_all(&plan.image).map_err(|source| write_error(&path, source)))?;
    Ok(plan.settled)
}

/// How long the pages file of process `pid` is that [`assemble`] puts together, bytes. None where nothing of the process is stored. Blocking.
///
/// # Errors
/// [`PagemapError`]: the images are of no use.
pub fn assembled(images: &Path, pid: i32) -> Result<Option<u64>, PagemapError> {
    let path = images.join(pagemap_file(pid));
    let image = read(&path)?;
    let entries = parse(&image).map_err(|source| PagemapError::Image { path, source })?.entries;
    let present = entries.iter().filter(|entry| entry.flags & PRESENT != 0);
    let bytes = present.map(|entry| entry.range.end - entry.range.start).sum();
    Ok(entries.iter().any(|entry| entry.stored).then_some(bytes))
}

/// Puts the pages file of process `pid` together where [`settle`] has called memory stored: of what CRIU has written, and of what
/// `stored` returns for addresses, at most 1 MiB at a time. Blocking.
///
/// # Errors
/// [`PagemapError`]: the images are of no use. Also where nothing of the process is stored.
pub fn assemble(
    images: &Path,
    pid: i32,
    mut stored: impl FnMut(Range<u64>) -> std::io::Result<Vec<u8>>,
) -> Result<Assembled, PagemapError> {
    let path = images.join(pagemap_file(pid));
    let image = read(&path)?;
    let Pagemap { pages_id, entries, .. } =
        parse(&image).map_err(|source| PagemapError::Image { path: path.clone(), source })?;
    if pages_id & ASSEMBLED == 0 {
        // What would be written is what is read.
        return Err(PagemapError::Image { path, source: ImageError::Entry(0) });
    }
    let name = pages_file(pages_id);
    let (path, from) = (images.join(&name), images.join(pages_file(pages_id & !ASSEMBLED)));
    let mut dumped = open_pages(&from)?;
    let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0);
    let present = entries.iter().filter(|entry| entry.flags & PRESENT != 0);
    let longest = present.map(|entry| entry.range.end - entry.range.start).max().unwrap_or_default();
    replace(&path, |file| {
        let mut new = BufWriter::with_capacity(CHUNK as usize, file);
        // To clear more than is needed takes longer than to read it.
        let mut buffer = vec![0; longest.min(CHUNK) as usize];
        for Entry { range, stored: is_stored, .. } in entries.iter().filter(|entry| entry.flags & PRESENT != 0) {
            for start in range.clone().step_by(CHUNK as usize) {
                let end = range.end.min(start + CHUNK);
                let part = &mut buffer[..(end - start) as usize];
                if *is_stored {
                    let failed = |source| PagemapError::Memory { pid, start, end, source };
                    let pages = stored(start..end).map_err(failed)?;
                    if pages.len() != part.len() {
                        return Err(failed(std::io::ErrorKind::UnexpectedEof.into()));
                    }
                    part.copy_from_slice(&pages);
                } else {
                    read_pages(dumped.as_mut(), part, &from)?;
                }
                hasher.update(part);
                bytes += end - start;
                new.write_all(part).map_err(|source| write_error(&path, source))?;
            }
        }
        new.flush().map_err(|source| write_error(&path, source))
    })?;
    Ok(Assembled { name, bytes, digest: hasher.finalize() })
}

fn parse(image: &[u8]) -> Result<Pagemap<'_>, ImageError> {
    let all = image::entries(image, PAGEMAP_MAGIC)?;
    let (head, rest) = all.split_first().ok_or(ImageError::Count(0))?;
    let pages_id = PagemapHead::decode(*head).map_err(|_| ImageError::Entry(0))?.pages_id;
    let mut entries: Vec<Entry<'_>> = Vec::with_capacity(rest.len());
    for (number, bytes) in (1..).zip(rest) {
        let bad = ImageError::Entry(number);
        let entry = PagemapEntry::decode(*bytes).map_err(|_| bad)?;
        let range = entry.range().ok_or(bad)?;
        let flags = entry.flags.unwrap_or(if entry.in_parent == Some(true) { PARENT } else { PRESENT });
        let overlaps = entries.last().is_some_and(|last| last.range.end > range.start);
        let stored = entry.stored == Some(true);
        // There is no earlier dump that could have anything.
        if overlaps || flags & PARENT != 0 || (stored && flags != PRESENT) {
            return Err(bad);
        }
        entries.push(Entry { range, flags, stored, bytes });
    }
    Ok(Pagemap { pages_id, head, entries })
}

/// Pure. What CRIU wrote stays as it is, in its order, but is never both lazy and present.
fn plan(pagemap: &Pagemap<'_>, pid: i32, left_out: &[Range<u64>], lazy: &[Range<u64>]) -> Result<Plan, PagemapError> {
    let mut plan = Plan { image: Vec::new(), settled: Settled::default() };
    let mut entries = vec![pagemap.head.to_vec()];
    let mut pieces = left_out.iter().flat_map(|range| ranges::cut(range, lazy)).peekable();
    for Entry { range, flags, bytes, .. } in &pagemap.entries {
        while let Some((piece, is_lazy)) = pieces.next_if(|(piece, _)| piece.end <= range.start) {
            entries.push(plan.add(piece, is_lazy));
        }
        if let Some((piece, _)) = pieces.next_if(|(piece, _)| piece.start < range.end) {
            return Err(PagemapError::Twice { pid, start: piece.start, end: piece.end });
        }
        let both = flags & (LAZY | PRESENT) == LAZY | PRESENT;
        entries.push(if both { PagemapEntry::new(range, PRESENT).encode_to_vec() } else { bytes.to_vec() });
    }
    for (piece, is_lazy) in pieces {
        entries.push(plan.add(piece, is_lazy));
    }
    if !plan.settled.stored.is_empty() {
        entries[0] = PagemapHead { pages_id: pagemap.pages_id | ASSEMBLED }.encode_to_vec();
    }
    plan.image = image::assemble(PAGEMAP_MAGIC, entries);
    Ok(plan)
}

impl Plan {
    /// An entry for memory that was left out.
    fn add(&mut self, piece: Range<u64>, is_lazy: bool) -> Vec<u8> {
        let entry = if is_lazy {
            PagemapEntry::new(&piece, LAZY)
        } else {
            PagemapEntry { stored: Some(true), ..PagemapEntry::new(&piece, PRESENT) }
        };
        if is_lazy { &mut self.settled.lazy } else { &mut self.settled.stored }.push(piece);
        entry.encode_to_vec()
    }
}

/// CRIU's pages file; none where it made none, because it had no page to write.
fn open_pages(path: &Path) -> Result<Option<File>, PagemapError> {
    match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PagemapError::Read { path: path.to_owned(), source }),
    }
}

/// The next bytes of the pages file that lies at `path`.
fn read_pages(file: Option<&mut File>, part: &mut [u8], path: &Path) -> Result<(), PagemapError> {
    let path = || path.to_owned();
    let file = file.ok_or_else(|| PagemapError::PagesCutOff { path: path() })?;
    file.read_exact(part).map_err(|source| match source.kind() {
        std::io::ErrorKind::UnexpectedEof => PagemapError::PagesCutOff { path: path() },
        _ => PagemapError::Read { path: path(), source },
    })
}

fn replace(path: &Path, fill: impl FnOnce(&mut File) -> Result<(), PagemapError>) -> Result<(), PagemapError> {
    let beside: PathBuf = path.with_extension("img.settled");
    let open = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside);
    fill(&mut open.map_err(|source| write_error(path, source))?)?;
    std::fs::rename(&beside, path).map_err(|source| write_error(path, source))
}

fn read(path: &Path) -> Result<Vec<u8>, PagemapError> {
    image::read(path).map_err(|source| PagemapError::Read { path: path.to_owned(), source })
}

fn write_error(path: &Path, source: std::io::Error) -> PagemapError {
    PagemapError::Write { path: path.to_owned(), source }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "lists of ranges are meant")]
#[path = "pagemap_tests.rs"]
mod tests;
