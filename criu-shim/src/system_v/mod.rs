//! System V objects (shared memory segments, semaphore sets, message queues) of the IPC namespace that the calling thread is in.
//!
//! Owns listing them ([`list`]) and what must be asked of the kernel about them or done to them ([`call`]). It enters no namespace: who
//! calls decides in which one this is. CRIU dumps and makes them; see `docs/decisions/0011-system-v.md`.

mod call;
mod list;

pub use call::{huge_segments, queue_limit, remove};
pub use list::{Kind, Object, is_removed, list};

#[cfg(test)]
pub(crate) mod fixture;
