//! Reads into memory the programs that are at work in a freeze.
//!
//! CRIU is started long before it, and much of it is not touched until then: a node that is short of memory, or that looks for memory
//! nobody uses, has let that go, and each such page is a wait for the disk in the freeze.

use crate::agent::context::Context;
use crate::cache;
use crate::local::INSTALL_ROOT;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tracing::debug;

/// Of what is installed, relative to [`INSTALL_ROOT`]: what works in a freeze, with all that is below it.
const OF_THE_NODE: [&str; 5] = ["criu", "lib", "relay", "bin/criu-pages", "bin/criu-shim"];
/// This program.
const OWN: &str = "/proc/self/exe";

/// Begins to read them, where they are not in memory. Nobody need wait for it.
pub fn read_ahead(context: &Arc<Context>) {
    let context = context.clone();
    tokio::task::spawn_blocking(move || {
        let root = context.node.path(Path::new(INSTALL_ROOT));
        let bytes: u64 = OF_THE_NODE.iter().map(|name| all_below(&root.join(name))).sum::<u64>() + one(Path::new(OWN));
        debug!(bytes, "programs are read ahead");
    });
}

/// Bytes that were asked for, of a file or of all files in a directory. Without them CRIU waits for the disk, no more.
fn all_below(path: &Path) -> u64 {
    match path.read_dir() {
        Ok(entries) => entries.flatten().map(|entry| all_below(&entry.path())).sum(),
        Err(_) => one(path),
    }
}

fn one(path: &Path) -> u64 {
    let Ok(file) = File::open(path) else { return 0 };
    let length = file.metadata().map_or(0, |file| file.len());
    cache::read_ahead(&file, 0..length, &AtomicBool::new(false))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::resident;
    use rustix::fs::{Advice, fadvise};
    use std::time::{Duration, Instant};

    #[test]
    fn all_files_of_a_directory_are_read_and_what_is_not_there_is_passed_over() {
        // Not in /tmp, which may be memory itself.
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
        std::fs::create_dir(directory.path().join("lib")).expect("a directory");
        let path = directory.path().join("lib/library");
        std::fs::write(&path, vec![7; 1 << 20]).expect("write");
        std::fs::write(directory.path().join("program"), vec![7; 100]).expect("write");
        let open = File::open(&path).expect("open");
        open.sync_all().expect("sync");
        fadvise(&open, 0, None, Advice::DontNeed).expect("forget");
        let was_there = resident(&open, 1 << 20);
        assert_eq!(all_below(directory.path()), (1 << 20) + 100);
        assert_eq!(all_below(&directory.path().join("none")), 0);
        if was_there > 0 {
            return eprintln!("not tried: {} lies in memory", path.display());
        }
        let begun = Instant::now();
        while resident(&open, 1 << 20) < 256 {
            assert!(begun.elapsed() < Duration::from_secs(60), "it is not read");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
