//! Tells everybody which authority to trust: the webhook configurations for the API server, a ConfigMap for agents.

use super::{Authority, CA};
use crate::causes::chain;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;
use thiserror::Error;
use tracing::{info, warn};

/// Key in the ConfigMap.
const CERTIFICATE: &str = "ca.crt";

/// How often it is looked at whether all is as it should be: an upgrade of the chart writes the configurations anew.
const PAUSE: Duration = Duration::from_secs(15);

#[derive(Debug, Error)]
enum PublishError {
    #[error("read the {0}")]
    Read(&'static str, #[source] Box<kube::Error>),
    #[error("write the {0}")]
    Write(&'static str, #[source] Box<kube::Error>),
    #[error("there is no {kind} {name}")]
    Missing { kind: &'static str, name: String },
}

/// Keeps configurations and ConfigMap right for ever. Every replica does so: what is right already is not written.
pub async fn keep_published(client: Client, namespace: &str, configuration: &str, authority: &Authority) {
    loop {
        let ca = authority.certificate();
        let told = [
            config_map(&client, namespace, ca).await,
            trust(&client, configuration, ca, mutating).await,
            trust(&client, configuration, ca, validating).await,
        ];
        for error in told.into_iter().filter_map(Result::err) {
            warn!(error = chain(&error), "publishing the authority");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn config_map(client: &Client, namespace: &str, ca: &str) -> Result<(), PublishError> {
    const KIND: &str = "ConfigMap";
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let data = BTreeMap::from([(CERTIFICATE.to_owned(), ca.to_owned())]);
    let known = api.get_opt(CA).await.map_err(|error| PublishError::Read(KIND, Box::new(error)))?;
    let written = match known {
        Some(known) if known.data.as_ref() == Some(&data) => return Ok(()),
        Some(_) => {
            let patch = Patch::Merge(json!({ "data": data }));
            api.patch(CA, &PatchParams::default(), &patch).await
        }
        None => {
            let metadata = ObjectMeta { name: Some(CA.to_owned()), ..Default::default() };
            let fresh = ConfigMap { metadata, data: Some(data), ..Default::default() };
            api.create(&PostParams::default(), &fresh).await
        }
    };
    match written {
        // Another replica was quicker.
        Err(kube::Error::Api(answer)) if answer.code == 409 => Ok(()),
        Err(error) => Err(PublishError::Write(KIND, Box::new(error))),
        Ok(_) => {
            info!("the authority is published in the ConfigMap {CA}");
            Ok(())
        }
    }
}

/// A webhook: its name, and how the API server reaches it.
type Hook = (String, WebhookClientConfig);

fn mutating(configuration: MutatingWebhookConfiguration) -> Vec<Hook> {
    let hooks = configuration.webhooks.into_iter().flatten();
    hooks.map(|hook| (hook.name, hook.client_config)).collect()
}

fn validating(configuration: ValidatingWebhookConfiguration) -> Vec<Hook> {
    let hooks = configuration.webhooks.into_iter().flatten();
    hooks.map(|hook| (hook.name, hook.client_config)).collect()
}

/// Makes the API server trust the authority in every webhook of the configuration `name`.
async fn trust<K>(client: &Client, name: &str, ca: &str, hooks: impl FnOnce(K) -> Vec<Hook>) -> Result<(), PublishError>
where
    K: k8s_openapi::Resource + kube::Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let kind = <K as k8s_openapi::Resource>::KIND;
    let api: Api<K> = Api::all(client.clone());
    let known = api.get_opt(name).await.map_err(|error| PublishError::Read(kind, Box::new(error)))?;
    let known = known.ok_or_else(|| PublishError::Missing { kind, name: name.to_owned() })?;
    let bundles = hooks(known).into_iter().map(|(name, config)| (name, config.ca_bundle.map(|bytes| bytes.0)));
    let Some(patch) = bundle_patch(bundles, ca) else { return Ok(()) };
    let written = api.patch(name, &PatchParams::default(), &Patch::Strategic(patch)).await;
    written.map_err(|error| PublishError::Write(kind, Box::new(error))).map(|_| info!(name, "trusted by the {kind}"))
}

/// The strategic merge patch (webhooks are merged by name) that sets the bundle where it is another one.
fn bundle_patch(hooks: impl Iterator<Item = (String, Option<Vec<u8>>)>, ca: &str) -> Option<Value> {
    let bundle = STANDARD.encode(ca);
    let wrong = hooks.filter(|(_, known)| known.as_deref() != Some(ca.as_bytes()));
    let patches: Vec<Value> =
        wrong.map(|(name, _)| json!({ "name": name, "clientConfig": { "caBundle": bundle } })).collect();
    if patches.is_empty() { None } else { Some(json!({ "webhooks": patches })) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_wrong_bundle_is_written() {
        let hooks = [("a".to_owned(), Some(b"ca".to_vec())), ("b".to_owned(), None)];
        let expected = json!({ "webhooks": [{ "name": "b", "clientConfig": { "caBundle": "Y2E=" } }] });
        assert_eq!(bundle_patch(hooks.clone().into_iter(), "ca"), Some(expected));
        assert_eq!(bundle_patch(hooks.into_iter().take(1), "ca"), None);
    }
}
