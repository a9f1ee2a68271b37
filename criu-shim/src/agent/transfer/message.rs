//! The messages, and the names of what is sent.

use serde::{Deserialize, Serialize};
use std::fmt;
use thiserror::Error;
use tideover_crds::Failure;

/// Version of this protocol. Agents of different versions refuse each other, with both numbers in the sentence.
pub const VERSION: u32 = 11;

/// Which move a connection is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Preamble {
    /// [`VERSION`] of the sender.
    pub version: u32,
    /// UID of the Migration.
    pub migration: String,
    /// Attempt of it.
    pub attempt: u32,
    /// Name of the container in the pod: each has a connection of its own. An older source does not say, and hears that its version is
    /// another.
    #[serde(default)]
    pub container: String,
    /// Drawn for this connection and those that go on with it, so that nothing else does.
    pub session: String,
    /// Node that sends; the certificate must say the same.
    pub source_node: String,
    /// How many bytes are about to come, as far as the source can guess: the memory of the processes.
    pub bytes: u64,
    /// How the source can compress pages. An older one does not say, and hears that its version is another.
    #[serde(default)]
    pub codecs: Vec<Codec>,
    /// What of which files the processes have in memory. A target reads what it lacks from its disk while the container waits.
    #[serde(default)]
    pub mapped: Vec<MappedFile>,
}

/// A file that processes have mapped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MappedFile {
    /// Absolute, as the processes see it.
    pub path: String,
    /// First byte and the first that is no longer in it, of each part that is in memory, in ascending order.
    pub parts: Vec<(u64, u64)>,
}

/// What the source says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum FromSource {
    /// Files of round `round` follow. The last round is sent from a frozen pod.
    RoundBegin {
        /// Number, from 0.
        round: u32,
        /// Nothing follows it.
        last: bool,
    },
    /// Parts of round `round` follow, which are a cut for the rehearsal. CRIU's images among them are kept apart from all others, and
    /// can never be committed; its memory and files are those of any round.
    RehearsalBegin {
        /// Number.
        round: u32,
    },
    /// Data frames up to the next `FileEnd` are this part's bytes.
    FileBegin {
        /// What it is.
        part: Part,
    },
    /// The part is complete.
    FileEnd {
        /// Length, bytes.
        bytes: u64,
        /// Digest of its bytes ([`hashing`](super::hashing)), hexadecimal.
        digest: String,
    },
    /// The next data frame is all of these parts, one behind the other: small files that are there already, of which a dump
    /// has a score. A message and a frame for each would be most of what crosses after it.
    Together {
        /// What they are, in order.
        parts: Vec<Small>,
    },
    /// The round is complete.
    RoundEnd {
        /// Digest over the names, lengths and digests of its parts, hexadecimal.
        digest: String,
    },
    /// The source gives this attempt up.
    Abort {
        /// Why, for the log.
        message: String,
    },
}

/// A part that shares its frame with others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Small {
    /// What it is.
    pub part: Part,
    /// Length, bytes.
    pub bytes: u64,
    /// BLAKE3 of its bytes, hexadecimal.
    pub digest: String,
}

/// A way to compress pages, as agents call it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Codec {
    /// LZ4's block format.
    Lz4,
    /// One that this version does not know.
    #[serde(other)]
    Unknown,
}

/// What the target says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum FromTarget {
    /// The preamble is that of a move that is expected here.
    Accepted {
        /// How pages may be compressed, if they may.
        codec: Option<Codec>,
    },
    /// It is not.
    Refused {
        /// Why.
        message: String,
    },
    /// A round has landed whole. What is made of it later is compared with its digests on the disk, each time before it is used.
    Verified {
        /// Its number.
        round: u32,
        /// The digest over what has landed.
        digest: String,
    },
    /// All files that rounds up to this one have brought are in place, in a container that waits for its processes; or, where the commit
    /// is made on what lies on the disk, all of the rounds is there.
    Placed {
        /// Its number.
        round: u32,
    },
    /// The processes are rebuilt and held.
    Held,
    /// `status.owner` names the target.
    Committed,
    /// The processes run.
    Resumed,
    /// The target can't go on.
    Failed {
        /// Why.
        failure: Failure,
    },
}

/// A message of a link.
pub trait Message: Serialize + for<'de> Deserialize<'de> + Send + 'static {
    /// Where it goes among what is sent.
    fn order(&self) -> Order;
}

/// The order that a message keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// It says what the data around it are: it keeps its place in the stream.
    InStream,
    /// It means the same wherever it arrives: it goes ahead of all that waits in the stream, in order with others like it.
    Ahead,
}

impl Message for FromSource {
    fn order(&self) -> Order {
        match self {
            Self::RoundBegin { .. }
            | Self::RehearsalBegin { .. }
            | Self::FileBegin { .. }
            | Self::FileEnd { .. }
            | Self::Together { .. }
            | Self::RoundEnd { .. } => Order::InStream,
            Self::Abort { .. } => Order::Ahead,
        }
    }
}

impl Message for FromTarget {
    /// The target sends no parts that any of this could belong to.
    fn order(&self) -> Order {
        Order::Ahead
    }
}

/// What a file that is sent is. No part names a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum Part {
    /// A file of CRIU's images directory.
    Image {
        /// Its name there.
        name: String,
    },
    /// The container's writable layer, as an [archive](crate::agent::files::archive) of what the rounds before have not brought.
    Layer {
        /// The round in which it was read.
        round: u32,
    },
    /// An emptyDir volume, the same way.
    Volume {
        /// Name of the volume in the pod.
        name: String,
        /// The round in which it was read.
        round: u32,
    },
    /// The content of `/dev/shm`, the same way.
    SharedMemory {
        /// The round in which it was read.
        round: u32,
    },
    /// Pages of one process ([`pages`](super::pages)). They replace those of earlier rounds.
    Memory {
        /// The process, as the images name it: its id in its innermost PID namespace.
        pid: i32,
        /// The round in which they were read.
        round: u32,
    },
    /// Pages of an object of shared memory ([`pages`](super::pages)), with offsets in it for addresses. They replace those of
    /// earlier rounds.
    Shared {
        /// Its inode, by which the images name it.
        inode: u32,
        /// The round in which they were read.
        round: u32,
    },
}

impl fmt::Display for Part {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image { name } => write!(formatter, "the image {name}"),
            Self::Layer { round } => write!(formatter, "the writable layer in round {round}"),
            Self::Volume { name, round } => write!(formatter, "the volume {name} in round {round}"),
            Self::SharedMemory { round } => write!(formatter, "the content of /dev/shm in round {round}"),
            Self::Memory { pid, round } => write!(formatter, "the memory of process {pid} in round {round}"),
            Self::Shared { inode, round } => write!(formatter, "the shared memory {inode} in round {round}"),
        }
    }
}

/// Most parts of one attempt.
pub const MAX_PARTS: usize = 100_000;
/// Longest name, bytes.
const MAX_NAME: usize = 200;

/// Why a part's name is not acceptable.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NameError {
    /// Empty or longer than [`MAX_NAME`].
    #[error("a part's name has {0} bytes, 1 to {MAX_NAME} are allowed")]
    Length(usize),
    /// It has a character that no image and no volume has.
    #[error(
        "the part's name {0:?} has a character other than letters, digits, dot, dash and underscore, or begins with a dot"
    )]
    Character(String),
}

impl Part {
    /// Whether it is a stream of pages.
    pub fn is_memory(&self) -> bool {
        matches!(self, Self::Memory { .. } | Self::Shared { .. })
    }

    /// The same of another round; an image has none.
    #[must_use]
    pub fn in_round(self, number: u32) -> Self {
        match self {
            Self::Image { .. } => self,
            Self::Layer { .. } => Self::Layer { round: number },
            Self::Volume { name, .. } => Self::Volume { name, round: number },
            Self::SharedMemory { .. } => Self::SharedMemory { round: number },
            Self::Memory { pid, .. } => Self::Memory { pid, round: number },
            Self::Shared { inode, .. } => Self::Shared { inode, round: number },
        }
    }

    /// Directory (under the attempt's own) and file name in which this part is kept; none for memory, which goes into a
    /// page store.
    ///
    /// # Errors
    /// Where the name could be anything but a plain file name.
    pub fn place(&self) -> Result<Option<(&'static str, String)>, NameError> {
        Ok(Some(match self {
            Self::Image { name } => (IMAGES, plain(name)?.to_owned()),
            // In the order of their names, archives are in that of their rounds.
            Self::Layer { round } => (FILES, format!("{round:010}-layer")),
            Self::Volume { name, round } => (FILES, format!("{round:010}-volume-{}", plain(name)?)),
            Self::SharedMemory { round } => (FILES, format!("{round:010}-shm")),
            Self::Memory { .. } | Self::Shared { .. } => return Ok(None),
        }))
    }
}

/// Subdirectory of an attempt in which the rehearsal has its own images, memory as it was then, and work.
pub const REHEARSAL: &str = "rehearsal";
/// Subdirectory of an attempt in which CRIU's images are.
pub const IMAGES: &str = "images";
/// Subdirectory of an attempt in which the memory of the processes is.
pub const MEMORY: &str = "memory";
/// Subdirectory of an attempt in which archives of files are.
pub const FILES: &str = "files";

fn plain(name: &str) -> Result<&str, NameError> {
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(NameError::Length(name.len()));
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if name.starts_with('.') || !name.bytes().all(allowed) {
        return Err(NameError::Character(name.to_owned()));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_name_leaves_its_directory(name in ".{0,64}") {
            if let Ok(Some((directory, file))) = (Part::Image { name }).place() {
                prop_assert_eq!(directory, IMAGES);
                prop_assert!(!file.contains('/') && file != "." && file != ".." && !file.contains('\0'));
            }
        }
    }

    #[test]
    fn names_of_images_and_volumes_are_accepted() {
        for name in ["pages-1.img", "core-17.img", "descriptors.json", "tmpfs-dev-65.tar.gz.img", "a_b"] {
            assert!(Part::Image { name: name.into() }.place().is_ok(), "{name}");
        }
    }

    #[test]
    fn names_that_mean_more_than_a_file_are_refused() {
        for name in ["", ".", "..", "../x", "a/b", ".hidden", "a\0b", "ä"] {
            assert!(Part::Volume { name: name.into(), round: 0 }.place().is_err(), "{name:?}");
        }
    }

    #[test]
    fn messages_are_json_objects_with_a_type() {
        let json = serde_json::to_string(&FromSource::RoundBegin { round: 1, last: true }).expect("json");
        assert_eq!(json, r#"{"type":"roundBegin","round":1,"last":true}"#);
        let json = serde_json::to_string(&FromSource::FileBegin { part: Part::Layer { round: 2 } }).expect("json");
        assert_eq!(json, r#"{"type":"fileBegin","part":{"kind":"layer","round":2}}"#);
    }
}
