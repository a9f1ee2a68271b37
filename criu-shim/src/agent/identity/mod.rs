//! Who this agent is to other agents: a key of its own, a certificate for this node, and the CA that both sides trust.
//!
//! TLS 1.3 only, certificates in both directions, no other mode. The key never leaves the process. The certificate is
//! asked for with a CertificateSigningRequest and renewed at two thirds of its life.

mod certificate;
mod tls;

pub use certificate::{CertificateError, keep};
pub use tls::{Tls, TlsError, peer_names};
