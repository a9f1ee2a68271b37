//! A bit that changes on the disk of a node: in the memory of a program that is being moved there.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};

/// Where an agent keeps the images of moves, as a path on its node.
pub const IMAGES: &str = "/var/lib/tideover/images";

/// A bit that was flipped.
#[derive(Debug)]
pub struct Flip {
    path: PathBuf,
    /// The image was not complete yet: whoever looks at it before it is used must see the flip.
    pub while_landing: bool,
}

impl Flip {
    /// Flips the first bit of the image with the pages that lies below `images`, if there is one.
    ///
    /// # Errors
    /// When it can't be changed.
    pub fn of_pages(images: &Path) -> Result<Option<Self>> {
        let Some(path) = pages(images) else { return Ok(None) };
        flip(&open(&path)?)?;
        Ok(Some(Self { path, while_landing: false }))
    }

    /// Flips the bit back.
    ///
    /// # Errors
    /// When the image is gone or can't be changed.
    pub fn undo(self) -> Result<()> {
        flip(&open(&self.path)?)
    }
}

/// Waits, as busy as it can, for pages to land, and flips a bit of the first that do.
#[derive(Debug)]
pub struct Flipper {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Option<Flip>>>,
}

impl Flipper {
    /// Begins to wait at `images`, one directory for each node.
    pub fn start(images: Vec<PathBuf>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || flip_what_lands(&images, &stop)
        });
        Self { stop, thread }
    }

    /// Ends the wait; what was flipped, if anything.
    ///
    /// # Errors
    /// When an image was there and could not be changed.
    pub fn finish(self) -> Result<Option<Flip>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the thread that flips a bit panicked"))?
    }
}

fn flip_what_lands(images: &[PathBuf], stop: &AtomicBool) -> Result<Option<Flip>> {
    while !stop.load(Ordering::Relaxed) {
        for path in images.iter().filter_map(|images| pages(images)) {
            // An image that is removed in this moment is none.
            let Ok(file) = open(&path) else { continue };
            let length = file.metadata().context("look at the image")?.len();
            if length == 0 {
                continue;
            }
            flip(&file)?;
            let mut flipped = Flip { path, while_landing: false };
            // Growing proves that the flip was early enough. What does not grow any more is removed in the end.
            while !stop.load(Ordering::Relaxed) && !flipped.while_landing {
                let now = file.metadata().context("look at the image again")?;
                if now.nlink() == 0 {
                    break;
                }
                flipped.while_landing = now.len() > length;
            }
            return Ok(Some(flipped));
        }
        std::thread::yield_now();
    }
    Ok(None)
}

/// The image with the pages of any attempt below `images`: `<migration>/<attempt>/<container>/images/pages-*.img`.
fn pages(images: &Path) -> Option<PathBuf> {
    let inside = |path: PathBuf| path.read_dir().into_iter().flatten().flatten().map(|entry| entry.path());
    inside(images.to_owned())
        .flat_map(inside)
        .flat_map(inside)
        .flat_map(|container| inside(container.join("images")))
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("pages-")))
}

fn open(path: &Path) -> Result<File> {
    OpenOptions::new().read(true).write(true).open(path).with_context(|| format!("open {}", path.display()))
}

fn flip(file: &File) -> Result<()> {
    let mut byte = [0];
    file.read_exact_at(&mut byte, 0).context("read the image")?;
    file.write_all_at(&[byte[0] ^ 1], 0).context("write the image")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lands_is_flipped_once_and_can_be_mended() {
        let directory = tempfile::tempdir().expect("dir");
        assert!(Flip::of_pages(directory.path()).expect("nothing there").is_none());
        let attempt = directory.path().join("uid/1/app/images");
        std::fs::create_dir_all(&attempt).expect("dirs");
        let image = attempt.join("pages-1.img");
        std::fs::write(&image, [6, 7]).expect("image");
        let flip = Flip::of_pages(directory.path()).expect("flip").expect("the image");
        assert_eq!(std::fs::read(&image).expect("read"), [7, 7]);
        flip.undo().expect("mend");
        assert_eq!(std::fs::read(&image).expect("read"), [6, 7]);
    }
}
