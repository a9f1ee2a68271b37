//! Machines: process trees that believe to have a computer of their own.
//!
//! A machine is described by a [`spec::MachineSpec`] and nothing else. [`launch`] brings one up, [`init`] is its first
//! process, [`enter`] runs programs in it. Invariant: nothing in here knows Kubernetes; what a machine runs is data.

pub mod cgroup;
pub mod enter;
pub mod init;
pub mod launch;
pub mod rootfs;
pub mod spec;
