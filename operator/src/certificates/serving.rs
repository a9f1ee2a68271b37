//! The webhooks' certificate: made by each replica for itself, kept in memory, renewed long before it ends.

use super::authority::{Authority, CertificateError, Purpose};
use crate::causes::chain;
use rcgen::KeyPair;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use time::OffsetDateTime;
use tracing::{info, warn};

/// A third of the time that a certificate is valid.
const RENEW_EVERY: Duration = Duration::from_secs(8 * 3600);

/// Pause after a failure to renew.
const RETRY: Duration = Duration::from_secs(60);

/// The certificate that TLS connections get; a connection keeps the one that it began with.
#[derive(Debug)]
pub struct ServingCertificate {
    names: Vec<String>,
    current: RwLock<Arc<CertifiedKey>>,
}

impl ServingCertificate {
    /// Makes the first one, for the Service `service` in `namespace`.
    ///
    /// # Errors
    /// Where it can't be made.
    pub fn make(authority: &Authority, service: &str, namespace: &str) -> Result<Self, CertificateError> {
        let names = vec![format!("{service}.{namespace}.svc"), format!("{service}.{namespace}.svc.cluster.local")];
        let first = certify(authority, &names, OffsetDateTime::now_utc())?;
        Ok(Self { names, current: RwLock::new(Arc::new(first)) })
    }

    /// Renews it for ever.
    pub async fn keep_fresh(&self, authority: &Authority) {
        let mut pause = RENEW_EVERY;
        loop {
            tokio::time::sleep(pause).await;
            pause = match certify(authority, &self.names, OffsetDateTime::now_utc()) {
                Ok(fresh) => {
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
                    info!("the webhooks' certificate was renewed");
                    RENEW_EVERY
                }
                Err(error) => {
                    warn!(error = chain(&error), "renewing the webhooks' certificate");
                    RETRY
                }
            };
        }
    }
}

impl ResolvesServerCert for ServingCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

fn certify(authority: &Authority, names: &[String], now: OffsetDateTime) -> Result<CertifiedKey, CertificateError> {
    let key = KeyPair::generate().map_err(CertificateError::Key)?;
    let leaf = authority.sign(names, &key, Purpose::Server, now)?;
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    CertifiedKey::from_der(vec![leaf.der().clone()], der, &default_provider()).map_err(CertificateError::Tls)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::authority::AuthorityPem;
    use super::*;

    /// A certificate of an authority that only it knows.
    pub(crate) fn serving() -> ServingCertificate {
        let pem = AuthorityPem::make(OffsetDateTime::now_utc()).expect("an authority");
        let authority = Authority::read(&pem).expect("an authority");
        ServingCertificate::make(&authority, "hooks", "tide").expect("a certificate")
    }

    #[test]
    fn a_certificate_is_there_from_the_start() {
        let serving = serving();
        assert_eq!(serving.names[0], "hooks.tide.svc");
        assert_eq!(serving.current.read().expect("a lock").cert.len(), 1);
    }
}
