//! What a tree adds to the freeze: sends one in rounds to a directory beside it, and prints the milliseconds of the last one.
//!
//! `tree_rounds DIRECTORY FILES MIB volume|layer` makes a tree of FILES files with MIB mebibytes together under DIRECTORY, and changes
//! 1,000, 10 or none of them before each freeze. `look` and `pack` are the source's; the target unpacks what it packs meanwhile,
//! and is done so long after it (`unpack`) and so long after the beginning (`placed`). Minimum, median and maximum. A layer is that
//! of an overlay, into that of another: run it by `unshare -m`, as root.

use criu_shim::agent::files::TreeKind;
use criu_shim::agent::files::held::Held;
use criu_shim::agent::files::pack::Packing;
use criu_shim::agent::files::tree::{Tree, now};
use criu_shim::agent::files::unpack::unpack;
use criu_shim::causes::chain;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::error::Error;
use std::ffi::CString;
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

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        [_, directory, files, mib, kind] => {
            let place = Path::new(directory).join(format!("tree-rounds-{}", std::process::id()));
            let measured = Place::make(&place, *kind == "layer").and_then(|trees| {
                let measured = measure(&trees, files.parse()?, mib.parse::<usize>()? << 20);
                trees.give_up()?;
                measured
            });
            std::fs::remove_dir_all(&place)?;
            measured
        }
        // What this process does itself is passed over by the watch.
        [_, "change", files, count, length, salt, from] => {
            change(Path::new(from), files.parse()?, count.parse()?, length.parse()?, salt.parse()?)
        }
        _ => Err("DIRECTORY FILES MIB volume|layer".into()),
    }
}

/// Where the trees are.
struct Place {
    kind: TreeKind,
    /// As it is listed.
    tree: PathBuf,
    /// As the application sees it.
    from: PathBuf,
    /// As the application sees its copy.
    to: PathBuf,
}

impl Place {
    fn make(place: &Path, layer: bool) -> Result<Self> {
        if !layer {
            let (from, to) = (place.join("from"), place.join("to"));
            std::fs::create_dir_all(&from)?;
            std::fs::create_dir_all(&to)?;
            return Ok(Self { kind: TreeKind::Volume, tree: from.clone(), from, to });
        }
        let overlay = |name: &str| -> Result<PathBuf> {
            let at = place.join(name);
            for name in ["lower", "upper", "work", "merged"] {
                std::fs::create_dir_all(at.join(name))?;
            }
            let options = format!("lowerdir={0}/lower,upperdir={0}/upper,workdir={0}/work", at.display());
            let options = CString::new(options)?;
            mount("overlay", at.join("merged"), "overlay", MountFlags::empty(), Some(options.as_c_str()))?;
            Ok(at.join("merged"))
        };
        let (from, to) = (overlay("source")?, overlay("target")?);
        Ok(Self { kind: TreeKind::Layer, tree: place.join("source/upper"), from, to })
    }

    fn give_up(&self) -> Result<()> {
        if self.kind == TreeKind::Layer {
            unmount(&self.from, UnmountFlags::empty())?;
            unmount(&self.to, UnmountFlags::empty())?;
        }
        Ok(())
    }
}

fn measure(place: &Place, files: usize, bytes: usize) -> Result<()> {
    let length = bytes / files.max(1);
    for number in 0..files {
        let path = name(&place.from, number);
        if number % A_DIRECTORY == 0 {
            std::fs::create_dir_all(path.parent().unwrap_or(&place.from))?;
        }
        std::fs::write(path, content(number, length))?;
    }
    let change = |count: usize, salt: usize| -> Result<()> {
        let numbers = [files, count, length, salt].map(|number| number.to_string());
        let program = std::process::Command::new(std::env::current_exe()?);
        let changed = { program }.arg("change").args(numbers).arg(&place.from).status()?;
        if changed.success() { Ok(()) } else { Err("the files could not be changed".into()) }
    };
    let tree = Arc::new(Mutex::new(Tree::new(place.tree.clone(), place.kind)));
    print("first", &[round(&tree, place)?]);
    change(1000, 1)?;
    print("1000 changed while it runs", &[round(&tree, place)?]);
    for (changed, salt) in [(1000, 1000), (10, 100), (0, 10)] {
        let mut taken = Vec::new();
        for time in 0..TIMES {
            taken.push(freeze(&tree, place, || change(changed, salt + time))?);
        }
        print(&format!("frozen, {changed} changed since the last round"), &taken);
    }
    let log = place.from.join("log");
    std::fs::write(&log, content(1, bytes / 2))?;
    round(&Arc::new(Mutex::new(Tree::new(place.tree.clone(), place.kind))), place)?;
    let mut taken = Vec::new();
    for _ in 0..TIMES {
        taken.push(freeze(&tree, place, || {
            OpenOptions::new().append(true).open(&log)?.write_all(b"a line\n")?;
            // By a process that is not passed over.
            Ok(std::process::Command::new("touch").arg(&log).status().map(drop)?)
        })?);
    }
    print(&format!("frozen, a line appended to {} MiB", bytes >> 21), &taken);
    Ok(())
}

#[derive(Clone, Copy, Default)]
struct Taken {
    look: Duration,
    pack: Duration,
    unpack: Duration,
    placed: Duration,
    bytes: usize,
}

/// Rounds of a tree that the target has by now; then what `happens`, and the round in the freeze. Nothing can follow that, so each
/// begins anew.
fn freeze(tree: &Arc<Mutex<Tree>>, place: &Place, happens: impl Fn() -> Result<()>) -> Result<Taken> {
    std::thread::sleep(Duration::from_millis(100));
    *lock(tree) = Tree::new(place.tree.clone(), place.kind);
    for _ in 0..2 {
        if let Some(mut packing) = look(tree, false)? {
            std::io::copy(&mut packing, &mut std::io::sink())?;
        }
    }
    happens()?;
    let begun = Instant::now();
    let packing = look(tree, true)?;
    let mut taken = Taken { look: begun.elapsed(), ..Taken::default() };
    let Some(mut packing) = packing else {
        taken.placed = taken.look;
        return Ok(taken);
    };
    let (from_source, mut to_target) = std::io::pipe()?;
    rustix::pipe::fcntl_setpipe_size(&to_target, 1 << 20)?;
    let unpacking = {
        let (to, kind) = (place.to.clone(), place.kind);
        std::thread::spawn(move || {
            let archive = std::io::BufReader::with_capacity(256 << 10, from_source);
            unpack(&to, kind, archive, u64::MAX).map_err(|error| chain(&error))
        })
    };
    let mut archive = vec![0; 256 << 10];
    loop {
        let count = packing.read(&mut archive)?;
        if count == 0 {
            break;
        }
        taken.bytes += count;
        to_target.write_all(&archive[..count])?;
    }
    taken.pack = begun.elapsed() - taken.look;
    drop(to_target);
    unpacking.join().map_err(|_| "the target has panicked")??;
    taken.placed = begun.elapsed();
    taken.unpack = taken.placed - taken.look - taken.pack;
    Ok(taken)
}

/// A round while the application runs.
fn round(tree: &Arc<Mutex<Tree>>, place: &Place) -> Result<Taken> {
    let begun = Instant::now();
    let packing = look(tree, false)?;
    let look = begun.elapsed();
    let mut archive = Vec::new();
    if let Some(mut packing) = packing {
        packing.read_to_end(&mut archive)?;
    }
    let pack = begun.elapsed() - look;
    let unpacking = Instant::now();
    if !archive.is_empty() {
        unpack(&place.to, place.kind, archive.as_slice(), u64::MAX).map_err(|error| chain(&error))?;
    }
    Ok(Taken { look, pack, unpack: unpacking.elapsed(), placed: begun.elapsed(), bytes: archive.len() })
}

fn look(tree: &Arc<Mutex<Tree>>, frozen: bool) -> Result<Option<Packing>> {
    let began = now();
    lock(tree).note_events(frozen);
    Ok(Tree::look(tree, &Held::default(), began, frozen).map_err(|error| chain(&error))?)
}

fn lock(tree: &Mutex<Tree>) -> std::sync::MutexGuard<'_, Tree> {
    tree.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn print(what: &str, taken: &[Taken]) {
    let figures = |of: fn(&Taken) -> Duration| {
        let mut all: Vec<f64> = taken.iter().map(|one| of(one).as_secs_f64() * 1e3).collect();
        all.sort_by(f64::total_cmp);
        let at = |place: usize| all.get(place).copied().unwrap_or_default();
        format!("{:.1} {:.1} {:.1}", at(0), at(all.len() / 2), at(all.len() - 1))
    };
    let bytes = taken.iter().map(|one| one.bytes).max().unwrap_or_default();
    println!(
        "{what}: look {}, pack {}, then unpack {}, placed {} ms, {bytes} bytes",
        figures(|one| one.look),
        figures(|one| one.pack),
        figures(|one| one.unpack),
        figures(|one| one.placed)
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
fn change(from: &Path, files: usize, count: usize, length: usize, salt: usize) -> Result<()> {
    for number in 0..count.min(files) {
        let file = OpenOptions::new().write(true).open(name(from, number * (files / count.max(1)).max(1) % files))?;
        file.write_all_at(&(salt as u64 | 1 << 60).to_le_bytes(), (length / 2) as u64)?;
    }
    Ok(())
}
