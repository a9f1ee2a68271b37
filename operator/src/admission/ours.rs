//! Labels and annotations below `tideover.dev/`: nobody but the operator sets, changes or removes one. Pure.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use std::collections::BTreeMap;
use tideover_crds::names;

/// The first of ours that a new pod brings along.
pub(super) fn brought(pod: &Pod) -> Option<&str> {
    pod.annotations().keys().chain(pod.labels().keys()).map(String::as_str).find(|key| is_ours(key))
}

/// The first of ours that is set, changed or removed between `old` and `new`.
pub(super) fn changed<'a>(old: &'a Pod, new: &'a Pod) -> Option<&'a str> {
    difference(old.annotations(), new.annotations()).or_else(|| difference(old.labels(), new.labels()))
}

fn difference<'a>(old: &'a BTreeMap<String, String>, new: &'a BTreeMap<String, String>) -> Option<&'a str> {
    let keys = old.keys().chain(new.keys()).filter(|key| is_ours(key));
    keys.map(String::as_str).find(|key| old.get(*key) != new.get(*key))
}

fn is_ours(key: &str) -> bool {
    key.strip_prefix(names::GROUP).is_some_and(|rest| rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(annotations: &[(&str, &str)]) -> Pod {
        let mut pod = Pod::default();
        let owned = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        pod.annotations_mut().extend(owned);
        pod
    }

    #[test]
    fn a_forged_annotation_is_named() {
        assert_eq!(brought(&pod(&[("a", "b"), (names::REPLACEMENT_OF, "m")])), Some(names::REPLACEMENT_OF));
        assert_eq!(brought(&pod(&[("tideover.development/x", "b")])), None);
    }

    #[test]
    fn what_stays_as_it_is_is_nobodys_change() {
        let claimed = pod(&[(names::CLAIMED_BY, "m")]);
        assert_eq!(changed(&claimed, &pod(&[(names::CLAIMED_BY, "m"), ("a", "b")])), None);
    }

    #[test]
    fn setting_changing_and_removing_are_named() {
        let (with, other, without) = (pod(&[(names::CLAIMED_BY, "m")]), pod(&[(names::CLAIMED_BY, "n")]), pod(&[]));
        for (old, new) in [(&without, &with), (&with, &other), (&with, &without)] {
            assert_eq!(changed(old, new), Some(names::CLAIMED_BY));
        }
    }
}
