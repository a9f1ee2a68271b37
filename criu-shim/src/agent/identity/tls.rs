//! TLS configurations made of one certificate, and the names in a peer's.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use thiserror::Error;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Why a certificate can't be used.
#[derive(Debug, Error)]
pub enum TlsError {
    /// Not PEM, or without a certificate.
    #[error("read {what}")]
    Pem {
        /// What was read.
        what: &'static str,
        /// Why.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// There is none in it.
    #[error("{0} has no certificate in it")]
    Empty(&'static str),
    /// Not a certificate.
    #[error("parse a certificate")]
    Parse(#[source] x509_parser::nom::Err<x509_parser::error::X509Error>),
    /// rustls does not take it.
    #[error("set up TLS")]
    Setup(#[source] rustls::Error),
    /// The CA's certificate can't be used to verify clients.
    #[error("set up the verification of clients")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
}

/// Both directions of TLS under one certificate.
#[derive(Clone, Debug)]
pub struct Tls {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl Tls {
    /// From the CA's certificates (PEM), this node's chain (PEM) and its key (PKCS #8).
    ///
    /// # Errors
    /// Where one of them can't be used.
    pub fn new(ca: &[u8], chain: &[u8], key: Vec<u8>) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        for certificate in certificates(ca, "the CA")? {
            roots.add(certificate).map_err(TlsError::Setup)?;
        }
        let roots = Arc::new(roots);
        let chain = certificates(chain, "this node's certificate")?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
        let (_, leaf) = X509Certificate::from_der(&chain[0]).map_err(TlsError::Parse)?;
        let at = |seconds: i64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.max(0).unsigned_abs());
        let (not_before, not_after) =
            (at(leaf.validity().not_before.timestamp()), at(leaf.validity().not_after.timestamp()));
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(TlsError::Verifier)?;
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(TlsError::Setup)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(TlsError::Setup)?;
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(TlsError::Setup)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .map_err(TlsError::Setup)?;
        Ok(Self { server: Arc::new(server), client: Arc::new(client), not_before, not_after })
    }

    /// For accepting connections.
    pub fn server(&self) -> Arc<ServerConfig> {
        self.server.clone()
    }

    /// For making connections.
    pub fn client(&self) -> Arc<ClientConfig> {
        self.client.clone()
    }

    /// End of the certificate's life.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Two thirds of the certificate's life.
    pub fn renew_at(&self) -> SystemTime {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.not_before + life * 2 / 3
    }
}

fn certificates(pem: &[u8], what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|source| TlsError::Pem { what, source })?;
    if found.is_empty() { Err(TlsError::Empty(what)) } else { Ok(found) }
}

/// The DNS names in a certificate that has been verified.
///
/// # Errors
/// [`TlsError::Parse`].
pub fn peer_names(certificate: &CertificateDer<'_>) -> Result<Vec<String>, TlsError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(TlsError::Parse)?;
    let names = parsed.subject_alternative_name().ok().flatten();
    let names = names.into_iter().flat_map(|extension| &extension.value.general_names);
    Ok(names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    struct Ca {
        pem: String,
        issuer: Issuer<'static, KeyPair>,
    }

    fn ca() -> Ca {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new(Vec::new()).expect("params");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("sign").pem();
        Ca { pem, issuer: Issuer::new(params, key) }
    }

    fn node(ca: &Ca, trusted: &Ca, name: &str) -> Tls {
        let key = KeyPair::generate().expect("key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("params");
        let certificate = params.signed_by(&key, &ca.issuer).expect("sign");
        Tls::new(trusted.pem.as_bytes(), certificate.pem().as_bytes(), key.serialize_der()).expect("tls")
    }

    /// Connects two agents; the names that the server sees, if they talk at all.
    fn meet(server: &Tls, client: &Tls, expected: &str) -> Option<Vec<String>> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        runtime.block_on(async {
            let (near, far) = tokio::io::duplex(64 << 10);
            let acceptor = tokio_rustls::TlsAcceptor::from(server.server());
            let connector = tokio_rustls::TlsConnector::from(client.client());
            let name = rustls::pki_types::ServerName::try_from(expected.to_owned()).expect("name");
            let serve = async {
                let mut stream = acceptor.accept(far).await.ok()?;
                let names = peer_names(stream.get_ref().1.peer_certificates()?.first()?).ok()?;
                stream.write_all(b"!").await.ok()?;
                stream.flush().await.ok()?;
                Some(names)
            };
            let connect = async {
                let mut stream = connector.connect(name, near).await.ok()?;
                stream.read_u8().await.ok()
            };
            let (names, byte) = tokio::join!(serve, connect);
            byte.and(names)
        })
    }

    #[test]
    fn agents_of_one_ca_know_each_other_by_name() {
        let ca = ca();
        let (one, other) = (node(&ca, &ca, "a.agent.tideover.dev"), node(&ca, &ca, "b.agent.tideover.dev"));
        assert_eq!(meet(&one, &other, "a.agent.tideover.dev"), Some(vec!["b.agent.tideover.dev".to_owned()]));
        assert_eq!(meet(&one, &other, "c.agent.tideover.dev"), None, "another node than was asked for");
    }

    #[test]
    fn a_certificate_of_another_ca_gets_nowhere() {
        let (ours, theirs) = (ca(), ca());
        let good = node(&ours, &ours, "a.agent.tideover.dev");
        let stranger = node(&theirs, &ours, "b.agent.tideover.dev");
        assert_eq!(meet(&good, &stranger, "a.agent.tideover.dev"), None);
        assert_eq!(meet(&stranger, &good, "b.agent.tideover.dev"), None);
    }

    #[test]
    fn renewal_is_at_two_thirds() {
        let ca = ca();
        let tls = node(&ca, &ca, "a.agent.tideover.dev");
        assert!(tls.renew_at() < tls.not_after());
        let left = tls.not_after().duration_since(tls.renew_at()).expect("before");
        let past = tls.renew_at().duration_since(tls.not_before).expect("after");
        assert!(past.abs_diff(left * 2) < Duration::from_secs(2));
    }
}
