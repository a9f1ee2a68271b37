//! The webhooks. Every replica serves them, leader or not: they read what they need from the API server.
//!
//! [`pods`], [`ours`] and [`evictions`] decide and do no I/O; [`handlers`] reads, asks them and answers; [`server`]
//! speaks TLS.

mod evictions;
mod handlers;
mod ours;
mod pods;
mod review;
mod server;

pub use handlers::Admission;
pub use server::{Endpoint, ServeError, serve};
