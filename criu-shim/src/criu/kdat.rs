//! What CRIU believes of the kernel, and the one fact of it that a dump without memory needs to be otherwise.
//!
//! CRIU examines the kernel once per boot and keeps the outcome in `/run/criu.kdat`: a copy of its `struct kerndat_s`
//! (`criu/include/kerndat.h`), taken for good if its length and two magics are right (`kerndat_try_load_cache` in
//! `criu/kerndat.c`). The second magic is the time of the build, so the file of one build is none to another; there is no
//! check of the date.
//!
//! CRIU leaves out memory only where the kernel tracks which pages were written (soft-dirty). On a kernel without
//! soft-dirty no page ever reads as written, which is just what a dump without memory wants, but CRIU does not offer it
//! there. So it is given an edited copy of the file.
//!
//! The node's own file is never edited: any other CRIU on the node would believe it, and its incremental dumps would
//! silently lose pages. The copy is mounted over it in the mount namespace of one CRIU process and nowhere else.

use super::error::KdatError;
use super::version::Version;
use super::{CriuError, CriuProgram, Place, WarmCriu};
use rustix::fs::CWD;
use rustix::mount::OpenTreeFlags;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Where CRIU keeps it.
pub const PATH: &std::ffi::CStr = c"/run/criu.kdat";

/// `KDAT_MAGIC`. Source: CRIU's `criu/include/magic.h`.
const MAGIC: u32 = 0x5702_3458;

/// Offset of `has_dirty_track`, bytes: behind two u32 magics, `dev_t shmem_dev`, `int last_cap` with its padding, and `u64
/// zero_page_pfn`. One byte, 0 or 1.
const HAS_DIRTY_TRACK: usize = 4 + 4 + 8 + 8 + 8;

/// A build of CRIU whose file is known.
struct Layout {
    version: Version,
    architecture: &'static str,
    /// `sizeof(struct kerndat_s)`.
    bytes: usize,
}

/// The file tells its version by nothing but its length, so each is entered here by hand.
const KNOWN: [Layout; 1] =
    [Layout { version: Version { major: 4, minor: 2, patch: 1 }, architecture: "x86_64", bytes: 912 }];

/// Longest file that is read, bytes.
const MAX_FILE: u64 = 64 << 10;

/// Name of the edited copy in its directory.
const COPY: &str = "criu.kdat";

/// What decides whether a dump may leave out memory.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The CRIU that would dump.
    pub version: Version,
    /// As [`std::env::consts::ARCH`] names it.
    pub architecture: &'a str,
    /// Content of `/run/criu.kdat`, written by that CRIU.
    pub kdat: &'a [u8],
}

/// Why a dump may not leave out memory here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Reason {
    /// The layout of this CRIU's file is not known.
    #[error("the kernel facts of CRIU {version} are of no known layout on this architecture")]
    UnknownLayout {
        /// The version.
        version: Version,
    },
    /// The file is not as long as this CRIU's.
    #[error("CRIU's kernel facts have {found} bytes, not {expected}")]
    Size {
        /// Length of the file, bytes.
        found: usize,
        /// What it should be, bytes.
        expected: usize,
    },
    /// The file does not start with CRIU's magic.
    #[error("CRIU's kernel facts start with {found:#x}, not {MAGIC:#x}")]
    Magic {
        /// First word.
        found: u32,
    },
    /// The byte of soft-dirty is neither true nor false, so it is some other byte.
    #[error("the kernel fact of soft-dirty is {found}, neither true nor false")]
    NoTruth {
        /// The byte.
        found: u8,
    },
    /// The kernel has soft-dirty: there, every page counts as written until that is cleared, and none would be left out.
    #[error("the kernel tracks written pages by soft-dirty, by which every page counts as written")]
    SoftDirty,
}

/// Whether a dump may leave out memory.
///
/// # Errors
/// [`Reason`], if not.
pub fn memoryless(facts: &Facts<'_>) -> Result<(), Reason> {
    let known = |layout: &&Layout| layout.version == facts.version && layout.architecture == facts.architecture;
    let layout = KNOWN.iter().find(known).ok_or(Reason::UnknownLayout { version: facts.version })?;
    if facts.kdat.len() != layout.bytes {
        return Err(Reason::Size { found: facts.kdat.len(), expected: layout.bytes });
    }
    let magic = facts.kdat.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    if magic != MAGIC {
        return Err(Reason::Magic { found: magic });
    }
    match facts.kdat[HAS_DIRTY_TRACK] {
        0 => Ok(()),
        1 => Err(Reason::SoftDirty),
        found => Err(Reason::NoTruth { found }),
    }
}

/// The facts with soft-dirty among them. Every other byte stays.
///
/// # Errors
/// As [`memoryless`].
pub fn with_soft_dirty(facts: &Facts<'_>) -> Result<Vec<u8>, Reason> {
    memoryless(facts)?;
    let mut kdat = facts.kdat.to_vec();
    kdat[HAS_DIRTY_TRACK] = 1;
    Ok(kdat)
}

/// An edited copy of the node's file, for one [`Place`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrivateKdat {
    copy: PathBuf,
}

impl PrivateKdat {
    /// Makes the copy in `directory`, which the caller owns and removes when no CRIU is to start with the copy any more.
    ///
    /// A plain CRIU is started first, in the caller's own network. It writes the node's file where there is none, and again
    /// where another build has written it; a CRIU that found another build's under the private mount could do neither. Not
    /// in the container's: where a network namespace has no route, CRIU gives up examining the kernel.
    ///
    /// # Errors
    /// [`KdatError`]; [`KdatError::Refused`] if no dump may leave out memory here.
    pub fn make(program: &CriuProgram, place: &Place, version: Version, directory: &Path) -> Result<Self, KdatError> {
        let own = std::process::id().cast_signed();
        let plain = Place { namespaces_of: own, node_root: place.node_root.clone(), private_kdat: None };
        WarmCriu::start(program, &plain).map_err(KdatError::Examine)?;
        let path = place.node_root.join(PATH.to_string_lossy().trim_start_matches('/'));
        let mut kdat = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(MAX_FILE).read_to_end(&mut kdat))
            .map_err(|source| KdatError::Read { path, source })?;
        let edited = with_soft_dirty(&Facts { version, architecture: std::env::consts::ARCH, kdat: &kdat })?;
        let copy = directory.join(COPY);
        let open = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&copy);
        open.and_then(|mut file| file.write_all(&edited))
            .map_err(|source| KdatError::Write { path: copy.clone(), source })?;
        Ok(Self { copy })
    }

    /// A mount of the copy that is in no mount namespace yet: whoever holds it may put it anywhere.
    pub(super) fn mount(&self) -> Result<OwnedFd, CriuError> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        rustix::mount::open_tree(CWD, &self.copy, flags)
            .map_err(|errno| CriuError::PrivateKdat { path: self.copy.clone(), source: errno.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSION: Version = Version { major: 4, minor: 2, patch: 1 };

    fn kdat() -> Vec<u8> {
        let mut kdat: Vec<u8> = (0..912u32).map(|at| at as u8).collect();
        kdat[..4].copy_from_slice(&[0x58, 0x34, 0x02, 0x57]);
        kdat[HAS_DIRTY_TRACK] = 0;
        kdat
    }

    fn facts(kdat: &[u8]) -> Facts<'_> {
        Facts { version: VERSION, architecture: "x86_64", kdat }
    }

    #[test]
    fn the_edit_changes_one_byte() {
        let kdat = kdat();
        let edited = with_soft_dirty(&facts(&kdat)).unwrap();
        let changed: Vec<usize> = (0..912).filter(|at| kdat[*at] != edited[*at]).collect();
        assert_eq!(changed, [32]);
        assert_eq!(edited[32], 1);
    }

    #[test]
    fn a_kernel_with_soft_dirty_is_refused_by_name() {
        let mut kdat = kdat();
        kdat[32] = 1;
        assert_eq!(memoryless(&facts(&kdat)), Err(Reason::SoftDirty));
        assert_eq!(with_soft_dirty(&facts(&kdat)), Err(Reason::SoftDirty));
        kdat[32] = 7;
        assert_eq!(memoryless(&facts(&kdat)), Err(Reason::NoTruth { found: 7 }));
    }

    #[test]
    fn another_build_of_criu_is_refused_by_name() {
        let kdat = kdat();
        let newer = Version { patch: 2, ..VERSION };
        let reason = memoryless(&Facts { version: newer, ..facts(&kdat) }).unwrap_err();
        assert_eq!(reason.to_string(), "the kernel facts of CRIU 4.2.2 are of no known layout on this architecture");
        assert_eq!(
            memoryless(&Facts { architecture: "aarch64", ..facts(&kdat) }),
            Err(Reason::UnknownLayout { version: VERSION })
        );
    }

    #[test]
    fn a_file_of_another_length_or_magic_is_refused_by_name() {
        let mut kdat = kdat();
        assert_eq!(memoryless(&facts(&kdat[..911])), Err(Reason::Size { found: 911, expected: 912 }));
        assert_eq!(memoryless(&facts(&[])), Err(Reason::Size { found: 0, expected: 912 }));
        kdat[0] = 0;
        assert_eq!(memoryless(&facts(&kdat)), Err(Reason::Magic { found: 0x5702_3400 }));
    }
}
