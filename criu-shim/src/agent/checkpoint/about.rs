//! What is known of a stored checkpoint, written beside it, and whether it may be used. Pure.

use serde::{Deserialize, Serialize};
use tideover_crds::HostFacts;

/// Version of the document.
pub const VERSION: u32 = 1;

/// What is known of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct About {
    /// [`VERSION`].
    pub version: u32,
    /// Its number among those of its container, from 1. A newer one has a greater one.
    pub number: u64,
    /// When the container was frozen for it, by the node's clock, milliseconds since 1970.
    pub taken_millis: u64,
    /// The container that was running.
    pub container_id: String,
    /// Its image, as the pod names it.
    pub image: String,
    /// Version of Tideover that took it.
    pub tideover: String,
    /// Facts of the node, on which it depends whether it can be restored.
    pub host: HostFacts,
    /// How long the container stood still for it, microseconds.
    pub paused_micros: u64,
    /// What it takes on the disk, bytes.
    pub bytes: u64,
    /// Files of its memory. Those of images and archives are in its manifest.
    pub memory: Vec<Stored>,
    /// Why it is not used any more, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poisoned: Option<Poisoned>,
}

/// A file as it was stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stored {
    /// Its name.
    pub name: String,
    /// Its length, bytes.
    pub bytes: u64,
    /// BLAKE3, hexadecimal.
    pub digest: String,
}

/// That a checkpoint must not be used again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Poisoned {
    /// Since when, milliseconds since 1970.
    pub at_millis: u64,
    /// Why, a sentence.
    pub why: String,
}

impl About {
    /// Whether it may be restored on a node with these facts, into a container of this image. How agents speak with each other has
    /// nothing to do with it.
    pub fn is_good(&self, host: &HostFacts, image: &str) -> bool {
        let taken_on = HostFacts { protocol: host.protocol, ..self.host.clone() };
        self.poisoned.is_none() && taken_on == *host && self.image == image
    }
}

/// The newest of `stored` that may be restored here.
pub fn newest_good<'a>(stored: &'a [About], host: &HostFacts, image: &str) -> Option<&'a About> {
    stored.iter().filter(|about| about.is_good(host, image)).max_by_key(|about| about.number)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn host() -> HostFacts {
        let [architecture, cpu_features, kernel, criu] = ["x86_64", "avx", "6.1", "4.1"].map(str::to_owned);
        HostFacts { architecture, cpu_features, kernel, criu, protocol: 1 }
    }

    /// Checkpoint `number`, of `bytes` bytes.
    pub(crate) fn about(number: u64, bytes: u64) -> About {
        About {
            version: VERSION,
            number,
            taken_millis: number * 1000,
            container_id: "c".into(),
            image: "app:1".into(),
            tideover: "0".into(),
            host: host(),
            paused_micros: 1,
            bytes,
            memory: Vec::new(),
            poisoned: None,
        }
    }

    /// The same, which must not be used.
    pub(crate) fn poisoned(number: u64, bytes: u64) -> About {
        About { poisoned: Some(Poisoned { at_millis: 1, why: "why".into() }), ..about(number, bytes) }
    }

    #[test]
    fn the_newest_that_is_not_poisoned_is_taken() {
        let newest = |stored: &[About]| newest_good(stored, &host(), "app:1").map(|about| about.number);
        assert_eq!(newest(&[about(1, 1), about(3, 1), about(2, 1)]), Some(3));
        assert_eq!(newest(&[about(1, 1), poisoned(3, 1), about(2, 1)]), Some(2));
        assert_eq!(newest(&[poisoned(3, 1)]), None);
        assert_eq!(newest(&[]), None);
    }

    #[test]
    fn what_was_taken_of_another_image_or_on_another_kernel_is_not_restored() {
        let stored = [about(1, 1)];
        assert_eq!(newest_good(&stored, &host(), "app:2"), None);
        assert_eq!(newest_good(&stored, &HostFacts { kernel: "6.2".into(), ..host() }, "app:1"), None);
    }
}
