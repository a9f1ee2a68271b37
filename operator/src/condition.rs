//! Conditions of an object's status: one of each type, whose time changes only with its status.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// What a condition says.
#[derive(Clone, Debug)]
pub struct Says<'a> {
    /// Whether it holds.
    pub holds: bool,
    /// CamelCase reason.
    pub reason: &'a str,
    /// One sentence.
    pub message: &'a str,
}

/// Sets the condition `type_` among `conditions`. `generation` is that of the spec it speaks of.
pub fn set(conditions: &mut Vec<Condition>, type_: &str, says: &Says<'_>, generation: Option<i64>, now: Timestamp) {
    let status = if says.holds { "True" } else { "False" };
    let fresh = Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: says.reason.to_owned(),
        message: says.message.to_owned(),
        observed_generation: generation,
        last_transition_time: Time(now),
    };
    match conditions.iter_mut().find(|condition| condition.type_ == type_) {
        Some(old) => {
            let since = if old.status == status { old.last_transition_time.clone() } else { Time(now) };
            *old = Condition { last_transition_time: since, ..fresh };
        }
        None => conditions.push(fresh),
    }
}

/// When the condition `type_` became true, if it is.
pub fn true_since(conditions: &[Condition], type_: &str) -> Option<Timestamp> {
    conditions
        .iter()
        .find(|condition| condition.type_ == type_ && condition.status == "True")
        .map(|condition| condition.last_transition_time.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_changes_only_with_the_status() {
        let at = |second| Timestamp::from_second(second).expect("a time");
        let mut conditions = Vec::new();
        let says = |holds, reason| Says { holds, reason, message: "m" };
        set(&mut conditions, "Empty", &says(true, "A"), None, at(1));
        set(&mut conditions, "Empty", &says(true, "B"), None, at(2));
        assert_eq!(true_since(&conditions, "Empty"), Some(at(1)));
        assert_eq!(conditions[0].reason, "B");
        set(&mut conditions, "Empty", &says(false, "C"), None, at(3));
        assert_eq!(true_since(&conditions, "Empty"), None);
        assert_eq!(conditions.len(), 1);
    }
}
