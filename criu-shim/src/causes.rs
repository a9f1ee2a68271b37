//! An error and what caused it, as one sentence.

use std::fmt::Write;

/// The error and everything that caused it, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // A transparent error repeats what it wraps.
        if !text.ends_with(&cause_text) {
            // Writing to a String does not fail.
            write!(text, ": {cause_text}").ok();
        }
        source = cause.source();
    }
    text
}
