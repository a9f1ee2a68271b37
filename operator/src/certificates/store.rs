//! The Secret that keeps the authority. It is created once and never changed, so that all replicas agree on one.

use super::CA;
use super::authority::{Authority, AuthorityPem, CertificateError};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};
use std::collections::BTreeMap;
use thiserror::Error;
use time::OffsetDateTime;
use tracing::info;

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// Why there is no authority.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The Secret could not be read.
    #[error("read the Secret {CA}")]
    Read(#[source] Box<kube::Error>),
    /// The Secret could not be created.
    #[error("create the Secret {CA}")]
    Create(#[source] Box<kube::Error>),
    /// The Secret lacks a key.
    #[error("the Secret {CA} has no {0}: delete it and restart the operator and the agents")]
    Missing(&'static str),
    /// It could not be made or read.
    #[error("use the authority in the Secret {CA}")]
    Certificate(#[source] CertificateError),
}

/// Reads the authority, or makes it. Of two replicas that make one at a time, the second one's is refused by the API
/// server, and it reads the first one's.
///
/// # Errors
/// As [`StoreError`] says.
pub async fn load_or_make(client: &Client, namespace: &str) -> Result<Authority, StoreError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let read = || async { secrets.get_opt(CA).await.map_err(|error| StoreError::Read(Box::new(error))) };
    if let Some(secret) = read().await? {
        return from_secret(&secret);
    }
    let made = AuthorityPem::make(OffsetDateTime::now_utc()).map_err(StoreError::Certificate)?;
    match secrets.create(&PostParams::default(), &to_secret(&made)).await {
        Ok(secret) => {
            info!(name = secret.name_any(), "a certificate authority was made");
            from_secret(&secret)
        }
        Err(kube::Error::Api(answer)) if answer.code == 409 => {
            from_secret(&read().await?.ok_or(StoreError::Missing(CERTIFICATE))?)
        }
        Err(error) => Err(StoreError::Create(Box::new(error))),
    }
}

fn to_secret(pem: &AuthorityPem) -> Secret {
    let data = BTreeMap::from([
        (CERTIFICATE.to_owned(), ByteString(pem.certificate.clone().into_bytes())),
        (KEY.to_owned(), ByteString(pem.key.clone().into_bytes())),
    ]);
    Secret {
        metadata: ObjectMeta { name: Some(CA.to_owned()), ..Default::default() },
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(data),
        immutable: Some(true),
        ..Default::default()
    }
}

fn from_secret(secret: &Secret) -> Result<Authority, StoreError> {
    let text = |key: &'static str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(key)).ok_or(StoreError::Missing(key))?;
        String::from_utf8(bytes.0.clone()).map_err(|_| StoreError::Missing(key))
    };
    let pem = AuthorityPem { certificate: text(CERTIFICATE)?, key: text(KEY)? };
    Authority::read(&pem).map_err(StoreError::Certificate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_comes_back_from_its_secret() {
        let made = AuthorityPem::make(OffsetDateTime::now_utc()).expect("an authority");
        let read = from_secret(&to_secret(&made)).expect("an authority");
        assert_eq!(read.certificate(), made.certificate);
    }

    #[test]
    fn a_secret_without_a_key_is_refused() {
        let error = from_secret(&Secret::default()).expect_err("nothing is in it");
        assert!(matches!(error, StoreError::Missing(CERTIFICATE)));
    }
}
