//! CRIU from the agent's side: a prost client of its RPC, and what must be known before and mended after a dump.
//!
//! Owns starting `criu swrk` warm, asking for one dump, reading why one failed, and the image files that Tideover
//! itself reads or writes: also those of a dump without memory ([`pagemap`], [`shared`]). It never freezes or
//! thaws anything and never ends CRIU: a CRIU that is killed half way leaves its parasite in the tasks ([`parasite`]).
//!
//! Restores are not asked for here: `runc restore` does that, through the relay ([`crate::relay`]).

pub mod bundle;
pub mod capability;
pub mod descriptors;
mod dump;
mod error;
pub mod image;
pub mod lazy;
mod log;
mod mappings;
pub mod mend;
pub mod mount_image;
pub mod mounts;
pub mod pagemap;
pub mod parasite;
mod place;
pub mod preflight;
pub mod prepared;
mod process;
mod program;
pub mod ranges;
pub mod rpc;
pub mod shared;
mod spawn;
mod swrk;
pub mod system_v;
pub mod version;
pub mod wire;
mod withheld;

pub use bundle::Bundle;
pub use dump::{DumpOptions, DumpRequest, Memory, have_peers};
pub use error::{CriuError, PagemapError, SharedError, WithholdError};
pub use log::{first_error, last_errors};
pub use mappings::Mappings;
pub use place::{Place, leave_container};
pub use process::ProcessId;
pub use program::CriuProgram;
pub(crate) use spawn::NO_BREAKPOINTS;
pub use swrk::{BegunDump, Premise, RunningDump, Waited, WarmCriu};
pub use withheld::{MOST as MOST_WITHHELD, ObjectId, Telling, Withheld};
