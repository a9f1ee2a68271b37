//! BLAKE3 of files, read back from the disk by as many threads as there are processors.
//!
//! It is part of the freeze, and one thread alone would need 0.3 s for a gigabyte. BLAKE3 is a tree: the threads take
//! subtrees, and the digest is that of the plain function. Files are read and not mapped, because one that is cut under a
//! mapping would end the agent.

use crate::processors::processors;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};
use blake3::{Hash, Hasher};
use std::fs::OpenOptions;
use std::io::Result;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

/// Bytes of the subtrees that threads take: a power of two.
const LEAF: u64 = 4 << 20;
/// Bytes that are read at once: few enough to be in the processor's cache when they are hashed.
const BLOCK: usize = 128 << 10;
/// Most threads. More of them would wait for memory.
const MAX_THREADS: usize = 8;

/// A file to hash.
#[derive(Clone, Debug)]
pub struct Whole {
    /// Its path. A symbolic link is not followed.
    pub path: PathBuf,
    /// Its length, bytes.
    pub bytes: u64,
}

/// The digest of each file, in the order given; an error where one can't be read to its length. Blocking.
pub fn digests(files: &[Whole]) -> Vec<Result<Hash>> {
    let leaves: Vec<Leaf<'_>> = files.iter().enumerate().flat_map(|(file, whole)| leaves(file, whole)).collect();
    let bytes: u64 = files.iter().map(|whole| whole.bytes).sum();
    let threads = processors().min(MAX_THREADS).min(leaves.len());
    // One more thread takes longer to begin than a few small files to be read.
    let threads = threads.min(usize::try_from(bytes.div_ceil(LEAF)).unwrap_or(threads));
    let (next, (done, results)) = (AtomicUsize::new(0), mpsc::channel());
    let work = |done: mpsc::Sender<(usize, u64, Result<ChainingValue>)>| {
        let mut block = vec![0; BLOCK];
        while let Some(leaf) = leaves.get(next.fetch_add(1, Ordering::Relaxed)) {
            // The other end is there until every thread has ended.
            done.send((leaf.file, leaf.offset, leaf.hash(&mut block))).ok();
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            let (work, done) = (&work, done.clone());
            scope.spawn(move || work(done));
        }
        work(done);
    });
    let mut values: Vec<Result<Vec<ChainingValue>>> = files.iter().map(|_| Ok(Vec::new())).collect();
    let mut results: Vec<_> = results.into_iter().collect();
    results.sort_by_key(|(file, offset, _)| (*file, *offset));
    for (file, _, result) in results {
        match (&mut values[file], result) {
            (Ok(values), Ok(value)) => values.push(value),
            (failed @ Ok(_), Err(error)) => *failed = Err(error),
            (Err(_), _) => {}
        }
    }
    files.iter().zip(values).map(|(whole, values)| Ok(root(whole.bytes, &values?))).collect()
}

/// A subtree of one file.
#[derive(Clone, Copy, Debug)]
struct Leaf<'a> {
    /// Which file.
    file: usize,
    path: &'a Path,
    offset: u64,
    bytes: u64,
    /// The file has no other: what it hashes to is the digest.
    alone: bool,
}

fn leaves(file: usize, whole: &Whole) -> impl Iterator<Item = Leaf<'_>> {
    let count = whole.bytes.div_ceil(LEAF).max(1);
    (0..count).map(move |number| {
        let offset = number * LEAF;
        Leaf { file, path: &whole.path, offset, bytes: LEAF.min(whole.bytes - offset), alone: count == 1 }
    })
}

impl Leaf<'_> {
    fn hash(&self, block: &mut [u8]) -> Result<ChainingValue> {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(self.path)?;
        let mut hasher = Hasher::new();
        hasher.set_input_offset(self.offset);
        let (mut at, end) = (self.offset, self.offset + self.bytes);
        while at < end {
            let length = usize::try_from(end - at).map_or(block.len(), |left| left.min(block.len()));
            file.read_exact_at(&mut block[..length], at)?;
            hasher.update(&block[..length]);
            at += length as u64;
        }
        Ok(if self.alone { *hasher.finalize().as_bytes() } else { hasher.finalize_non_root() })
    }
}

/// The digest of `bytes` bytes, made of what their leaves hash to.
fn root(bytes: u64, values: &[ChainingValue]) -> Hash {
    match values {
        [alone] => Hash::from_bytes(*alone),
        _ => {
            let (left, right) = halves(bytes, values);
            merge_subtrees_root(&left, &right, Mode::Hash)
        }
    }
}

fn halves(bytes: u64, values: &[ChainingValue]) -> (ChainingValue, ChainingValue) {
    let left = left_subtree_len(bytes);
    let (first, second) = values.split_at(usize::try_from(left / LEAF).unwrap_or(values.len()));
    (subtree(left, first), subtree(bytes - left, second))
}

fn subtree(bytes: u64, values: &[ChainingValue]) -> ChainingValue {
    match values {
        [alone] => *alone,
        _ => {
            let (left, right) = halves(bytes, values);
            merge_subtrees_non_root(&left, &right, Mode::Hash)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_that_of_the_plain_function_whatever_the_length() {
        let directory = tempfile::tempdir().expect("dir");
        let bytes: Vec<u8> = (0..5 * LEAF + 3).map(|n| (n % 251) as u8).collect();
        let lengths = [0, 1, 1024, LEAF - 1, LEAF, LEAF + 1, 2 * LEAF, 3 * LEAF + 5, 4 * LEAF, 5 * LEAF + 3];
        let files: Vec<Whole> =
            lengths.iter().map(|&bytes| Whole { path: directory.path().join(bytes.to_string()), bytes }).collect();
        let of = |length: u64| &bytes[..usize::try_from(length).expect("fits")];
        for file in &files {
            std::fs::write(&file.path, of(file.bytes)).expect("write");
        }
        for (file, digest) in files.iter().zip(digests(&files)) {
            assert_eq!(digest.expect("digest"), blake3::hash(of(file.bytes)), "{} bytes", file.bytes);
        }
    }

    #[test]
    fn a_file_that_is_too_short_or_a_link_is_an_error_and_the_others_have_their_digests() {
        let directory = tempfile::tempdir().expect("dir");
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("short"), b"12").expect("write");
        std::fs::write(path("good"), b"123").expect("write");
        std::os::unix::fs::symlink(path("good"), path("link")).expect("link");
        let files = ["short", "link", "good"].map(|name| Whole { path: path(name), bytes: 3 });
        let digests = digests(&files);
        assert!(digests[0].is_err() && digests[1].is_err());
        assert_eq!(digests[2].as_ref().ok(), Some(&blake3::hash(b"123")));
    }
}
