//! From an error to what a report says: a reason, one sentence, and whether another attempt could end differently.

use tideover_crds::{Failure, FailureReason};

/// Longest sentence in a report, characters.
const MAX_MESSAGE: usize = 1000;

/// A failure that another attempt may not have.
pub fn retryable(reason: FailureReason, message: impl Into<String>) -> Failure {
    Failure { reason, message: shorten(message.into()), retryable: true }
}

/// A failure that every attempt will have.
pub fn permanent(reason: FailureReason, message: impl Into<String>) -> Failure {
    Failure { reason, message: shorten(message.into()), retryable: false }
}

fn shorten(message: String) -> String {
    let one_line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    if one_line.chars().count() <= MAX_MESSAGE {
        return one_line;
    }
    one_line.chars().take(MAX_MESSAGE - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_of_bounded_length() {
        let failure = retryable(FailureReason::RestoreFailed, format!("a\n  b\t{}", "x".repeat(5000)));
        assert!(failure.message.starts_with("a b x"));
        assert_eq!(failure.message.chars().count(), MAX_MESSAGE);
    }
}
