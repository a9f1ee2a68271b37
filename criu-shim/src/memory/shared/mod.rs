//! Shared memory: objects that processes map, and what of them was written, told by comparing.
//!
//! Owns finding the objects of a container ([`find`]) and one object's content: what was sent of it, and which pages are
//! another now ([`SharedObject`]). It maps nothing and writes nothing, so that no page comes into being and no seal is in
//! the way.
//!
//! Why not by write protection: it belongs to a page table, and a child that ends takes its own along. See
//! `docs/decisions/0004-shared-memory.md`.

mod find;
mod object;

pub use find::{Found, device, find};
pub use object::SharedObject;

#[cfg(test)]
mod tests;
