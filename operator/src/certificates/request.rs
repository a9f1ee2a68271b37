//! Whether an agent's request for a certificate is granted. Pure.
//!
//! The API server says who asks: the service account, and, from the token, the node that the asking pod runs on. The
//! certificate is for that node and no other, whatever the request says about itself.

use k8s_openapi::api::certificates::v1::CertificateSigningRequestSpec;
use rcgen::{CertificateSigningRequestParams, DnType, DnValue, PublicKey, SanType};
use tideover_crds::names;

/// Where the API server puts the node of a service account token.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// The largest request that is looked at, bytes. One with a P-256 key has 400.
const REQUEST_MAX: usize = 16 * 1024;

const NEEDED_USAGES: [&str; 2] = ["client auth", "server auth"];
const ALLOWED_USAGES: [&str; 4] = ["client auth", "server auth", "digital signature", "key encipherment"];

/// The answer to a request.
#[derive(Debug)]
pub(super) enum Answer {
    /// Sign this key for this DNS name.
    Sign {
        /// The identity.
        name: String,
        /// The key.
        key: PublicKey,
    },
    /// Deny it, for this reason.
    Deny(String),
}

/// Decides about a request to the agents' signer.
pub(super) fn answer(spec: &CertificateSigningRequestSpec, agent_user: &str) -> Answer {
    match granted(spec, agent_user) {
        Ok((name, key)) => Answer::Sign { name, key },
        Err(reason) => Answer::Deny(reason),
    }
}

fn granted(spec: &CertificateSigningRequestSpec, agent_user: &str) -> Result<(String, PublicKey), String> {
    let user = spec.username.as_deref().unwrap_or_default();
    if user != agent_user {
        return Err(format!("{user} is no agent: only {agent_user} may ask"));
    }
    let nodes = spec.extra.as_ref().and_then(|extra| extra.get(NODE_NAME)).map(Vec::as_slice).unwrap_or_default();
    let [node] = nodes else {
        return Err("the token does not say which node it was issued for".to_owned());
    };
    usages(spec)?;
    if spec.request.0.len() > REQUEST_MAX {
        return Err(format!("the request has more than {REQUEST_MAX} bytes"));
    }
    let pem = std::str::from_utf8(&spec.request.0).map_err(|_| "the request is no PEM text".to_owned())?;
    // Reading verifies that whoever asks holds the key.
    let request = CertificateSigningRequestParams::from_pem(pem)
        .map_err(|error| format!("the request can't be read: {error}"))?;
    let identity = names::agent_identity(node);
    subject(&request, &identity)?;
    Ok((identity, request.public_key))
}

fn usages(spec: &CertificateSigningRequestSpec) -> Result<(), String> {
    let asked = spec.usages.as_deref().unwrap_or_default();
    if let Some(missing) = NEEDED_USAGES.iter().find(|needed| !asked.iter().any(|usage| usage == *needed)) {
        return Err(format!("the usage {missing} is missing"));
    }
    match asked.iter().find(|usage| !ALLOWED_USAGES.contains(&usage.as_str())) {
        Some(other) => Err(format!("the usage {other} is not granted")),
        None => Ok(()),
    }
}

fn subject(request: &CertificateSigningRequestParams, identity: &str) -> Result<(), String> {
    let params = &request.params;
    let names: Vec<(&DnType, &DnValue)> = params.distinguished_name.iter().collect();
    let right = match names.as_slice() {
        // A common name has at most 64 characters; a longer identity is in the alternative name alone.
        [] => true,
        [(DnType::CommonName, value)] => text(value) == Some(identity),
        _ => false,
    };
    if !right {
        return Err(format!("the subject is not CN={identity}"));
    }
    match params.subject_alt_names.as_slice() {
        [SanType::DnsName(name)] if name.as_str() == identity => Ok(()),
        _ => Err(format!("the only subject alternative name must be the DNS name {identity}")),
    }
}

fn text(value: &DnValue) -> Option<&str> {
    match value {
        DnValue::Utf8String(text) => Some(text),
        DnValue::PrintableString(text) => Some(text.as_str()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;
    use rcgen::{CertificateParams, DistinguishedName, KeyPair};
    use std::collections::BTreeMap;

    const AGENT: &str = "system:serviceaccount:tide:tideover-agent";

    struct Asking {
        spec: CertificateSigningRequestSpec,
    }

    fn asking_for(names: &[&str]) -> Asking {
        let key = KeyPair::generate().expect("a key");
        let all: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(all).expect("names");
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, names[0]);
        let pem = params.serialize_request(&key).expect("a request").pem().expect("PEM");
        let spec = CertificateSigningRequestSpec {
            request: ByteString(pem.into_bytes()),
            username: Some(AGENT.into()),
            extra: Some(BTreeMap::from([(NODE_NAME.to_owned(), vec!["a".to_owned()])])),
            usages: Some(vec!["digital signature".into(), "client auth".into(), "server auth".into()]),
            signer_name: names::AGENT_SIGNER.into(),
            ..Default::default()
        };
        Asking { spec }
    }

    impl Asking {
        fn with(mut self, change: impl FnOnce(&mut CertificateSigningRequestSpec)) -> Self {
            change(&mut self.spec);
            self
        }

        #[track_caller]
        fn denied(&self, reason: &str) {
            match answer(&self.spec, AGENT) {
                Answer::Deny(told) => assert_eq!(told, reason),
                Answer::Sign { name, .. } => panic!("signed for {name}"),
            }
        }
    }

    fn own() -> Asking {
        asking_for(&["a.agent.tideover.dev"])
    }

    #[test]
    fn an_agent_gets_a_certificate_for_its_own_node() {
        let told = answer(&own().spec, AGENT);
        assert!(matches!(told, Answer::Sign { name, .. } if name == "a.agent.tideover.dev"));
    }

    #[test]
    fn an_agent_gets_none_for_another_node() {
        asking_for(&["b.agent.tideover.dev"]).denied("the subject is not CN=a.agent.tideover.dev");
    }

    #[test]
    fn a_second_name_is_not_slipped_in() {
        let reason = "the only subject alternative name must be the DNS name a.agent.tideover.dev";
        asking_for(&["a.agent.tideover.dev", "b.agent.tideover.dev"]).denied(reason);
    }

    #[test]
    fn nobody_but_an_agent_is_served() {
        let reason = format!("mallory is no agent: only {AGENT} may ask");
        own().with(|spec| spec.username = Some("mallory".into())).denied(&reason);
    }

    #[test]
    fn a_token_that_is_bound_to_no_node_is_worth_nothing() {
        let reason = "the token does not say which node it was issued for";
        own().with(|spec| spec.extra = None).denied(reason);
    }

    #[test]
    fn usages_are_what_agents_need_and_no_more() {
        own().with(|spec| spec.usages = Some(vec!["client auth".into()])).denied("the usage server auth is missing");
        let more = |spec: &mut CertificateSigningRequestSpec| {
            spec.usages.get_or_insert_default().push("cert sign".into());
        };
        own().with(more).denied("the usage cert sign is not granted");
    }

    #[test]
    fn what_is_no_request_is_denied() {
        let Answer::Deny(told) = answer(&own().with(|spec| spec.request = ByteString(b"x".to_vec())).spec, AGENT)
        else {
            panic!("signed")
        };
        assert!(told.starts_with("the request can't be read"), "{told}");
    }
}
