//! A tree that is sent in rounds: what the target has of it, and the next look at it.

use crate::agent::files::beneath::Beneath;
use crate::agent::files::changes::{Changes, How, Timestamps, compare, is_doubtful, is_young};
use crate::agent::files::held::Held;
use crate::agent::files::listing::{Blocks, Facts, Kind, Listing, NodeId, Stamp, TreePath};
use crate::agent::files::opened::{Opened, Touched};
use crate::agent::files::pack::Packing;
use crate::agent::files::walk::{WalkError, walk};
use crate::agent::files::{TreeKind, threads};
use rustix::fs::FsWord;
use rustix::io::Errno;
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
}

impl Tree {
    /// The tree at `root`, of which the target has nothing.
    pub fn new(root: PathBuf, kind: TreeKind) -> Self {
        Self { root, kind, known: None, sent: 0, opened: None, touched: None }
    }

    /// Notes what has been opened, for the look to come. To be asked before it is asked what processes hold, so that whoever opens
    /// a file in between is noticed by one or the other. Where this was not asked, or can't be told, all that can change without a
    /// timestamp counts as opened. Blocking.
    pub fn note_opened(&mut self) {
        self.touched = None;
        let Ok(mut root) = Beneath::open(&self.root) else { return };
        let Ok(directory) = root.directory(&TreePath::default()) else { return };
        match &mut self.opened {
            Some(opened) => self.touched = Some(opened.take(directory)),
            None if is_tmpfs(directory) == Ok(true) => self.opened = Opened::watch(directory).ok(),
            None => {}
        }
    }

    /// Lists the tree, and compares it with what was sent: what comes out of it is what must be sent now. `held` is what processes
    /// hold, asked for after `began` and [`Tree::note_opened`], and none where they don't run. Blocking.
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
        let mut found =
            walk(&mut root, threads(frozen)).map_err(|source| LookError::Walk { root: this.root.clone(), source })?;
        let is_other =
            |known: &Listing| known.node(0).map(|root| root.facts.id) != found.node(0).map(|root| root.facts.id);
        if this.known.as_ref().is_some_and(is_other) {
            return Err(LookError::Replaced { root: this.root.clone() });
        }
        let holdings = held.nodes(&found, this.kind == TreeKind::Layer);
        for (node, holding) in found.nodes.iter_mut().zip(holdings) {
            let holding = if is_tmpfs { holding.that_may_map() } else { holding };
            node.doubtful = is_doubtful(&node.facts, holding, began);
            node.young = is_young(&node.facts, began);
        }
        let timestamps = match this.touched.take() {
            _ if !is_tmpfs => Timestamps::Tell,
            None => Timestamps::Hide(Touched::Any),
            Some(touched) => Timestamps::Hide(touched),
        };
        let changes: Changes = compare(this.kind, this.known.take(), &mut found, timestamps);
        this.known = Some(found);
        let kind = this.kind;
        drop(this);
        Ok((!changes.is_empty()).then(|| Packing::new(tree.clone(), root, kind, changes, frozen)))
    }

    /// How many bytes its archives have had since this was asked last.
    pub fn take_sent(&mut self) -> u64 {
        std::mem::take(&mut self.sent)
    }

    /// Another piece of an archive is on its way.
    pub(super) fn add_sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
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
        if facts.kind != Kind::Directory && facts.links > 1 {
            for other in known.nodes.iter_mut().filter(|other| other.facts.id == facts.id) {
                (other.doubtful, other.blocks) = (true, None);
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
