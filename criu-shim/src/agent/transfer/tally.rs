//! Metrics of compression: what was decided, and what it has brought.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Registry, Unit};
use tideover_crds::Compression;

/// What moves from this node have decided.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Decision {
    compression: String,
}

/// The series. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    decisions: Family<Decision, Counter>,
    pages: Counter,
    sent: Counter,
}

impl Tally {
    /// One that is served with `registry`.
    pub fn in_registry(registry: &mut Registry) -> Self {
        let tally = Self::default();
        let decisions = "Moves from this node for which it was decided how pages cross";
        registry.register("tideover_compression_decisions", decisions, tally.decisions.clone());
        let pages = "Pages that have crossed compressed, before that";
        registry.register_with_unit("tideover_compressed_pages", pages, Unit::Bytes, tally.pages.clone());
        let sent = "The same as they have crossed";
        registry.register_with_unit("tideover_compressed_sent", sent, Unit::Bytes, tally.sent.clone());
        tally
    }

    /// It was decided how the pages of one more move cross.
    pub(super) fn decided(&self, compression: Compression) {
        self.decisions.get_or_create(&Decision { compression: format!("{compression:?}") }).inc();
    }

    /// `pages` bytes of pages cross as `sent` bytes.
    pub(super) fn packed(&self, pages: usize, sent: usize) {
        self.pages.inc_by(pages as u64);
        self.sent.inc_by(sent as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;

    #[test]
    fn decisions_and_bytes_are_served() {
        let mut registry = Registry::default();
        let tally = Tally::in_registry(&mut registry);
        tally.decided(Compression::Lz4);
        tally.decided(Compression::None);
        tally.decided(Compression::Lz4);
        tally.packed(4096, 1000);
        let mut text = String::new();
        encode(&mut text, &registry).expect("text");
        for line in [
            "tideover_compression_decisions_total{compression=\"Lz4\"} 2",
            "tideover_compression_decisions_total{compression=\"None\"} 1",
            "tideover_compressed_pages_bytes_total 4096",
            "tideover_compressed_sent_bytes_total 1000",
        ] {
            assert!(text.lines().any(|one| one == line), "{line} is missing in\n{text}");
        }
    }
}
