//! What of which files the processes of a container have in memory.
//!
//! A target that has never run the program has none of it, and CRIU puts what was written to a private mapping of a file upon pages
//! of that file: so much of the freeze would be the reading of a disk. It is a hint; what can't be told is left out.

use crate::agent::transfer::message::MappedFile;
use crate::freezer::Freezer;
use crate::memory::{MappedPart, joined, mapped_parts};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::timeout;

/// Parts that are no further apart than this are one, bytes: a disk reads that much in one go anyway.
const APART: u64 = 128 << 10;
/// Bytes that all of it may take in a message, which has 64 KiB.
const MOST: usize = 32 << 10;

/// Parts that are looked at, of all processes together.
const MOST_PARTS: usize = 1 << 16;
/// How long is looked. A process that changes its mappings all the time may keep whoever asks for them waiting.
const LIMIT: Duration = Duration::from_secs(1);

/// Of the processes in `freezer`.
pub(super) async fn of(freezer: Freezer) -> Vec<MappedFile> {
    let looking = tokio::task::spawn_blocking(move || {
        let parts = freezer.pids().unwrap_or_default().into_iter().flat_map(|pid| mapped_parts(pid, APART));
        list(parts.take(MOST_PARTS))
    });
    timeout(LIMIT, looking).await.ok().and_then(Result::ok).unwrap_or_default()
}

/// All of it, in few parts; less where a message could not hold it.
fn list(all: impl Iterator<Item = MappedPart>) -> Vec<MappedFile> {
    let mut by_path = BTreeMap::<String, Vec<(u64, u64)>>::new();
    for MappedPart { path, start, end } in all {
        by_path.entry(path).or_default().push((start, end));
    }
    let (mut files, mut room) = (Vec::new(), MOST);
    for (path, mut parts) in by_path {
        parts.sort_unstable();
        let file = MappedFile { path, parts: joined(parts, APART) };
        // As it is sent: a name may be of characters that take six.
        let takes = serde_json::to_vec(&file).map_or(usize::MAX, |json| json.len() + 1);
        if takes <= room {
            room -= takes;
            files.push(file);
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_file(path: &str, parts: &[(u64, u64)]) -> Vec<MappedPart> {
        parts.iter().map(|&(start, end)| MappedPart { path: path.to_owned(), start, end }).collect()
    }

    #[test]
    fn parts_that_are_near_each_other_are_one() {
        let far = APART + 8192;
        let listed = |parts: &[(u64, u64)]| list(of_file("/a", parts).into_iter());
        let one = |parts| [MappedFile { path: "/a".to_owned(), parts }];
        assert_eq!(listed(&[(far, far + 4096), (0, 4096), (4096, 8192), (0, 4096)]), one(vec![(0, far + 4096)]));
        assert_eq!(listed(&[(far, far + 4096), (0, 4096)]), one(vec![(0, 4096), (far, far + 4096)]));
    }

    #[test]
    fn a_message_can_hold_it() {
        let scattered: Vec<(u64, u64)> = (0..50).map(|part| (part << 30, (part << 30) + 4096)).collect();
        let files = list((0..1000).flat_map(|file| of_file(&format!("/usr/lib/{file}"), &scattered)));
        let length = |files: &[MappedFile]| serde_json::to_vec(files).expect("json").len();
        assert!(!files.is_empty() && length(&files) <= MOST + 2);
        let files = list((0..10).flat_map(|file| of_file(&format!("/{}{file}", "\u{1}".repeat(4000)), &[(0, 1)])));
        assert!(!files.is_empty() && length(&files) <= MOST + 2);
    }
}
