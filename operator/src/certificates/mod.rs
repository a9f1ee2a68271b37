//! Certificates: the authority that the operator makes once, the webhooks' certificate, and the agents'.

mod agents;
mod authority;
mod publish;
mod request;
mod serving;
mod store;

pub use agents::sign_for_agents;
pub use authority::{Authority, CertificateError};
pub use publish::keep_published;
pub use serving::ServingCertificate;
#[cfg(test)]
pub(crate) use serving::tests::serving as a_serving_certificate;
pub use store::{StoreError, load_or_make};

/// Name of the Secret and of the ConfigMap.
pub const CA: &str = "tideover-ca";
