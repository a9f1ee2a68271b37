//! Reading what the stores have into memory before it is needed: nobody has looked at it since it came, and the kernel may have taken it
//! out of its cache. Who waits for such a page waits for the disk.

use crate::cache::{Wanted, read_ahead};
use crate::pages::store::data_files;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::thread::Builder;

/// Begins to read what is in the stores in `directory` by now, for as long as that is wanted. Where it does not work, it is read when it is
/// needed.
pub(super) fn begin(directory: &Path) -> Wanted {
    let wanted = Wanted::default();
    let (off, directory) = (wanted.off(), directory.to_owned());
    Builder::new().spawn(move || read(&data_files(&directory).unwrap_or_default(), &off)).ok();
    wanted
}

fn read(files: &[PathBuf], off: &AtomicBool) {
    for file in files.iter().filter_map(|path| File::open(path).ok()) {
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        read_ahead(&file, 0..length, off);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::resident;
    use crate::pages::PAGE;
    use crate::pages::store::StoreWriter;
    use rustix::fs::{Advice, fadvise};
    use std::time::{Duration, Instant};

    const PAGES: usize = 256;

    #[test]
    fn what_the_kernel_has_forgotten_of_a_store_is_read_again() {
        // Not in /tmp, which may be memory itself.
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
        let mut writer = StoreWriter::create(directory.path(), 17).expect("a store");
        writer.write(0, &vec![7; PAGES * PAGE as usize]).expect("written");
        let [path] = &data_files(directory.path()).expect("a list")[..] else { panic!("one data file") };
        let file = File::open(path).expect("open");
        file.sync_all().expect("sync");
        fadvise(&file, 0, None, Advice::DontNeed).expect("forget");
        let resident = || resident(&file, PAGES * PAGE as usize);
        if resident() > 0 {
            return eprintln!("not tried: {} lies in memory", path.display());
        }
        read(std::slice::from_ref(path), &AtomicBool::new(true));
        assert_eq!(resident(), 0, "nobody wants it");
        let _wanted = begin(directory.path());
        let begun = Instant::now();
        while resident() < PAGES {
            assert!(begun.elapsed() < Duration::from_secs(10), "{} of {PAGES}", resident());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
