//! Why a document is refused.

use super::{MAX_BURST, MAX_BYTES, MAX_DIRECTORY, MAX_STEPS, VERSION};
use std::path::PathBuf;
use thiserror::Error;

/// Why init will not work by a document.
#[derive(Debug, Error)]
pub enum Refusal {
    /// It can't be read.
    #[error("read the configuration {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is larger than [`MAX_BYTES`].
    #[error("the configuration has more than {MAX_BYTES} bytes")]
    TooLarge,
    /// It is not such a document.
    #[error("parse the configuration")]
    Parse(#[source] serde_json::Error),
    /// Another version than ours.
    #[error("the configuration has version {theirs}, this init knows version {VERSION}")]
    Version {
        /// The document's.
        theirs: u32,
    },
    /// The directory can't hold the socket.
    #[error("the directory {path:?} must be an absolute path of at most {MAX_DIRECTORY} bytes")]
    Directory {
        /// The directory.
        path: PathBuf,
    },
    /// A duration is out of bounds.
    #[error("{name} must be at most 366 days")]
    TooLong {
        /// Its name.
        name: &'static str,
    },
    /// Only one of the two was given.
    #[error("steps and maxDelay go together: set both or neither")]
    HalfACurve,
    /// Too many steps.
    #[error("steps must be at most {MAX_STEPS}")]
    Steps,
    /// Nothing can grow from 0 by factors.
    #[error("delay must be more than 0 when it is to grow to maxDelay")]
    CurveFromNothing,
    /// It would have to shrink.
    #[error("maxDelay must not be less than delay")]
    CurveDownwards,
    /// Too large a burst.
    #[error("startLimit.burst must be at most {MAX_BURST}")]
    Burst,
    /// Nobody could say READY=1.
    #[error("with type Notify somebody must be heard: notifyAccess can't be None")]
    NobodyHeard,
}
