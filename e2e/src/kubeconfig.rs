//! Kubeconfig files.
//!
//! Owns their form: one cluster, one user, everything embedded, so that a file can be used from anywhere.

use base64::prelude::{BASE64_STANDARD, Engine};

use crate::pki::Identity;

/// A kubeconfig for `user` of the cluster at `url`, certificates embedded.
pub fn render(url: &str, authority: &str, user: &str, identity: &Identity) -> String {
    let embed = |pem: &str| BASE64_STANDARD.encode(pem);
    format!(
        "\
apiVersion: v1
kind: Config
clusters:
- name: lab
  cluster:
    server: {url}
    certificate-authority-data: {authority}
users:
- name: {user}
  user:
    client-certificate-data: {certificate}
    client-key-data: {key}
contexts:
- name: lab
  context:
    cluster: lab
    user: {user}
current-context: lab
",
        authority = embed(authority),
        certificate = embed(&identity.certificate),
        key = embed(&identity.key),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_valid_yaml_with_the_url() {
        let identity = Identity { certificate: "C".into(), key: "K".into() };
        let text = render("https://10.77.0.10:6443", "A", "someone", &identity);
        let parsed: serde_json::Value = serde_yaml::from_str(&text).unwrap();
        assert_eq!(parsed["clusters"][0]["cluster"]["server"], "https://10.77.0.10:6443");
        assert_eq!(parsed["users"][0]["user"]["client-key-data"], "Sw==");
    }
}
