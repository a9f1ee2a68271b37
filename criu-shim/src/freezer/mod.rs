//! The cgroup freezer of one container, v1 and v2.
//!
//! Owns finding the cgroup of a container, freezing it, thawing it and ending what is in it. It never decides when:
//! whoever thaws must have won the abort, whoever kills must have seen the commit.

mod cgroup;
mod error;
mod kill;
mod state;
#[cfg(test)]
mod tests;

pub use cgroup::{Hierarchy, Membership, directories, hierarchies, memberships};
pub use error::FreezerError;
pub use state::FreezerState;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The freezer of one container's cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Freezer {
    path_in_node: PathBuf,
    directory: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

impl Freezer {
    /// The freezer of the cgroup that process `pid` is in.
    ///
    /// `pid` is as the caller's `/proc` names it. `node_root` is the node's file system as the caller sees it: `/`, or
    /// `/proc/1/root` from a container that shares the node's PID namespace.
    ///
    /// # Errors
    /// [`FreezerError::NotOwn`] for a process in a root cgroup: freezing that would freeze the node.
    pub fn of_process(pid: i32, node_root: &Path) -> Result<Self, FreezerError> {
        let mounts = cgroup::read_hierarchies(node_root)?;
        let members = cgroup::read_memberships(pid)?;
        let path = cgroup::freezer_path(&mounts, &members)?;
        Self::at(&path, node_root)
    }

    /// The freezer at `path_in_node`, which an earlier [`Freezer::path_in_node`] returned.
    ///
    /// # Errors
    /// [`FreezerError::Gone`] where there is no such cgroup (any more), [`FreezerError::NotOwn`] for one that is the
    /// root of its hierarchy.
    pub fn at(path_in_node: &Path, node_root: &Path) -> Result<Self, FreezerError> {
        let directory = node_root.join(path_in_node.strip_prefix("/").unwrap_or(path_in_node));
        let version = if directory.join("freezer.state").exists() {
            Version::V1
        } else if directory.join("cgroup.freeze").exists() {
            Version::V2
        } else if directory.exists() {
            // The root cgroup of either version has neither file.
            return Err(FreezerError::NotOwn { path: path_in_node.to_owned() });
        } else {
            return Err(FreezerError::Gone { path: path_in_node.to_owned() });
        };
        Ok(Self { path_in_node: path_in_node.to_owned(), directory, version })
    }

    /// The cgroup's directory in the node's mount namespace: what goes into a journal and into a dump request.
    pub fn path_in_node(&self) -> &Path {
        &self.path_in_node
    }

    /// Freezes the cgroup and returns how long that took.
    ///
    /// After success the cgroup reads frozen and nothing in it runs. After [`FreezerError::Timeout`] some tasks may be
    /// frozen and the wish stands: [`Freezer::thaw`] withdraws it.
    ///
    /// # Errors
    /// [`FreezerError::Timeout`] when `limit` has passed; [`FreezerError::Gone`] when the container has ended.
    pub fn freeze(&self, limit: Duration) -> Result<Duration, FreezerError> {
        self.drive(FreezerState::Frozen, limit)
    }

    /// Tells the cgroup to freeze, and does not wait: what a tracer holds in it comes to no instruction of its own any more, whenever
    /// the tracer lets go of it or dies.
    ///
    /// # Errors
    /// [`FreezerError::Gone`] when the container has ended.
    pub fn begin_to_freeze(&self) -> Result<(), FreezerError> {
        self.write(FreezerState::Frozen)
    }

    /// Thaws the cgroup. To thaw what is not frozen is no error.
    ///
    /// # Errors
    /// As [`Freezer::freeze`].
    pub fn thaw(&self, limit: Duration) -> Result<(), FreezerError> {
        self.drive(FreezerState::Thawed, limit).map(|_| ())
    }

    /// What the kernel says now.
    ///
    /// # Errors
    /// [`FreezerError::Gone`] when the container has ended.
    pub fn state(&self) -> Result<FreezerState, FreezerError> {
        match self.version {
            Version::V1 => state::read_v1(&self.directory),
            Version::V2 => state::read_v2(&self.directory),
        }
    }

    fn write(&self, wish: FreezerState) -> Result<(), FreezerError> {
        match self.version {
            Version::V1 => state::write_v1(&self.directory, wish),
            Version::V2 => state::write_v2(&self.directory, wish),
        }
    }

    fn drive(&self, wish: FreezerState, limit: Duration) -> Result<Duration, FreezerError> {
        let begin = Instant::now();
        let mut tries = 0u32;
        loop {
            // v1 may stay at FREEZING for ever after one write, when a task forked at the wrong moment: write again.
            if tries == 0 || matches!(self.version, Version::V1) {
                self.write(wish)?;
            }
            let state = self.state()?;
            if state == wish {
                return Ok(begin.elapsed());
            }
            if begin.elapsed() >= limit {
                return Err(FreezerError::Timeout { path: self.path_in_node.clone(), limit, wish, state });
            }
            tries += 1;
            // The usual freeze takes 0.15 ms, less than a sleep would.
            if tries < 50 {
                std::thread::yield_now();
            } else {
                std::thread::sleep(Duration::from_micros(500));
            }
        }
    }
}
