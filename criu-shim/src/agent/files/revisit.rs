//! A look at only those names of a tree that may have changed: what comes out is two lists that differ as those of the whole tree
//! would, one of what was sent and one of what is there.
//!
//! A name that nobody has touched, in a directory that is the same, stands in neither. Every name that somebody has touched is
//! looked at, with each directory on the way to it; a directory that is new there is listed with all below it, and so is what
//! was sent of the one before. Where it can't be told what belongs to it (other names of a file, another mount), the
//! whole tree must be listed.

use crate::agent::files::TreeKind;
use crate::agent::files::beneath::Beneath;
use crate::agent::files::changes::{Holding, is_same_directory};
use crate::agent::files::listing::{FileId, Kind, Listing, MAX_DEPTH, Node, NodeId, TreePath};
use crate::agent::files::walk::{Directory, Found, WalkError, found_at, found_of, is_gone, look_into};
use crate::agent::files::watched::Happened;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Most names that are looked at so. One thread does, in about 2 us each; where there are more, several list the whole tree instead.
const MOST_NAMES: usize = 8 << 10;

/// What makes it quick to find what to look at again.
#[derive(Debug, Default)]
pub struct Index {
    /// One name of each file.
    one: HashMap<FileId, NodeId>,
    /// All names of files that have several.
    all: HashMap<FileId, Vec<NodeId>>,
    /// What may have changed, or may yet, without anybody's being told.
    suspects: Vec<NodeId>,
}

impl Index {
    /// Of a tree as it was listed, each of whose nodes was held so.
    pub fn of(listing: &Listing, holdings: &[Holding]) -> Self {
        let mut index = Self { one: HashMap::with_capacity(listing.nodes.len()), ..Self::default() };
        for (id, node) in (0..).zip(&listing.nodes) {
            index.one.insert(node.facts.id, id);
            if has_several(node) {
                index.all.entry(node.facts.id).or_default().push(id);
            }
            if node.doubtful || holdings.get(id as usize).is_none_or(|holding| *holding > Holding::Nobody) {
                index.suspects.push(id);
            }
        }
        for names in index.all.values() {
            let links = names.first().and_then(|name| listing.node(*name)).map_or(0, |node| node.facts.links);
            if names.len() as u64 != u64::from(links) {
                // It has a name elsewhere, by which it may be changed.
                index.suspects.extend(names);
            }
        }
        index
    }

    /// This one may have changed too.
    pub fn suspect(&mut self, id: NodeId) {
        self.suspects.push(id);
    }

    fn names(&self, file: FileId) -> impl Iterator<Item = NodeId> {
        let all = self.all.get(&file).map_or(&[][..], Vec::as_slice);
        all.iter().copied().chain(self.one.get(&file).copied().filter(|_| all.is_empty()))
    }
}

/// The two lists.
#[derive(Debug)]
pub struct Revisited {
    /// Of what was sent.
    pub known: Listing,
    /// Of what is there.
    pub found: Listing,
}

/// Looks at what may have changed since `known` was listed: what has `happened` since, and `files`. None where the whole tree must be
/// listed.
///
/// # Errors
/// Where something that is there can't be looked at.
pub fn revisit(
    tree: &mut Beneath,
    kind: TreeKind,
    (known, index): (&Listing, &Index),
    happened: &Happened,
    files: &HashSet<FileId>,
    threads: usize,
) -> Result<Option<Revisited>, WalkError> {
    if index.suspects.len() + happened.names.len() > MOST_NAMES {
        return Ok(None);
    }
    let mut again = Again { known, index, kind, names: BTreeMap::new(), waiting: Vec::new() };
    for id in &index.suspects {
        again.look_at(*id);
    }
    for file in happened.named.iter().chain(&happened.directories).chain(files) {
        again.look_at_all(*file);
    }
    for (directory, name) in &happened.names {
        // What is not known is none that was listed.
        let Some(directory) = index.one.get(directory) else { return Ok(None) };
        again.look_at(*directory);
        again.look_at_name(*directory, name);
    }
    let Some(()) = again.look(tree)? else { return Ok(None) };
    again.lists(tree, threads)
}

struct Again<'a> {
    known: &'a Listing,
    index: &'a Index,
    kind: TreeKind,
    /// What there is under the names that are looked at, by the directory that they were in.
    names: BTreeMap<NodeId, BTreeMap<Box<[u8]>, Option<Found>>>,
    /// Names that are still to be looked at.
    waiting: Vec<(NodeId, Box<[u8]>)>,
}

impl Again<'_> {
    fn look_at_all(&mut self, file: FileId) {
        for id in self.index.names(file) {
            self.look_at(id);
        }
    }

    /// And at every directory on the way to it.
    fn look_at(&mut self, id: NodeId) {
        let mut at = id;
        while at != 0 {
            let Some(node) = self.known.node(at) else { return };
            if !self.look_at_name(node.parent, &node.name) {
                return;
            }
            at = node.parent;
        }
    }

    /// False where it is looked at already.
    fn look_at_name(&mut self, directory: NodeId, name: &[u8]) -> bool {
        let names = self.names.entry(directory).or_default();
        if names.contains_key(name) {
            return false;
        }
        names.insert(name.into(), None);
        self.waiting.push((directory, name.into()));
        true
    }

    /// Looks at all names, and at other names of the files that are found. None where there is another mount.
    fn look(&mut self, tree: &mut Beneath) -> Result<Option<()>, WalkError> {
        while !self.waiting.is_empty() {
            // Those of one directory after the other.
            let mut waiting = std::mem::take(&mut self.waiting);
            waiting.sort_unstable();
            for (directory, name) in waiting {
                let path = self.known.path(directory);
                let found = tree.directory(&path).and_then(|open| found_at(open, &name));
                let found = match found {
                    Ok(found) if found.is_mount => return Ok(None),
                    Ok(found) => found,
                    Err(rustix::io::Errno::XDEV) => return Ok(None),
                    Err(errno) if is_gone(errno) => {
                        self.look_at_others(directory, &name, None);
                        continue;
                    }
                    Err(source) => return Err(WalkError::Look { path: path.join(&name), source }),
                };
                self.look_at_others(directory, &name, Some(found.facts.id));
                self.names.entry(directory).or_default().insert(name, Some(found));
            }
        }
        Ok(Some(()))
    }

    /// At other names of what is under this one, and of what was.
    fn look_at_others(&mut self, directory: NodeId, name: &[u8], now: Option<FileId>) {
        let before = self.child(directory, name).and_then(|id| self.known.node(id)).map(|node| node.facts.id);
        for file in [before, now.filter(|now| Some(*now) != before)].into_iter().flatten() {
            self.look_at_all(file);
        }
    }

    /// What was under a name.
    fn child(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        let directory = self.known.node(directory)?;
        let place = self.known.children(directory).binary_search_by(|node| (*node.name).cmp(name)).ok()?;
        Some(directory.children.start + NodeId::try_from(place).ok()?)
    }

    fn lists(&self, tree: &mut Beneath, threads: usize) -> Result<Option<Revisited>, WalkError> {
        let root = tree.directory(&TreePath::default()).and_then(found_of);
        let root = root.map_err(|source| WalkError::Look { path: TreePath::default(), source })?;
        let mut found = Listing { nodes: vec![Node::new(0, Box::default(), root.facts)] };
        // Each directory found, and the one that it was where it is the same.
        let mut level: Vec<(NodeId, Option<NodeId>)> = vec![(0, Some(0))];
        let (mut replaced, mut depth) = (HashSet::new(), 0);
        while !level.is_empty() {
            if depth > MAX_DEPTH {
                return Err(WalkError::TooDeep { path: found.path(level.first().map_or(0, |first| first.0)) });
            }
            depth += 1;
            let new = level.iter().filter(|(_, same)| same.is_none());
            let new: Vec<_> = new.map(|(id, _)| Directory { id: *id, path: found.path(*id) }).collect();
            let mut listed: HashMap<NodeId, Vec<Node>> = look_into(tree, &new, threads, None)?.into_iter().collect();
            let mut below = Vec::new();
            for (id, same) in level {
                let nodes = match same {
                    Some(same) => self.nodes(id, same),
                    None => listed.remove(&id).unwrap_or_default(),
                };
                if nodes.iter().any(|node| node.doubtful) {
                    // The mark says that it is another mount.
                    return Ok(None);
                }
                let begin = found.nodes.len() as NodeId;
                for (at, node) in (begin..).zip(&nodes).filter(|(_, node)| node.facts.kind == Kind::Directory) {
                    let before = same.and_then(|same| self.child(same, &node.name));
                    let same = before.filter(|before| self.is_same(*before, node));
                    replaced.extend(before.filter(|_| same.is_none()));
                    below.push((at, same));
                }
                found.nodes.extend(nodes);
                let children = begin..found.nodes.len() as NodeId;
                found.node_mut(id).into_iter().for_each(|node| node.children = children.clone());
            }
            level = below;
        }
        let known = self.known_of(&replaced);
        Ok(self.has_all_names(&found).then_some(Revisited { known, found }))
    }

    /// What there is in a directory that is the same, of what was looked at.
    fn nodes(&self, id: NodeId, same: NodeId) -> Vec<Node> {
        let names = self.names.get(&same).into_iter().flatten();
        let found = names.filter_map(|(name, found)| Some(Node::new(id, name.clone(), found.as_ref()?.facts)));
        found.collect()
    }

    fn is_same(&self, before: NodeId, now: &Node) -> bool {
        self.known.node(before).is_some_and(|before| !before.unsent && is_same_directory(before, now))
    }

    /// What was sent of what was looked at, and all that was sent of directories that others have `replaced`.
    fn known_of(&self, replaced: &HashSet<NodeId>) -> Listing {
        let mut list = Listing { nodes: self.known.node(0).cloned().into_iter().collect() };
        let mut level = vec![(0, 0, false)];
        while !level.is_empty() {
            let mut below = Vec::new();
            for (id, was, all) in level {
                let Some(directory) = self.known.node(was) else { continue };
                let looked_at: BTreeSet<NodeId> = if all {
                    directory.children.clone().collect()
                } else {
                    let names = self.names.get(&was).into_iter().flatten();
                    names.filter_map(|(name, _)| self.child(was, name)).collect()
                };
                let begin = list.nodes.len() as NodeId;
                for (at, was) in (begin..).zip(&looked_at) {
                    let Some(node) = self.known.node(*was) else { continue };
                    list.nodes.push(Node { parent: id, children: 0..0, ..node.clone() });
                    if node.facts.kind == Kind::Directory {
                        below.push((at, *was, all || replaced.contains(was)));
                    }
                }
                let children = begin..list.nodes.len() as NodeId;
                list.node_mut(id).into_iter().for_each(|node| node.children = children.clone());
            }
            level = below;
        }
        list
    }

    /// Whether of every file that was found each name was: one that was not may stand for it.
    fn has_all_names(&self, found: &Listing) -> bool {
        let mut names: HashMap<FileId, u64> = HashMap::new();
        let counts = |node: &&Node| has_several(node) && !(self.kind == TreeKind::Layer && node.is_whiteout());
        for node in found.nodes.iter().filter(counts) {
            *names.entry(node.facts.id).or_default() += 1;
        }
        found.nodes.iter().filter(counts).all(|node| names.get(&node.facts.id) == Some(&u64::from(node.facts.links)))
    }
}

fn has_several(node: &Node) -> bool {
    node.facts.links > 1 && node.facts.kind != Kind::Directory
}
