//! Gets the node's certificate from the cluster and keeps it fresh.

use super::tls::{Tls, TlsError};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ObjectMeta, PostParams};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use thiserror::Error;
use tideover_crds::names;
use tokio::sync::watch;
use tracing::{info, warn};

/// ConfigMap in the agent's namespace that holds the CA's certificate, and the key in it.
const CA_CONFIG_MAP: &str = "tideover-ca";
const CA_KEY: &str = "ca.crt";

/// How often a request is looked at while it waits to be signed, and how long.
const POLL: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(2);
/// Longest time between two looks at the CA, which may be replaced before the certificate has to be.
const LOOK_AGAIN: Duration = Duration::from_secs(600);

/// Why there is no certificate (yet).
#[derive(Debug, Error)]
pub enum CertificateError {
    /// The key or the request can't be made.
    #[error("make a certificate request")]
    Request(#[source] rcgen::Error),
    /// The API server refused or did not answer.
    #[error("{step}")]
    Api {
        /// What was tried.
        step: &'static str,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
    /// The CA is not published.
    #[error("the ConfigMap {CA_CONFIG_MAP} has no {CA_KEY} yet")]
    NoCa,
    /// The operator denied the request, or failed to sign it.
    #[error("the certificate request {name} was turned down: {message}")]
    TurnedDown {
        /// Name of the request.
        name: String,
        /// What its condition says.
        message: String,
    },
    /// Nobody signed.
    #[error("the certificate request {name} was not signed within {} s", PATIENCE.as_secs())]
    Unsigned {
        /// Name of the request.
        name: String,
    },
    /// What came can't be used.
    #[error("use the certificate")]
    Tls(#[from] TlsError),
}

/// Gets a certificate and renews it for as long as somebody listens. Failures are logged and tried again.
pub async fn keep(client: kube::Client, namespace: String, node: String, identity: watch::Sender<Option<Arc<Tls>>>) {
    loop {
        match get(&client, &namespace, &node).await {
            Ok((tls, ca)) => {
                let renew = tls.renew_at();
                info!(node, not_after = ?tls.not_after(), "certificate in use");
                if identity.send(Some(Arc::new(tls))).is_err() {
                    return;
                }
                until(renew, &client, &namespace, &ca).await;
            }
            Err(error) => {
                warn!(error = %crate::causes::chain(&error), "no certificate yet");
                tokio::time::sleep(RETRY).await;
            }
        }
        if identity.is_closed() {
            return;
        }
    }
}

/// Waits until the certificate is to be renewed or the CA has changed.
async fn until(renew: SystemTime, client: &kube::Client, namespace: &str, ca: &str) {
    while let Ok(left) = renew.duration_since(SystemTime::now()) {
        tokio::time::sleep(left.min(LOOK_AGAIN)).await;
        if read_ca(client, namespace).await.is_ok_and(|now| now != ca) {
            info!("the CA has changed");
            return;
        }
    }
}

async fn get(client: &kube::Client, namespace: &str, node: &str) -> Result<(Tls, String), CertificateError> {
    let ca = read_ca(client, namespace).await?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CertificateError::Request)?;
    let request = request(node, &key)?;
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let created =
        api.create(&PostParams::default(), &request).await.map_err(api_failed("send a certificate request"))?;
    let name = created.metadata.name.unwrap_or_default();
    let chain = signed(&api, &name).await?;
    Ok((Tls::new(ca.as_bytes(), &chain, key.serialize_der())?, ca))
}

async fn read_ca(client: &kube::Client, namespace: &str) -> Result<String, CertificateError> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let map = api.get_opt(CA_CONFIG_MAP).await.map_err(api_failed("read the CA"))?;
    map.and_then(|map| map.data).and_then(|mut data| data.remove(CA_KEY)).ok_or(CertificateError::NoCa)
}

fn request(node: &str, key: &KeyPair) -> Result<CertificateSigningRequest, CertificateError> {
    let identity = names::agent_identity(node);
    let mut params = CertificateParams::new(vec![identity.clone()]).map_err(CertificateError::Request)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, identity);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    let pem = params.serialize_request(key).and_then(|request| request.pem()).map_err(CertificateError::Request)?;
    Ok(CertificateSigningRequest {
        metadata: ObjectMeta { generate_name: Some(format!("tideover-agent-{node}-")), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(pem.into_bytes()),
            signer_name: names::AGENT_SIGNER.to_owned(),
            usages: Some(["digital signature", "client auth", "server auth"].map(str::to_owned).to_vec()),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    })
}

/// Waits for the signature; the certificate chain as PEM.
async fn signed(api: &Api<CertificateSigningRequest>, name: &str) -> Result<Vec<u8>, CertificateError> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while tokio::time::Instant::now() < deadline {
        let request = api.get(name).await.map_err(api_failed("look at the certificate request"))?;
        let status = request.status.unwrap_or_default();
        if let Some(certificate) = status.certificate {
            return Ok(certificate.0);
        }
        let conditions = status.conditions.unwrap_or_default();
        if let Some(no) =
            conditions.into_iter().find(|condition| matches!(condition.type_.as_str(), "Denied" | "Failed"))
        {
            return Err(CertificateError::TurnedDown {
                name: name.to_owned(),
                message: no.message.unwrap_or_else(|| no.type_.clone()),
            });
        }
        tokio::time::sleep(POLL).await;
    }
    Err(CertificateError::Unsigned { name: name.to_owned() })
}

fn api_failed(step: &'static str) -> impl Fn(kube::Error) -> CertificateError {
    move |source| CertificateError::Api { step, source: Box::new(source) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_its_node_and_nothing_else() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("key");
        let request = request("worker-1", &key).expect("request");
        assert_eq!(request.spec.signer_name, "tideover.dev/agent");
        let parsed = rcgen::CertificateSigningRequestParams::from_pem(
            std::str::from_utf8(&request.spec.request.0).expect("PEM"),
        )
        .expect("parse");
        let names: Vec<_> = parsed.params.subject_alt_names.iter().map(|name| format!("{name:?}")).collect();
        assert_eq!(names.len(), 1);
        assert!(names[0].contains("worker-1.agent.tideover.dev"), "{names:?}");
    }
}
