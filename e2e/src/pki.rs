//! Certificates of a lab.
//!
//! Owns the lab's certificate authority and everything it signs. Nothing here is meant to protect anything but one lab
//! from another; the authority is made with the lab and ends with it.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, string::Ia5String,
};
use time::{Duration, OffsetDateTime};

use crate::topology::{API_SERVICE, CLUSTER_DOMAIN, Machine, Role, Topology};
use crate::write_atomic;

/// How long certificates are valid; a lab is not kept for years.
const VALID: Duration = Duration::days(3650);
/// Certificates count from a little before they are made, so that a machine whose clock is behind takes them.
const SKEW: Duration = Duration::hours(1);

/// What could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A key or certificate could not be made.
    #[error("make the certificate of {subject}")]
    Make {
        /// Common name.
        subject: String,
        /// What is wrong with it.
        #[source]
        source: rcgen::Error,
    },
    /// The stored authority is unusable.
    #[error("use the stored certificate authority in {path}; `lab down` removes it")]
    Authority {
        /// Its directory.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: rcgen::Error,
    },
    /// A file could not be read or written.
    #[error("keep the certificate file {path}")]
    Store {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
}

/// A certificate and its key, both PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// The private key, PKCS #8.
    pub key: String,
}

/// Everything a lab needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pki {
    /// The authority's certificate.
    pub authority: String,
    /// The authority itself; the controller-manager signs requests with it.
    pub signer: Identity,
    /// The API server's own.
    pub api_server: Identity,
    /// The administrator, in `system:masters`.
    pub admin: Identity,
    /// The controller-manager.
    pub controller_manager: Identity,
    /// The scheduler.
    pub scheduler: Identity,
    /// kube-proxy, the same on every node.
    pub proxy: Identity,
    /// Signs service account tokens: public and private key.
    pub service_accounts: Identity,
    /// The kubelets, in the order of the workers.
    pub kubelets: Vec<Identity>,
}

/// Who a certificate is for.
struct Subject<'a> {
    /// File name.
    file: &'a str,
    common_name: String,
    organization: Option<&'static str>,
    addresses: Vec<IpAddr>,
    names: Vec<String>,
}

impl<'a> Subject<'a> {
    fn client(file: &'a str, common_name: &str) -> Self {
        Self { file, common_name: common_name.to_owned(), organization: None, addresses: vec![], names: vec![] }
    }

    fn of(mut self, organization: &'static str) -> Self {
        self.organization = Some(organization);
        self
    }

    fn serving(mut self, addresses: impl IntoIterator<Item = IpAddr>, names: impl IntoIterator<Item = String>) -> Self {
        self.addresses.extend(addresses);
        self.names.extend(names);
        self
    }
}

/// Loads the lab's certificates from `directory` and makes those that are missing.
///
/// # Errors
/// Names the subject or the file.
pub fn ensure(directory: &Path, topology: &Topology, now: OffsetDateTime) -> Result<Pki, PkiError> {
    let store = Store { directory, now };
    let signer = store.keep("ca", || authority(topology, now))?;
    let service_accounts = store.keep("service-accounts", || {
        let key = KeyPair::generate().map_err(failed("service accounts"))?;
        Ok(Identity { certificate: key.public_key_pem(), key: key.serialize_pem() })
    })?;
    let issuer = issuer_of(directory, &signer)?;
    let kubelets = topology
        .workers()
        .map(|worker| store.signed(&issuer, &kubelet(&worker, &worker.name)))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Pki {
        authority: signer.certificate.clone(),
        api_server: store.signed(&issuer, &api_server(topology))?,
        admin: store.signed(&issuer, &Subject::client("admin", "lab-admin").of("system:masters"))?,
        controller_manager: store
            .signed(&issuer, &Subject::client("controller-manager", "system:kube-controller-manager"))?,
        scheduler: store.signed(&issuer, &Subject::client("scheduler", "system:kube-scheduler"))?,
        proxy: store.signed(&issuer, &Subject::client("proxy", "system:kube-proxy"))?,
        service_accounts,
        signer,
        kubelets,
    })
}

fn api_server(topology: &Topology) -> Subject<'static> {
    let names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"].map(str::to_owned);
    let addresses = [topology.control_plane().address, API_SERVICE, std::net::Ipv4Addr::LOCALHOST].map(IpAddr::V4);
    Subject::client("api-server", "kube-apiserver")
        .serving(addresses, names.into_iter().chain([format!("kubernetes.default.svc.{CLUSTER_DOMAIN}")]))
}

fn kubelet<'a>(machine: &Machine, file: &'a str) -> Subject<'a> {
    debug_assert!(matches!(machine.role, Role::Worker(_)));
    Subject::client(file, &format!("system:node:{}", machine.name))
        .of("system:nodes")
        .serving([IpAddr::V4(machine.address)], [machine.name.clone()])
}

fn authority(topology: &Topology, now: OffsetDateTime) -> Result<Identity, PkiError> {
    let name = format!("{} lab authority", topology.name);
    let failed = failed(&name);
    let key = KeyPair::generate().map_err(&failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name.clone());
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    (params.not_before, params.not_after) = (now - SKEW, now + VALID);
    let certificate = params.self_signed(&key).map_err(&failed)?;
    Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem() })
}

fn issuer_of(directory: &Path, signer: &Identity) -> Result<Issuer<'static, KeyPair>, PkiError> {
    let failed = |source| PkiError::Authority { path: directory.to_owned(), source };
    let key = KeyPair::from_pem(&signer.key).map_err(failed)?;
    Issuer::from_ca_cert_pem(&signer.certificate, key).map_err(failed)
}

fn failed(subject: &str) -> impl Fn(rcgen::Error) -> PkiError + use<'_> {
    move |source| PkiError::Make { subject: subject.to_owned(), source }
}

struct Store<'a> {
    directory: &'a Path,
    now: OffsetDateTime,
}

impl Store<'_> {
    /// The stored identity `name`, or the one that `make` makes, stored. The key is written before the certificate:
    /// a certificate on disk means that both are.
    fn keep(&self, name: &str, make: impl FnOnce() -> Result<Identity, PkiError>) -> Result<Identity, PkiError> {
        let file = |extension: &str| self.directory.join(format!("{name}.{extension}"));
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| PkiError::Store { path, source }
        };
        let (certificate, key) = (file("crt"), file("key"));
        if certificate.exists() {
            return Ok(Identity {
                certificate: fs::read_to_string(&certificate).map_err(failed(&certificate))?,
                key: fs::read_to_string(&key).map_err(failed(&key))?,
            });
        }
        let made = make()?;
        write_atomic::bytes(&key, made.key.as_bytes()).map_err(failed(&key))?;
        write_atomic::bytes(&certificate, made.certificate.as_bytes()).map_err(failed(&certificate))?;
        Ok(made)
    }

    fn signed(&self, issuer: &Issuer<'_, KeyPair>, subject: &Subject<'_>) -> Result<Identity, PkiError> {
        self.keep(subject.file, || sign(issuer, subject, self.now))
    }
}

fn sign(issuer: &Issuer<'_, KeyPair>, subject: &Subject<'_>, now: OffsetDateTime) -> Result<Identity, PkiError> {
    let failed = failed(&subject.common_name);
    let key = KeyPair::generate().map_err(&failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject.common_name.clone());
    if let Some(organization) = subject.organization {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    (params.not_before, params.not_after) = (now - SKEW, now + VALID);
    params.subject_alt_names.extend(subject.addresses.iter().copied().map(SanType::IpAddress));
    for name in &subject.names {
        params.subject_alt_names.push(SanType::DnsName(Ia5String::try_from(name.as_str()).map_err(&failed)?));
    }
    let certificate = params.signed_by(&key, issuer).map_err(&failed)?;
    Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lab(workers: u8) -> Topology {
        Topology { name: "lab".parse().unwrap(), index: 0, workers }
    }

    fn noon() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
    }

    #[test]
    fn a_second_call_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let first = ensure(dir.path(), &lab(2), noon()).unwrap();
        let second = ensure(dir.path(), &lab(2), noon() + Duration::days(1)).unwrap();
        assert_eq!(first, second);
    }

    #[test]
    fn a_new_worker_is_signed_by_the_old_authority() {
        let dir = tempfile::tempdir().unwrap();
        let first = ensure(dir.path(), &lab(1), noon()).unwrap();
        let grown = ensure(dir.path(), &lab(2), noon()).unwrap();
        assert_eq!(first.authority, grown.authority);
        assert_eq!(first.kubelets[0], grown.kubelets[0]);
        assert_eq!(grown.kubelets.len(), 2);
    }

    #[test]
    fn a_key_without_its_certificate_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        ensure(dir.path(), &lab(1), noon()).unwrap();
        fs::remove_file(dir.path().join("admin.crt")).unwrap();
        let again = ensure(dir.path(), &lab(1), noon()).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("admin.key")).unwrap(), again.admin.key);
    }
}
