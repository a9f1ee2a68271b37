//! A tree that is sent in rounds: what the target has of it, and the next look at it.

use crate::agent::files::beneath::Beneath;
use crate::agent::files::changes::{Changes, How, Timestamps, compare, is_doubtful, is_young};
use crate::agent::files::held::Held;
use crate::agent::files::listing::{Blocks, Facts, FileId, Kind, Listing, NodeId, Stamp, TreePath};
use crate::agent::files::opened::{Opened, Touched};
use crate::agent::files::pack::Packing;
use crate::agent::files::revisit::{Index, Revisited, revisit};
use crate::agent::files::walk::{WalkError, walk};
use crate::agent::files::watched::{Happened, Watched};
use crate::agent::files::{TreeKind, threads};
use rustix::fs::FsWord;
use rustix::io::Errno;
use std::collections::HashSet;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use thiserror::Error;

/// What statfs(2) says of a tmpfs, `TMPFS_MAGIC` of linux/magic.h.
const TMPFS: FsWord = 0x0102_1994;

/// Why a tree can't be looked at.
#[derive(Debug, Error)]
pub enum LookError {
    /// Its root can't be opened.
    #[error("open the tree {root:?}")]
    Open {
        /// The root.
        root: PathBuf,
        /// Why.
        #[source]
        source: Errno,
    },
    /// It can't be listed.
    #[error("list the tree {root:?}")]
    Walk {
        /// The root.
        root: PathBuf,
        /// Why.
        #[source]
        source: WalkError,
    },
    /// Another directory is there than at the last look.
    #[error("the tree {root:?} is another than before")]
    Replaced {
        /// The root.
        root: PathBuf,
    },
}

/// A tree, and what the target has of it. Between looks nothing of it is open: what holds a mount would keep it from being
/// taken down.
#[derive(Debug)]
pub struct Tree {
    root: PathBuf,
    kind: TreeKind,
    /// What was sent.
    known: Option<Listing>,
    /// Bytes of archives that nobody has asked for yet.
    sent: u64,
    /// What is opened on its file system, where that matters and the kernel can say it.
    opened: Option<Opened>,
    /// What was opened before the look to come, where that is known.
    touched: Option<Touched>,
    /// What happens in its directories, where the kernel can say all of it.
    watched: Option<Watched>,
    /// Not all of its directories can be watched.
    is_unwatchable: bool,
    /// What happened before the look to come, where that is known.
    happened: Option<Happened>,
    /// What of `known` may have changed.
    index: Option<Index>,
    /// What was known before a look in the freeze. To give it back would take a part of that.
    spent: Option<(Listing, Index)>,
}

impl Tree {
    /// The tree at `root`, of which the target has nothing.
    pub fn new(root: PathBuf, kind: TreeKind) -> Self {
        Self {
            root,
            kind,
            known: None,
            sent: 0,
            opened: None,
            touched: None,
            watched: None,
            is_unwatchable: false,
            happened: None,
            index: None,
            spent: None,
        }
    }

    /// Notes what has happened, for the look to come. To be asked before it is asked what processes hold, so that whoever opens
    /// a file in between is noticed by one or the other. Where this was not asked, or can't be told, all that can change without a
    /// timestamp counts as opened, and the whole tree is listed. Unless nobody runs, it is watched from now on. Blocking.
    pub fn note_events(&mut self, frozen: bool) {
        (self.touched, self.happened) = (None, None);
        let Ok(mut root) = Beneath::open(&self.root) else { return };
        let Ok(directory) = root.directory(&TreePath::default()) else { return };
        match &mut self.watched {
            Some(watched) => self.happened = watched.take(directory),
            None if frozen || self.is_unwatchable => {}
            None => self.watched = Watched::new(directory, self.kind),
        }
        // What an overlay opens there is reported only where it is watched too.
        let is_told = self.kind == TreeKind::Volume || self.watched.is_some();
        match &mut self.opened {
            Some(opened) => self.touched = Some(opened.take(directory)),
            None if is_told && !frozen && is_tmpfs(directory) == Ok(true) => {
                self.opened = Opened::watch(directory).ok();
            }
            None => {}
        }
    }

    /// Lists the tree, and compares it with what was sent: what comes out of it is what must be sent now. `held` is what processes
    /// hold, asked for after `began` and [`Tree::note_events`], and none where they don't run: then only what may have changed is
    /// listed, where that is known, and nothing can be looked at after it. Blocking.
    ///
    /// # Errors
    /// Where the tree can't be listed.
    pub fn look(
        tree: &Arc<Mutex<Self>>,
        held: &Held,
        began: Stamp,
        frozen: bool,
    ) -> Result<Option<Packing>, LookError> {
        let mut this = tree.lock().unwrap_or_else(PoisonError::into_inner);
        let open = |source| LookError::Open { root: this.root.clone(), source };
        let mut root = Beneath::open(&this.root).map_err(open)?;
        let directory = root.directory(&TreePath::default()).map_err(open)?;
        let is_tmpfs = is_tmpfs(directory).map_err(open)?;
        let timestamps = match this.touched.take() {
            _ if !is_tmpfs => Timestamps::Tell,
            None => Timestamps::Hide(Touched::Any),
            Some(touched) => Timestamps::Hide(touched),
        };
        let revisited = if frozen { this.revisit(&mut root, &timestamps)? } else { None };
        let mut found = match revisited {
            Some(Revisited { known, found }) => {
                this.spent = this.known.replace(known).zip(this.index.take());
                found
            }
            None => this.list(&mut root, held, (began, is_tmpfs), frozen)?,
        };
        let is_other =
            |known: &Listing| known.node(0).map(|root| root.facts.id) != found.node(0).map(|root| root.facts.id);
        if this.known.as_ref().is_some_and(is_other) {
            return Err(LookError::Replaced { root: this.root.clone() });
        }
        let changes: Changes = compare(this.kind, this.known.take(), &mut found, timestamps);
        this.known = Some(found);
        let kind = this.kind;
        drop(this);
        Ok((!changes.is_empty()).then(|| Packing::new(tree.clone(), root, kind, changes, frozen)))
    }

    /// Lists all of it, and notes what may change without a timestamp, or has.
    fn list(
        &mut self,
        root: &mut Beneath,
        held: &Held,
        (began, is_tmpfs): (Stamp, bool),
        frozen: bool,
    ) -> Result<Listing, LookError> {
        let watched = self.watched.as_ref().filter(|_| !frozen);
        watched.iter().for_each(|watched| watched.begin());
        let mut found = walk(root, threads(frozen), watched).map_err(|source| self.not_listed(source))?;
        let holdings = held.nodes(&found, self.kind == TreeKind::Layer);
        for (node, holding) in found.nodes.iter_mut().zip(&holdings) {
            let holding = if is_tmpfs { holding.that_may_map() } else { *holding };
            node.doubtful = is_doubtful(&node.facts, holding, began);
            node.young = is_young(&node.facts, began);
        }
        self.index = watched.map(|_| Index::of(&found, &holdings));
        if watched.is_some_and(|watched| !watched.is_complete()) {
            (self.watched, self.is_unwatchable) = (None, true);
        }
        Ok(found)
    }

    /// Lists only what may have changed. None where that is not known.
    fn revisit(&self, root: &mut Beneath, timestamps: &Timestamps) -> Result<Option<Revisited>, LookError> {
        let none = HashSet::new();
        let opened: &HashSet<FileId> = match timestamps {
            Timestamps::Hide(Touched::Any) => return Ok(None),
            Timestamps::Hide(Touched::These(files)) => files,
            Timestamps::Tell => &none,
        };
        let known = self.known.as_ref().zip(self.index.as_ref());
        let (Some(known), Some(happened)) = (known, self.happened.as_ref()) else { return Ok(None) };
        let found = revisit(root, self.kind, known, happened, opened, threads(true));
        found.map_err(|source| self.not_listed(source))
    }

    fn not_listed(&self, source: WalkError) -> LookError {
        LookError::Walk { root: self.root.clone(), source }
    }

    /// What this process does is noticed too.
    #[cfg(test)]
    pub(super) fn watch_this_process(&mut self) {
        self.note_events(false);
        self.watched.iter_mut().for_each(Watched::pass_over_nobody);
        self.opened.iter_mut().for_each(Opened::pass_over_nobody);
    }

    /// How many bytes its archives have had since this was asked last.
    pub fn take_sent(&mut self) -> u64 {
        std::mem::take(&mut self.sent)
    }

    /// Another piece of an archive is on its way.
    pub(super) fn add_sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    /// Files of it are being opened, which is reported too: what others do must not be lost for that.
    pub(super) fn make_room_for_events(&self) {
        self.watched.iter().for_each(Watched::drain);
    }

    /// Path and facts of a node.
    pub(super) fn named(&self, id: NodeId) -> Option<(TreePath, Facts)> {
        let known = self.known.as_ref()?;
        Some((known.path(id), known.node(id)?.facts))
    }

    /// It could not be sent. Where it stood for other names of the same file, they were not sent either.
    pub(super) fn mark_unsent(&mut self, id: NodeId) {
        let Some(known) = &mut self.known else { return };
        let Some(node) = known.node_mut(id) else { return };
        (node.unsent, node.blocks) = (true, None);
        let facts = node.facts;
        self.index.iter_mut().for_each(|index| index.suspect(id));
        if facts.kind != Kind::Directory && facts.links > 1 {
            for (id, other) in (0..).zip(&mut known.nodes).filter(|(_, other)| other.facts.id == facts.id) {
                (other.doubtful, other.blocks) = (true, None);
                self.index.iter_mut().for_each(|index| index.suspect(id));
            }
        }
    }

    /// Whether it could not be sent.
    pub(super) fn is_unsent(&self, id: NodeId) -> bool {
        self.known.as_ref().and_then(|known| known.node(id)).is_none_or(|node| node.unsent)
    }

    /// Whether the directory that it is in could not be sent.
    pub(super) fn is_lost(&self, id: NodeId) -> bool {
        self.known.as_ref().and_then(|known| known.node(id)).is_none_or(|node| self.is_unsent(node.parent))
    }

    /// How many bytes must be read to send a name so.
    pub(super) fn bytes_to_read(&self, id: NodeId, how: How) -> u64 {
        let node = self.known.as_ref().and_then(|known| known.node(id));
        let file = node.filter(|node| node.facts.kind == Kind::File && !matches!(how, How::Link(_)));
        file.map_or(0, |node| node.facts.size)
    }

    /// What the target has of a file.
    pub(super) fn blocks(&self, id: NodeId) -> Option<Arc<Blocks>> {
        self.known.as_ref()?.node(id)?.blocks.clone()
    }

    /// What the target has of a file now.
    pub(super) fn keep_blocks(&mut self, id: NodeId, blocks: Blocks) {
        if let Some(node) = self.known.as_mut().and_then(|known| known.node_mut(id)) {
            node.blocks = Some(Arc::new(blocks));
        }
    }
}

fn is_tmpfs(directory: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(rustix::fs::fstatfs(directory)?.f_type == TMPFS)
}

/// The time by which the kernel stamps files.
pub fn now() -> Stamp {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Stamp { seconds: now.as_secs().cast_signed(), nanos: now.subsec_nanos() }
}
