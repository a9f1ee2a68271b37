//! Files that move with the processes: the writable layer, emptyDir volumes, `/dev/shm`.
//!
//! A tree crosses in rounds. [`walk`] lists it, [`changes`] says what of it the target has not got, [`pack`] makes an archive
//! of that ([`archive`], [`content`]), and [`unpack`] brings a tree up to it. The first archive of a tree holds all of it, each later one
//! what has changed since. [`watched`] knows where anything has happened, so that a look in the freeze goes there alone
//! ([`revisit`]). [`held`] and [`opened`] know which files can change without a timestamp; [`places`] knows where trees are on a node. Every name in a tree is used in one open directory and never followed, so none, however hostile, means anything
//! outside. What kubelet manages itself (hosts file, termination log, projected volumes) is never touched.

pub mod archive;
pub mod attributes;
pub mod beneath;
pub mod changes;
mod content;
mod dress;
mod fanotify;
pub mod held;
pub mod listing;
pub mod opened;
pub mod pack;
pub mod places;
pub mod revisit;
pub mod tree;
pub mod unpack;
pub mod walk;
pub mod watched;

#[cfg(test)]
mod tests;

/// Most threads that list or read a tree.
const MOST_THREADS: usize = 4;

/// How many threads list a tree, and read it in the freeze, when the application uses none.
fn threads(frozen: bool) -> usize {
    let most = if frozen { MOST_THREADS } else { 2 };
    crate::processors::processors().min(most)
}

/// What a tree is; it decides how deletions are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeKind {
    /// Upper directory of an overlay: what is missing in it is not deleted, whiteouts say what is.
    Layer,
    /// A whole tree: what is missing in it is deleted on the other side.
    Volume,
}
