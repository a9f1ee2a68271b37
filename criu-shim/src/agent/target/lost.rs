//! States that were lost on this node after they ran here, counted: the agent's metric of them.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

/// How many there were since the agent was started.
#[derive(Clone, Debug, Default)]
pub struct Lost(Counter);

impl Lost {
    /// None yet, to be shown in `registry`.
    pub fn in_registry(registry: &mut Registry) -> Self {
        let lost = Self::default();
        registry.register(
            "tideover_states_lost",
            "Applications that were moved to this node and started cold, because memory that was still to come did not come",
            lost.0.clone(),
        );
        lost
    }

    /// Counts one more.
    pub fn count(&self) {
        self.0.inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;

    #[test]
    fn a_loss_is_counted_from_nought() {
        let mut registry = Registry::default();
        let lost = Lost::in_registry(&mut registry);
        let told = || {
            let mut text = String::new();
            encode(&mut text, &registry).expect("text");
            text.lines().find_map(|line| line.strip_prefix("tideover_states_lost_total ").map(str::to_owned))
        };
        assert_eq!(told().as_deref(), Some("0"));
        lost.count();
        assert_eq!(told().as_deref(), Some("1"));
    }
}
