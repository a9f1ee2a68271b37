//! The files that processes can write to at this moment: open for writing, or mapped and shared.

use crate::agent::files::changes::Holding;
use crate::agent::files::listing::{FileId, Kind, Listing, TreePath};
use rustix::fs::FsWord;
use std::collections::HashMap;
use std::io::{Error, ErrorKind};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What statfs(2) says of an overlay, `OVERLAYFS_SUPER_MAGIC` of linux/magic.h.
const OVERLAY: FsWord = 0x794c_7630;

/// The files that some processes hold.
#[derive(Clone, Debug, Default)]
pub struct Held {
    files: HashMap<FileId, Holding>,
    /// Files on an overlay have inode numbers of the overlay's own, so these go by path: where they are in the container.
    overlaid: Vec<(TreePath, FileId, Holding)>,
    /// A file on an overlay has a path that says nothing.
    unclear: Holding,
    /// Something could not be asked for: every file counts as held.
    unknown: bool,
}

impl Held {
    /// Asks `/proc` about these processes. One that has ended holds nothing.
    pub fn by(pids: &[i32]) -> Self {
        let mut held = Self::default();
        held.add_processes(pids);
        held
    }

    /// By nobody knows whom.
    pub fn unknown() -> Self {
        Self { unknown: true, ..Self::default() }
    }

    /// Asks about some more.
    pub fn add_processes(&mut self, pids: &[i32]) {
        for pid in pids {
            let process = Path::new("/proc").join(pid.to_string());
            for asked in [self.open_files(&process), self.mappings(&process)] {
                let ended =
                    |error: &Error| error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH);
                self.unknown |= asked.is_err_and(|error| !ended(&error));
            }
        }
    }

    /// Source: proc(5), `/proc/PID/fdinfo/N`: `flags` in octal, of which the lowest two bits are the access mode.
    fn open_files(&mut self, process: &Path) -> Result<(), Error> {
        for entry in process.join("fdinfo").read_dir()? {
            let entry = entry?;
            let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
            let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
            let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
            // What can't be told counts as open for writing; what is closed by now is found to be gone.
            if flags.is_none_or(|flags| flags & libc::O_ACCMODE != libc::O_RDONLY) {
                self.add(&process.join("fd").join(entry.file_name()), Holding::Writer);
            }
        }
        Ok(())
    }

    /// Source: proc(5), `/proc/PID/maps`: addresses, permissions with `s` for shared, offset, device, inode. Also where it may
    /// only be read now, because mprotect(2) may allow writing.
    fn mappings(&mut self, process: &Path) -> Result<(), Error> {
        let text = std::fs::read(process.join("maps"))?;
        for line in text.split(|byte| *byte == b'\n') {
            let mut fields = line.split(|byte| *byte == b' ').filter(|field| !field.is_empty());
            let (Some(addresses), Some(permissions)) = (fields.next(), fields.next()) else { continue };
            let inode = fields.nth(2);
            let is_shared = permissions.get(3) == Some(&b's') && inode.is_some_and(|inode| inode != b"0");
            if let Some(name) = map_file(addresses).filter(|_| is_shared) {
                self.add(&process.join("map_files").join(name), Holding::Mapping);
            }
        }
        Ok(())
    }

    fn add(&mut self, link: &Path, holding: Holding) {
        let metadata = match link.metadata() {
            Ok(metadata) => metadata,
            // It is held no more.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => return,
            Err(_) => return self.unknown = true,
        };
        // What has no name any more is CRIU's, and what is no regular file has nothing to compare.
        if !metadata.is_file() || metadata.nlink() == 0 {
            return;
        }
        let id = FileId { device: metadata.dev(), inode: metadata.ino() };
        let held = self.files.entry(id).or_default();
        *held = holding.max(*held);
        let overlay = rustix::fs::statfs(link).is_ok_and(|found| found.f_type == OVERLAY);
        if overlay {
            let path = link.read_link().ok().map(|path| path.into_os_string().into_vec());
            match path.and_then(|path| TreePath::parse(path.strip_prefix(b"/")?.to_vec())) {
                Some(path) => self.overlaid.push((path, id, holding)),
                None => self.unclear = self.unclear.max(holding),
            }
        }
    }

    /// How each node of a tree is held. `layer` says that it is the upper directory of the overlay that the processes see.
    pub fn nodes(&self, tree: &Listing, layer: bool) -> Vec<Holding> {
        if self.unknown {
            return vec![Holding::Mapping; tree.nodes.len()];
        }
        let mut holdings: Vec<Holding> = tree.nodes.iter().map(|node| self.holding(node.facts.id)).collect();
        if layer {
            let mut by_id = HashMap::new();
            let mut unclear = self.unclear;
            for (path, id, holding) in &self.overlaid {
                let found = tree.find(path).and_then(|id| Some((id, tree.node(id)?)));
                match found {
                    Some((_, node)) if node.facts.kind == Kind::File => {
                        let held: &mut Holding = by_id.entry(node.facts.id).or_default();
                        *held = holding.max(held).to_owned();
                    }
                    // Seen by its own number, or by a path of another mount namespace, which says nothing.
                    _ if tree.nodes.iter().any(|node| node.facts.id == *id) => {}
                    _ => unclear = unclear.max(*holding),
                }
            }
            for (holding, node) in holdings.iter_mut().zip(&tree.nodes) {
                let same = by_id.get(&node.facts.id).copied().unwrap_or_default();
                *holding = (*holding).max(same);
                if node.facts.kind == Kind::File {
                    *holding = (*holding).max(unclear);
                }
            }
        }
        holdings
    }

    fn holding(&self, id: FileId) -> Holding {
        self.files.get(&id).copied().unwrap_or_default()
    }
}

/// The name in `/proc/PID/map_files` of what `/proc/PID/maps` gives with leading zeros.
fn map_file(addresses: &[u8]) -> Option<String> {
    let (start, end) = std::str::from_utf8(addresses).ok()?.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    Some(format!("{:x}-{:x}", number(start)?, number(end)?))
}
