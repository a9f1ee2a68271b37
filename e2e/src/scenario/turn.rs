//! Who may use the lab now, of the scenarios of one program.
//!
//! Most scenarios disturb what they all share: they cordon and drain nodes, end agents, or look at what is left on every node. Each
//! of these has the lab alone. Those that only touch what is in a namespace of their own may go on side by side.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

static LAB: RwLock<()> = RwLock::new(());

/// The turn of one scenario; it ends when dropped.
#[derive(Debug)]
pub enum Turn {
    /// Nobody else has one.
    Alone(RwLockWriteGuard<'static, ()>),
    /// Others that disturb nobody may have one too.
    Beside(RwLockReadGuard<'static, ()>),
}

impl Turn {
    /// Waits until nobody else has a turn.
    pub fn alone() -> Self {
        // A scenario that panicked has told so: it is no reason for the next one to fail.
        Self::Alone(LAB.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until nobody has the lab alone.
    pub fn beside() -> Self {
        Self::Beside(LAB.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether nobody else has one.
    pub fn is_alone(&self) -> bool {
        matches!(self, Self::Alone(_))
    }
}
