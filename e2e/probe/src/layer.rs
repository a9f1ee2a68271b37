//! Files in the container's writable layer, a thousand or so of which are written again and again.
//!
//! Whoever moves the program has all of those to move in the freeze, because each is written several times in every second. The
//! thread that writes them looks whether each has what it wrote last: one that went back ends the program.

use clap::Args as ClapArgs;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::noise;

/// Bytes of a file that stays as it is.
const LARGE: usize = 8 << 20;
/// Bytes of a file that is written again and again.
const SMALL: usize = 4 << 10;
/// In which all of these are written once.
const SWEEP: Duration = Duration::from_millis(50);
/// Files of a directory.
const A_DIRECTORY: usize = 100;

#[derive(ClapArgs)]
#[group(skip)]
pub(crate) struct Args {
    /// Directory of files that is made in the writable layer.
    #[arg(long)]
    layer: Option<PathBuf>,
    /// What the files there have together, MiB, in files of 8 MiB that stay as they are.
    #[arg(long, default_value_t = 0, requires = "layer")]
    layer_mib: usize,
    /// Further files there, of 4 KiB, each of which is written anew twenty times a second.
    #[arg(long, default_value_t = 0, requires = "layer")]
    changed_files: usize,
}

/// Makes the files, and begins to write.
///
/// # Errors
/// Where they can't be made.
pub(crate) fn start(args: &Args) -> io::Result<()> {
    let Some(layer) = &args.layer else { return Ok(()) };
    for number in 0..(args.layer_mib << 20) / LARGE {
        let path = path(layer, "large", number)?;
        fs::write(path, content(number as u64, LARGE))?;
    }
    let paths: Vec<_> =
        (0..args.changed_files).map(|number| path(layer, "small", number)).collect::<io::Result<_>>()?;
    for path in &paths {
        fs::write(path, content(0, SMALL))?;
    }
    if !paths.is_empty() {
        std::thread::Builder::new().name("layer".to_owned()).spawn(move || write(&paths))?;
    }
    Ok(())
}

/// Writes all of them again and again, and ends the program where one does not have what was written last.
fn write(paths: &[PathBuf]) {
    for sweep in 1.. {
        let begun = Instant::now();
        let content = content(sweep, SMALL);
        for path in paths {
            if let Err(error) = write_one(path, sweep, &content) {
                eprintln!("probe: {}: {error}", path.display());
                std::process::exit(1);
            }
        }
        std::thread::sleep(SWEEP.saturating_sub(begun.elapsed()));
    }
}

fn write_one(path: &Path, sweep: u64, content: &[u8]) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut first = [0; 8];
    file.read_exact_at(&mut first, 0)?;
    let found = u64::from_le_bytes(first);
    if found != noise::word(sweep - 1) {
        return Err(io::Error::other(format!("it does not have what was written {sweep} times")));
    }
    file.write_all_at(content, 0)
}

/// Bytes of noise, others for every `seed`, by which the first eight are.
fn content(seed: u64, length: usize) -> Vec<u8> {
    let words = (0..length as u64 / 8).map(|index| noise::word(seed.wrapping_add(index << 32)));
    words.flat_map(u64::to_le_bytes).collect()
}

/// Of file `number` of a kind, below a directory that is there.
fn path(layer: &Path, kind: &str, number: usize) -> io::Result<PathBuf> {
    let directory = layer.join(format!("{kind}-{}", number / A_DIRECTORY));
    fs::create_dir_all(&directory)?;
    Ok(directory.join(number.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_went_back_is_noticed() {
        let layer = std::env::temp_dir().join(format!("layer-{}", std::process::id()));
        let file = path(&layer, "small", 7).expect("a directory");
        fs::write(&file, content(0, SMALL)).expect("written");
        write_one(&file, 1, &content(1, SMALL)).expect("as it was left");
        write_one(&file, 2, &content(2, SMALL)).expect("as it was left");
        assert_eq!(fs::read(&file).expect("read"), content(2, SMALL));
        fs::write(&file, content(1, SMALL)).expect("written");
        write_one(&file, 3, &content(3, SMALL)).expect_err("it went back");
        fs::remove_dir_all(&layer).expect("removed");
    }
}
