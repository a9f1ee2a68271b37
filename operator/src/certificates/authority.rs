//! The certificate authority: it signs, and never talks to anybody.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType,
};
use thiserror::Error;
use time::{Duration, OffsetDateTime};

/// How long the authority is valid.
const AUTHORITY_VALID: Duration = Duration::days(3650);

/// How long a certificate that it signs is valid.
pub const LEAF_VALID: Duration = Duration::hours(24);

/// How far a node's clock may be behind.
const CLOCK_SKEW: Duration = Duration::minutes(5);

/// Why a certificate could not be made.
#[derive(Debug, Error)]
pub enum CertificateError {
    /// No key could be made.
    #[error("make a key")]
    Key(#[source] rcgen::Error),
    /// The name does not fit into a certificate.
    #[error("put the name {name} into a certificate")]
    Name {
        /// The name.
        name: String,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// It could not be signed.
    #[error("sign a certificate")]
    Sign(#[source] rcgen::Error),
    /// The stored authority can't be read.
    #[error("read the authority's {what}")]
    Read {
        /// Key or certificate.
        what: &'static str,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// The key can't be used for TLS.
    #[error("use the key for TLS")]
    Tls(#[source] rustls::Error),
}

/// An authority as it is stored: two PEM texts.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthorityPem {
    /// Its certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

impl std::fmt::Debug for AuthorityPem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthorityPem").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl AuthorityPem {
    /// Makes a new authority (ECDSA P-256).
    ///
    /// # Errors
    /// Where the random source or the signing fails.
    pub fn make(now: OffsetDateTime) -> Result<Self, CertificateError> {
        let key = KeyPair::generate().map_err(CertificateError::Key)?;
        let mut params = CertificateParams::default();
        params.not_before = now - CLOCK_SKEW;
        params.not_after = now + AUTHORITY_VALID;
        params.distinguished_name = common_name("Tideover");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key).map_err(CertificateError::Sign)?;
        Ok(Self { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

/// Signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To be connected to.
    Server,
    /// To connect and to be connected to: agents do both.
    Peer,
}

impl Authority {
    /// Reads a stored authority.
    ///
    /// # Errors
    /// [`CertificateError::Read`].
    pub fn read(pem: &AuthorityPem) -> Result<Self, CertificateError> {
        let key = KeyPair::from_pem(&pem.key).map_err(|source| CertificateError::Read { what: "key", source })?;
        let issuer = Issuer::from_ca_cert_pem(&pem.certificate, key)
            .map_err(|source| CertificateError::Read { what: "certificate", source })?;
        Ok(Self { issuer, certificate: pem.certificate.clone() })
    }

    /// Its certificate, PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Signs `key` for `names`; the first one is the common name too, where it fits.
    ///
    /// # Errors
    /// [`CertificateError::Name`], [`CertificateError::Sign`].
    pub fn sign(
        &self,
        names: &[String],
        key: &impl PublicKeyData,
        purpose: Purpose,
        now: OffsetDateTime,
    ) -> Result<rcgen::Certificate, CertificateError> {
        let mut params = CertificateParams::default();
        params.not_before = now - CLOCK_SKEW;
        params.not_after = now + LEAF_VALID;
        params.distinguished_name = names.first().map(|name| common_name(name)).unwrap_or_default();
        for name in names {
            let dns =
                name.as_str().try_into().map_err(|source| CertificateError::Name { name: name.clone(), source })?;
            params.subject_alt_names.push(SanType::DnsName(dns));
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match purpose {
            Purpose::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Purpose::Peer => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.use_authority_key_identifier_extension = true;
        params.signed_by(key, &self.issuer).map_err(CertificateError::Sign)
    }
}

/// The most characters of a common name (RFC 5280, ub-common-name).
const COMMON_NAME_MAX: usize = 64;

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    if name.len() <= COMMON_NAME_MAX {
        distinguished.push(DnType::CommonName, name);
    }
    distinguished
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::prelude::{FromDer, X509Certificate};

    #[test]
    fn what_it_signs_is_verified_with_its_certificate() {
        let now = OffsetDateTime::now_utc();
        let pem = AuthorityPem::make(now).expect("an authority");
        let authority = Authority::read(&pem).expect("an authority");
        let key = KeyPair::generate().expect("a key");
        let names = ["a.agent.tideover.dev".to_owned()];
        let leaf = authority.sign(&names, &key, Purpose::Peer, now).expect("a certificate");

        let (_, ca) = x509_parser::pem::parse_x509_pem(pem.certificate.as_bytes()).expect("PEM");
        let ca = ca.parse_x509().expect("a certificate");
        let (_, leaf) = X509Certificate::from_der(leaf.der()).expect("a certificate");
        leaf.verify_signature(Some(ca.public_key())).expect("signed by the authority");
        assert!(!leaf.is_ca());
        let usage = leaf.extended_key_usage().expect("an extension").expect("usages").value.clone();
        assert!(usage.client_auth && usage.server_auth && !usage.any);
        let valid = leaf.validity().not_after.timestamp() - now.unix_timestamp();
        assert_eq!(valid, LEAF_VALID.whole_seconds());
    }
}
