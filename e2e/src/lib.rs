//! The lab: a real Kubernetes cluster in namespaces on one Linux machine, for tests, demos and benchmarks.
//!
//! Reading order: [`topology`] says which machines there are, [`control_plane`] and [`worker`] describe each as data,
//! [`parts`] what they have in common, [`machine`] makes a description run, [`up`] and [`down`] are the whole life of a
//! lab. [`lab::Lab`] is what a test holds. [`vm`] is apart from all that: a virtual machine with a kernel of its own.
//!
//! Invariants: every name and address follows from the lab's name and number; nothing outside the lab's own
//! directories, namespaces, cgroups and one network interface of the host is changed; nothing here knows Tideover but
//! [`image::product`], which packs it, and [`vm`], which tries it.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test that cannot go on should say where"))]

pub mod addons;
pub mod apt;
pub mod bench;
pub mod cache;
pub mod cli;
pub mod command;
mod compile;
pub mod control_plane;
pub mod down;
mod fork;
pub mod go_tools;
pub mod image;
pub mod index;
pub mod kubeconfig;
pub mod lab;
pub mod layout;
pub mod lock;
pub mod machine;
pub mod network;
pub mod parts;
pub mod pki;
pub mod preflight;
pub mod process;
pub mod progress;
pub mod scenario;
pub mod status;
pub mod topology;
pub mod tree;
pub mod up;
pub mod vm;
pub mod worker;
mod write_atomic;
