//! The archive from which the kernel unpacks its initial files.
//!
//! Owns the format. Source: Documentation/driver-api/early-userspace/buffer-format.rst, "newc".

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const FILE: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const LINK: u32 = 0o120_000;

/// An archive to be. All that is in it is root's.
#[derive(Debug, Default)]
pub struct Archive(BTreeMap<PathBuf, Entry>);

#[derive(Debug)]
struct Entry {
    mode: u32,
    content: Vec<u8>,
}

impl Archive {
    /// A file; the directories above it are made with mode 0755.
    pub fn file(&mut self, path: impl AsRef<Path>, mode: u32, content: impl Into<Vec<u8>>) {
        self.put(path.as_ref(), Entry { mode: FILE | mode, content: content.into() });
    }

    /// A directory.
    pub fn directory(&mut self, path: impl AsRef<Path>, mode: u32) {
        self.put(path.as_ref(), Entry { mode: DIRECTORY | mode, content: Vec::new() });
    }

    /// A symbolic link.
    pub fn link(&mut self, path: impl AsRef<Path>, target: &str) {
        self.put(path.as_ref(), Entry { mode: LINK | 0o777, content: target.into() });
    }

    fn put(&mut self, path: &Path, entry: Entry) {
        let path = path.strip_prefix("/").unwrap_or(path);
        for above in path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()) {
            self.0.entry(above.to_owned()).or_insert(Entry { mode: DIRECTORY | 0o755, content: Vec::new() });
        }
        self.0.insert(path.to_owned(), entry);
    }

    /// Writes it, each directory before what is in it.
    ///
    /// # Errors
    /// The writer's; [`io::ErrorKind::InvalidInput`] for a file that the format can't hold.
    pub fn write(&self, mut to: impl Write) -> io::Result<()> {
        for (number, (path, entry)) in (1..).zip(&self.0) {
            write_entry(&mut to, number, path.as_os_str().as_encoded_bytes(), entry)?;
        }
        write_entry(&mut to, 0, b"TRAILER!!!", &Entry { mode: 0, content: Vec::new() })
    }
}

fn write_entry(to: &mut impl Write, inode: u32, name: &[u8], entry: &Entry) -> io::Result<()> {
    let length = |bytes: usize| u32::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let (size, name_size) = (length(entry.content.len())?, length(name.len() + 1)?);
    // inode, mode, uid, gid, links, mtime, size, device and its minor, the same of a device node, size of the name, checksum
    let fields = [inode, entry.mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
    to.write_all(b"070701")?;
    for field in fields {
        write!(to, "{field:08x}")?;
    }
    to.write_all(name)?;
    to.write_all(b"\0")?;
    pad(to, 6 + 8 * fields.len() + name.len() + 1)?;
    to.write_all(&entry.content)?;
    pad(to, entry.content.len())
}

/// Zeros after `length` bytes, up to a multiple of four.
fn pad(to: &mut impl Write, length: usize) -> io::Result<()> {
    to.write_all(&[0; 3][..length.wrapping_neg() % 4])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(archive: &Archive) -> Vec<u8> {
        let mut bytes = Vec::new();
        archive.write(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn an_entry_is_a_header_a_name_and_the_content_each_padded_to_four_bytes() {
        let mut archive = Archive::default();
        archive.file("/init", 0o755, *b"abcde");
        let bytes = written(&archive);
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[6..22], b"00000001000081ed");
        assert_eq!(&bytes[54..62], b"00000005");
        assert_eq!(&bytes[94..102], b"00000005", "with the zero at its end");
        assert_eq!(&bytes[110..124], b"init\0\0abcde\0\0\0");
        assert_eq!(&bytes[124..130], b"070701");
        assert!(bytes[234..].starts_with(b"TRAILER!!!\0"));
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn directories_come_before_what_is_in_them_and_keep_their_mode() {
        let mut archive = Archive::default();
        archive.file("/tmp/a/b", 0o644, *b"");
        archive.directory("/tmp", 0o1777);
        archive.link("/bin", "usr/bin");
        let text = String::from_utf8(written(&archive)).unwrap();
        let at = |text_of: &str| text.find(text_of).unwrap();
        assert!(at("bin\0") < at("tmp\0") && at("tmp\0") < at("tmp/a\0") && at("tmp/a\0") < at("tmp/a/b\0"));
        assert!(text.contains("000043ff") && text.contains("0000a1ff") && text.contains("usr/bin"));
    }
}
