//! What of a tree the target has not got, told by comparing its list with the one that was sent. Pure.
//!
//! A name is taken for unchanged only if it stands for the same inode with the same attributes and the same ctime, which
//! nobody but the kernel sets. Where the ctime is no proof, a file is doubtful, and its content is compared with what was
//! sent, block by block. Source of the rules on timestamps: the kernel's `current_time` gives the time of the last tick, 1 to
//! 10 ms ago (`CONFIG_HZ`), until Linux 6.13 (Documentation/filesystems/multigrain-ts.rst), and file systems without
//! nanoseconds keep whole seconds.

use crate::agent::files::TreeKind;
use crate::agent::files::listing::{Facts, FileId, Kind, Listing, Node, NodeId, Stamp, TreePath};
use crate::agent::files::opened::Touched;
use std::collections::HashMap;
use std::time::Duration;

/// A change may get the timestamp of another that is at most this much older: two of the longest ticks.
const TICK: Duration = Duration::from_millis(20);
/// The same on a file system that keeps seconds, which then also are all that differs.
const COARSE: Duration = Duration::from_secs(2);
/// A write(2) has its timestamp when it begins, and may not be over yet when the file is read. One that takes longer than
/// this has hung.
const WRITING: Duration = Duration::from_secs(60);

/// How a file was held when its tree was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holding {
    /// Nobody could write to it.
    #[default]
    Nobody,
    /// Somebody had it open for writing: a write may have been under way.
    Writer,
    /// Somebody had it mapped, shared: writes leave no timestamp until the kernel has written the page back.
    Mapping,
}

impl Holding {
    /// The same on a file system without timestamps of what is written through a mapping: whoever can write may map it, and be
    /// gone again before the next look.
    #[must_use]
    pub fn that_may_map(self) -> Self {
        if self == Self::Writer { Self::Mapping } else { self }
    }
}

/// Whether a file may have changed after it was looked at without its ctime showing it. `began` is when the look began.
pub fn is_doubtful(facts: &Facts, holding: Holding, began: Stamp) -> bool {
    let within = |window: Duration| facts.changed >= before(began, window);
    let tick = if facts.changed.nanos == 0 { COARSE } else { TICK };
    match holding {
        Holding::Mapping => true,
        Holding::Writer => within(WRITING),
        Holding::Nobody => within(tick),
    }
}

/// Whether a file was made so shortly before the look that began then, that one made in its place afterwards may have the
/// same times. Where it is not known when, it is.
pub fn is_young(facts: &Facts, began: Stamp) -> bool {
    facts.born.is_none_or(|born| born >= before(began, if born.nanos == 0 { COARSE } else { TICK }))
}

fn before(stamp: Stamp, by: Duration) -> Stamp {
    let nanos = i128::from(stamp.seconds) * 1_000_000_000 + i128::from(stamp.nanos) - by.as_nanos() as i128;
    let seconds = i64::try_from(nanos.div_euclid(1_000_000_000)).unwrap_or(i64::MIN);
    Stamp { seconds, nanos: u32::try_from(nanos.rem_euclid(1_000_000_000)).unwrap_or_default() }
}

/// What timestamps of a file system are good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Timestamps {
    /// The first write to a page of a mapped file after it was written back sets them.
    Tell,
    /// A process may map a file, write to it, and let go of it again, and nothing shows it: tmpfs writes no page back. Only that
    /// it was opened does, where these were, or that somebody held it before.
    Hide(Touched),
}

/// How a name is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The target has nothing of it. A directory that is there loses what is in it, if `clear` says so.
    Whole {
        /// What is below that name there is of another directory.
        clear: bool,
    },
    /// The target has this file: its attributes are sent, and the blocks that differ from what was sent.
    Update,
    /// It is another name of the file that this node names.
    Link(NodeId),
}

/// What is to be sent of a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// It is all of it.
    pub base: bool,
    /// Names that are gone, with all below them.
    pub removed: Vec<TreePath>,
    /// Names that are new or differ, directories first.
    pub sent: Vec<(NodeId, How)>,
}

impl Changes {
    /// Whether nothing has to be sent.
    pub fn is_empty(&self) -> bool {
        !self.base && self.removed.is_empty() && self.sent.is_empty()
    }
}

/// Compares the list `found` with what the target has, `known`; returns what must be sent, and moves into `found` what is
/// known of contents.
pub fn compare(kind: TreeKind, known: Option<Listing>, found: &mut Listing, timestamps: Timestamps) -> Changes {
    let Some(mut known) = known else {
        let mut comparison = Comparison::new(kind, timestamps, found);
        comparison.send(found, None);
        return Changes { base: true, ..comparison.changes };
    };
    let mut comparison = Comparison::new(kind, timestamps, found);
    comparison.match_names(&known, found);
    comparison.send(found, Some(&known));
    let groups = comparison.groups(found);
    for (id, same) in comparison.same.iter().enumerate() {
        // What was sent under one name of a file says nothing about what is known under another.
        let stands_for =
            found.nodes.get(id).and_then(|node| groups.get(&node.facts.id).filter(|_| has_several(&node.facts)));
        if stands_for.is_some_and(|first| *first as usize != id) {
            continue;
        }
        let blocks = same.and_then(|same| known.node_mut(same)?.blocks.take());
        if let (Some(node), Some(blocks)) = (found.nodes.get_mut(id), blocks) {
            node.blocks = Some(blocks);
        }
    }
    comparison.changes
}

struct Comparison {
    kind: TreeKind,
    timestamps: Timestamps,
    changes: Changes,
    /// For each node found, the one that was sent under the same path and is the same file.
    same: Vec<Option<NodeId>>,
    /// Whether something else was sent under its path.
    replaced: Vec<bool>,
}

impl Comparison {
    fn new(kind: TreeKind, timestamps: Timestamps, found: &Listing) -> Self {
        let count = found.nodes.len();
        let changes = Changes::default();
        Self { kind, timestamps, changes, same: vec![None; count], replaced: vec![false; count] }
    }

    /// Goes through both trees side by side, and notes what is gone.
    fn match_names(&mut self, known: &Listing, found: &Listing) {
        // Directories of one path, whether they are the same or not: what is gone from a layer's must be told name by name,
        // because clearing it would take what the image has there.
        let mut paired: Vec<Option<NodeId>> = vec![None; found.nodes.len()];
        if let (Some(root), Some(pair)) = (self.same.first_mut(), paired.first_mut()) {
            (*root, *pair) = (Some(0), Some(0));
        }
        for (id, directory) in found.nodes.iter().enumerate() {
            let Some(before) = paired[id].and_then(|pair| known.node(pair)) else { continue };
            let (old, new) = (known.children(before), found.children(directory));
            let (mut old_at, mut new_at) = (0, 0);
            while old_at < old.len() || new_at < new.len() {
                let order = match (old.get(old_at), new.get(new_at)) {
                    (Some(old), Some(new)) => old.name.cmp(&new.name),
                    (Some(_), None) => std::cmp::Ordering::Less,
                    _ => std::cmp::Ordering::Greater,
                };
                let old_id = before.children.start + old_at as NodeId;
                match order {
                    std::cmp::Ordering::Less => {
                        // Also what could not be sent again: the target may have it from before.
                        self.changes.removed.push(known.path(old_id));
                        old_at += 1;
                    }
                    std::cmp::Ordering::Greater => new_at += 1,
                    std::cmp::Ordering::Equal => {
                        let place = directory.children.start as usize + new_at;
                        let (one, other) = (&old[old_at], &new[new_at]);
                        if (one.facts.kind, other.facts.kind) == (Kind::Directory, Kind::Directory) {
                            paired[place] = Some(old_id);
                        }
                        if self.same[id].is_some() && !one.unsent && self.is_same(one, other) {
                            self.same[place] = Some(old_id);
                        } else {
                            self.replaced[place] = true;
                        }
                        old_at += 1;
                        new_at += 1;
                    }
                }
            }
        }
    }

    fn is_same(&self, one: &Node, other: &Node) -> bool {
        if self.kind == TreeKind::Layer && other.is_whiteout() {
            // All of them may be names of one inode, whose facts change with each.
            return one.is_whiteout();
        }
        match other.facts.kind {
            // Attributes and blocks are compared, whichever file it was.
            Kind::File => is_same_kind(one, other),
            Kind::Directory => is_same_directory(one, other),
            _ => is_unchanged(one, other),
        }
    }

    /// Notes what is to be sent.
    fn send(&mut self, found: &Listing, known: Option<&Listing>) {
        let groups = self.groups(found);
        for (id, node) in found.nodes.iter().enumerate() {
            let same = self.same[id].and_then(|same| known?.node(same));
            let whiteout = self.kind == TreeKind::Layer && node.is_whiteout();
            let how = match (same, groups.get(&node.facts.id).filter(|_| !whiteout && has_several(&node.facts))) {
                (Some(_), _) if whiteout => continue,
                // One name of a file that the target has stands for all it has of it.
                (Some(same), Some(first)) if *first as usize == id => self.update(&same.facts, same.doubtful, node),
                (Some(_), Some(_)) => continue,
                (None, Some(first)) if *first as usize != id => Some(How::Link(*first)),
                (Some(same), None) => self.update(&same.facts, same.doubtful, node),
                (None, _) => Some(How::Whole { clear: self.replaced[id] }),
            };
            self.changes.sent.extend(how.map(|how| (id as NodeId, how)));
        }
    }

    fn update(&self, before: &Facts, doubtful: bool, node: &Node) -> Option<How> {
        let touched = |touched: &Touched| node.facts.kind == Kind::File && touched.may_have(node.facts.id);
        let hidden = matches!(&self.timestamps, Timestamps::Hide(files) if touched(files));
        (doubtful || hidden || *before != node.facts).then_some(How::Update)
    }

    /// For each file with several names the one that the others are links to: one that the target has, if there is any.
    fn groups(&self, found: &Listing) -> HashMap<FileId, NodeId> {
        let mut groups: HashMap<FileId, NodeId> = HashMap::new();
        for (id, node) in found.nodes.iter().enumerate() {
            if has_several(&node.facts) && !(self.kind == TreeKind::Layer && node.is_whiteout()) {
                let first = groups.entry(node.facts.id).or_insert(id as NodeId);
                if self.same[*first as usize].is_none() && self.same[id].is_some() {
                    *first = id as NodeId;
                }
            }
        }
        groups
    }
}

/// Whether a directory is the one that was listed as `one`, so that what is known of what is below it holds. The number may be that
/// of one that was removed, whose content is of no use.
pub fn is_same_directory(one: &Node, other: &Node) -> bool {
    let is_of_the_same_time = !one.young && one.facts.born == other.facts.born;
    is_unchanged(one, other) || (is_same_kind(one, other) && is_of_the_same_time)
}

fn is_same_kind(one: &Node, other: &Node) -> bool {
    (one.facts.kind, one.facts.id) == (other.facts.kind, other.facts.id)
}

fn is_unchanged(one: &Node, other: &Node) -> bool {
    one.facts == other.facts && !one.doubtful
}

fn has_several(facts: &Facts) -> bool {
    facts.links > 1 && facts.kind != Kind::Directory
}
