//! What CRIU's images get wrong, put right after a dump and before digests are taken.
//!
//! A periodic timerfd whose expiry has not been read is dumped with nothing left until the next one, and a restore takes
//! that for "disarmed": the timer never fires again, silently. Such an entry gets one nanosecond instead.

use super::image::{self, FILES_MAGIC, ImageError, MAX_IMAGE};
use super::wire::{self, Field, WireError};
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use thiserror::Error;

// Source: CRIU's `images/fdinfo.proto` and `images/timerfd.proto`.
const FILE_TIMERFD: u32 = 12;
const TIMER_VALUE_SECONDS: u32 = 7;
const TIMER_VALUE_NANOS: u32 = 8;
const TIMER_INTERVAL_SECONDS: u32 = 9;
const TIMER_INTERVAL_NANOS: u32 = 10;

/// Why images could not be mended. They are then not fit for a restore.
#[derive(Debug, Error)]
pub enum MendError {
    /// The image could not be read.
    #[error("read {path}")]
    Read {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The image is longer than any real one.
    #[error("{path} has more than {MAX_IMAGE} bytes")]
    TooLong {
        /// The image.
        path: PathBuf,
    },
    /// The image is no image.
    #[error("parse {path}")]
    Image {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: ImageError,
    },
    /// An entry of the image is no message.
    #[error("parse an entry of {path}")]
    Entry {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: WireError,
    },
    /// The mended image could not be put in place.
    #[error("write {path}")]
    Write {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Mends the timerfds in `files.img` of an image directory and returns how many needed it. The file is written again,
/// atomically, only if one did. A directory without that file holds no open files and needs nothing.
///
/// # Errors
/// [`MendError`]; the file is untouched then.
pub fn timerfds(images: &Path) -> Result<usize, MendError> {
    let path = images.join("files.img");
    let Some(image) = read(&path)? else { return Ok(0) };
    let entries = image::entries(&image, FILES_MAGIC)
        .map_err(|source| MendError::Image { path: path.clone(), source })?
        .into_iter()
        .map(mend_entry)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| MendError::Entry { path: path.clone(), source })?;
    let mended = entries.iter().filter(|(_, mended)| *mended).count();
    if mended > 0 {
        let image = image::assemble(FILES_MAGIC, entries.into_iter().map(|(entry, _)| entry));
        write(&path, &image).map_err(|source| MendError::Write { path, source })?;
    }
    Ok(mended)
}

/// A `file_entry`, mended if it is a timerfd that needs it, and whether it was.
fn mend_entry(entry: &[u8]) -> Result<(Vec<u8>, bool), WireError> {
    let mut file = wire::decode(entry)?;
    let Some(timer) = file.iter_mut().find(|field| field.number == FILE_TIMERFD) else {
        return Ok((entry.to_vec(), false));
    };
    let Some(bytes) = timer.as_bytes() else { return Ok((entry.to_vec(), false)) };
    let Some(mended) = mend_timer(bytes)? else { return Ok((entry.to_vec(), false)) };
    *timer = Field::bytes(FILE_TIMERFD, mended);
    Ok((wire::encode(&file), true))
}

/// A mended `timerfd_entry`, or none if it is right as it is.
fn mend_timer(bytes: &[u8]) -> Result<Option<Vec<u8>>, WireError> {
    let mut timer = wire::decode(bytes)?;
    let value = |number: u32| timer.iter().rev().find(|field| field.number == number).and_then(Field::as_varint);
    let is_zero = |number: u32| value(number).unwrap_or(0) == 0;
    let due = is_zero(TIMER_VALUE_SECONDS) && is_zero(TIMER_VALUE_NANOS);
    let periodic = !is_zero(TIMER_INTERVAL_SECONDS) || !is_zero(TIMER_INTERVAL_NANOS);
    if !due || !periodic {
        return Ok(None);
    }
    timer.retain(|field| field.number != TIMER_VALUE_NANOS);
    timer.push(Field::varint(TIMER_VALUE_NANOS, 1));
    Ok(Some(wire::encode(&timer)))
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, MendError> {
    let failed = |source| MendError::Read { path: path.to_owned(), source };
    let file = match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut image = Vec::new();
    file.take(MAX_IMAGE + 1).read_to_end(&mut image).map_err(failed)?;
    if image.len() as u64 > MAX_IMAGE {
        return Err(MendError::TooLong { path: path.to_owned() });
    }
    Ok(Some(image))
}

fn write(path: &Path, image: &[u8]) -> std::io::Result<()> {
    let beside = path.with_extension("img.mended");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(image)?;
    std::fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timer(value: (u64, u64), interval: (u64, u64)) -> Vec<u8> {
        wire::encode(&[
            Field::varint(1, 7),
            Field::bytes(3, vec![]),
            Field::varint(5, 1),
            Field::varint(TIMER_VALUE_SECONDS, value.0),
            Field::varint(TIMER_VALUE_NANOS, value.1),
            Field::varint(TIMER_INTERVAL_SECONDS, interval.0),
            Field::varint(TIMER_INTERVAL_NANOS, interval.1),
        ])
    }

    fn file(timer: Vec<u8>) -> Vec<u8> {
        wire::encode(&[Field::varint(1, 17), Field::varint(2, 7), Field::bytes(FILE_TIMERFD, timer)])
    }

    fn nanos_after_mending(entry: &[u8]) -> Option<u64> {
        let (entry, _) = mend_entry(entry).unwrap();
        let file = wire::decode(&entry).unwrap();
        let timer = file.iter().find(|field| field.number == FILE_TIMERFD).unwrap();
        let timer = wire::decode(timer.as_bytes().unwrap()).unwrap();
        timer.iter().find(|field| field.number == TIMER_VALUE_NANOS).and_then(Field::as_varint)
    }

    #[test]
    fn a_periodic_timer_that_is_due_gets_a_nanosecond() {
        assert_eq!(nanos_after_mending(&file(timer((0, 0), (0, 1_000_000)))), Some(1));
        assert_eq!(nanos_after_mending(&file(timer((0, 0), (5, 0)))), Some(1));
    }

    #[test]
    fn every_other_timer_stays_as_it_is() {
        for entry in [file(timer((0, 0), (0, 0))), file(timer((0, 40), (0, 1_000_000))), file(timer((3, 0), (5, 0)))] {
            assert_eq!(mend_entry(&entry).unwrap(), (entry.clone(), false));
        }
    }

    #[test]
    fn other_files_are_copied_byte_by_byte() {
        let entry = wire::encode(&[Field::varint(1, 1), Field::bytes(3, b"\x01\x02".to_vec())]);
        assert_eq!(mend_entry(&entry).unwrap(), (entry.clone(), false));
    }

    #[test]
    fn the_image_is_written_again_only_if_a_timer_needed_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("files.img");
        assert_eq!(timerfds(directory.path()).unwrap(), 0);

        let good = image::assemble(FILES_MAGIC, [file(timer((1, 0), (5, 0)))]);
        std::fs::write(&path, &good).unwrap();
        assert_eq!(timerfds(directory.path()).unwrap(), 0);
        assert_eq!(std::fs::read(&path).unwrap(), good);

        let bad = image::assemble(FILES_MAGIC, [file(timer((0, 0), (5, 0))), file(timer((1, 0), (5, 0)))]);
        std::fs::write(&path, bad).unwrap();
        assert_eq!(timerfds(directory.path()).unwrap(), 1);
        assert_eq!(timerfds(directory.path()).unwrap(), 0);
    }

    #[test]
    fn a_truncated_image_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("files.img");
        let image = image::assemble(FILES_MAGIC, [file(timer((0, 0), (5, 0)))]);
        std::fs::write(&path, &image[..image.len() - 1]).unwrap();
        assert!(matches!(timerfds(directory.path()), Err(MendError::Image { .. })));
    }
}
