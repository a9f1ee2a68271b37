//! Container images without a container engine.
//!
//! [`build`] writes an image from files, [`libraries`] finds what a program of the Debian tree needs, [`catalogue`] is
//! the lab's own images, [`product`] Tideover's with the CRIU that [`criu`] packs, and what the scenarios run,
//! [`postgres`] among that. An archive is an OCI image layout that also has docker's
//! `manifest.json`, so `ctr images import`, `docker load` and `podman load` all take it.

pub mod build;
pub mod catalogue;
pub mod criu;
pub mod import;
pub mod libraries;
pub mod list;
pub mod postgres;
pub mod product;
