//! What a tree adds to the freeze: sends one in rounds to a directory beside it, and prints the milliseconds of the last one.
//!
//! `tree_rounds DIRECTORY FILES MIB` makes a tree of FILES files with MIB mebibytes together under DIRECTORY, changes 1,000 of them
//! before the freeze, and then 0, 10 and 1,000 more. `look` and `pack` are the source's, `unpack` is the target's.

use criu_shim::agent::files::TreeKind;
use criu_shim::agent::files::held::Held;
use criu_shim::agent::files::tree::{Tree, now};
use criu_shim::agent::files::unpack::unpack;
use criu_shim::causes::chain;
use std::error::Error;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Files of one directory.
const A_DIRECTORY: usize = 100;
/// How often each figure is taken.
const TIMES: usize = 9;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, directory, files, mib] = arguments.as_slice() else { return Err("DIRECTORY FILES MIB".into()) };
    let (files, bytes) = (files.parse::<usize>()?, mib.parse::<usize>()? << 20);
    let place = Path::new(directory).join(format!("tree-rounds-{}", std::process::id()));
    let measured = measure(&place, files, bytes);
    std::fs::remove_dir_all(&place)?;
    measured
}

fn measure(place: &Path, files: usize, bytes: usize) -> Result<(), Box<dyn Error>> {
    let (from, to) = (place.join("from"), place.join("to"));
    std::fs::create_dir_all(&to)?;
    let length = bytes / files.max(1);
    for number in 0..files {
        let path = name(&from, number);
        if number % A_DIRECTORY == 0 {
            std::fs::create_dir_all(path.parent().unwrap_or(&from))?;
        }
        std::fs::write(path, content(number, length))?;
    }
    let tree = Arc::new(Mutex::new(Tree::new(from.clone(), TreeKind::Volume)));
    print("first", &[round(&tree, &to, false)?]);
    change(&from, files, 1000, length, 1)?;
    print("1000 changed while it runs", &[round(&tree, &to, false)?]);
    for (changed, salt) in [(0, 10), (10, 100), (1000, 1000)] {
        let mut taken = Vec::new();
        for time in 0..TIMES {
            // The last round before the freeze, some time after the last change.
            std::thread::sleep(Duration::from_millis(100));
            round(&tree, &to, false)?;
            change(&from, files, changed, length, salt + time)?;
            taken.push(round(&tree, &to, true)?);
        }
        print(&format!("frozen, {changed} changed since the last round"), &taken);
    }
    let log = from.join("log");
    std::fs::write(&log, content(1, bytes / 2))?;
    round(&tree, &to, false)?;
    let mut taken = Vec::new();
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(100));
        round(&tree, &to, false)?;
        OpenOptions::new().append(true).open(&log)?.write_all(b"a line\n")?;
        taken.push(round(&tree, &to, true)?);
    }
    print(&format!("frozen, a line appended to {} MiB", bytes >> 21), &taken);
    Ok(())
}

#[derive(Clone, Copy)]
struct Taken {
    look: Duration,
    pack: Duration,
    unpack: Duration,
    bytes: usize,
}

fn round(tree: &Arc<Mutex<Tree>>, to: &Path, frozen: bool) -> Result<Taken, Box<dyn Error>> {
    let begun = Instant::now();
    let packing = Tree::look(tree, &Held::default(), now(), frozen).map_err(|error| chain(&error))?;
    let look = begun.elapsed();
    let mut archive = Vec::new();
    if let Some(mut packing) = packing {
        packing.read_to_end(&mut archive)?;
    }
    let pack = begun.elapsed() - look;
    let begun = Instant::now();
    if !archive.is_empty() {
        unpack(to, TreeKind::Volume, archive.as_slice(), u64::MAX).map_err(|error| chain(&error))?;
    }
    Ok(Taken { look, pack, unpack: begun.elapsed(), bytes: archive.len() })
}

fn print(what: &str, taken: &[Taken]) {
    let median = |of: fn(&Taken) -> Duration| {
        let mut all: Vec<Duration> = taken.iter().map(of).collect();
        all.sort();
        all.get(all.len() / 2).map_or(0.0, |middle| middle.as_secs_f64() * 1e3)
    };
    let bytes = taken.iter().map(|one| one.bytes).max().unwrap_or_default();
    println!(
        "{what}: look {:.1} ms, pack {:.1} ms, unpack {:.1} ms, {bytes} bytes",
        median(|one| one.look),
        median(|one| one.pack),
        median(|one| one.unpack)
    );
}

fn name(from: &Path, number: usize) -> PathBuf {
    from.join(format!("d{}", number / A_DIRECTORY)).join(format!("file-{number}"))
}

/// Bytes that are no zeros.
fn content(number: usize, length: usize) -> Vec<u8> {
    (0..length).map(|at| ((at >> 12) ^ number) as u8 | 1).collect()
}

/// Changes some bytes of this many files, spread over the tree.
fn change(from: &Path, files: usize, count: usize, length: usize, salt: usize) -> Result<(), Box<dyn Error>> {
    for number in 0..count.min(files) {
        let file = OpenOptions::new().write(true).open(name(from, number * (files / count.max(1)).max(1) % files))?;
        file.write_all_at(&(salt as u64 | 1 << 60).to_le_bytes(), (length / 2) as u64)?;
    }
    Ok(())
}
