//! Lists of exit codes and signals.

use crate::exit::Exit;
use crate::signal;
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// Most entries of one list.
const MAX_ENTRIES: usize = 320;

/// Names that systemd has for exit codes beyond 0 and 1. Source: systemd.exec(5), sysexits.h.
const CODES: [(&str, u8); 17] = [
    ("SUCCESS", 0),
    ("FAILURE", 1),
    ("USAGE", 64),
    ("DATAERR", 65),
    ("NOINPUT", 66),
    ("NOUSER", 67),
    ("NOHOST", 68),
    ("UNAVAILABLE", 69),
    ("SOFTWARE", 70),
    ("OSERR", 71),
    ("OSFILE", 72),
    ("CANTCREAT", 73),
    ("IOERR", 74),
    ("TEMPFAIL", 75),
    ("PROTOCOL", 76),
    ("NOPERM", 77),
    ("CONFIG", 78),
];

/// One entry: `42`, `"42"`, `"TEMPFAIL"`, `"SIGUSR1"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// An exit code.
    Code(u8),
    /// The number of a signal.
    Signal(i32),
}

impl ExitStatus {
    /// Reads an entry as systemd does: a number is an exit code, a word is an exit code's name or else a signal's.
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(code) = text.parse() {
            return Some(Self::Code(code));
        }
        match CODES.iter().find(|(name, _)| *name == text) {
            Some((_, code)) => Some(Self::Code(*code)),
            None => signal::number(text).map(Self::Signal),
        }
    }
}

/// A list of them, in which only membership counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExitStatusSet(Vec<ExitStatus>);

impl ExitStatusSet {
    /// Whether `exit` is in the list.
    pub fn contains(&self, exit: Exit) -> bool {
        match exit {
            Exit::Code(code) => self.0.contains(&ExitStatus::Code(code)),
            Exit::Signal { number, .. } => self.0.contains(&ExitStatus::Signal(number)),
            Exit::Unknown => false,
        }
    }
}

impl FromIterator<ExitStatus> for ExitStatusSet {
    fn from_iter<I: IntoIterator<Item = ExitStatus>>(entries: I) -> Self {
        Self(entries.into_iter().collect())
    }
}

impl Serialize for ExitStatus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Code(code) => serializer.serialize_u8(*code),
            Self::Signal(number) => serializer.serialize_str(&signal::name(*number)),
        }
    }
}

impl Serialize for ExitStatusSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ExitStatus {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entry;

        impl Visitor<'_> for Entry {
            type Value = ExitStatus;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an exit code from 0 to 255 or the name of one or of a signal")
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<ExitStatus, E> {
                u8::try_from(number)
                    .map(ExitStatus::Code)
                    .map_err(|_| E::invalid_value(serde::de::Unexpected::Unsigned(number), &self))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<ExitStatus, E> {
                ExitStatus::parse(text).ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))
            }
        }

        deserializer.deserialize_any(Entry)
    }
}

impl<'de> Deserialize<'de> for ExitStatusSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = ExitStatusSet;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "a list of at most {MAX_ENTRIES} exit codes and signals")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<ExitStatusSet, A::Error> {
                let mut set = Vec::new();
                while let Some(entry) = entries.next_element()? {
                    if set.len() == MAX_ENTRIES {
                        return Err(A::Error::invalid_length(MAX_ENTRIES + 1, &self));
                    }
                    set.push(entry);
                }
                Ok(ExitStatusSet(set))
            }
        }

        deserializer.deserialize_seq(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_codes_and_words_are_names_of_codes_or_signals() {
        let read: ExitStatusSet = serde_json::from_str(r#"[7, "8", "TEMPFAIL", "SIGUSR1", "USR2"]"#).unwrap();
        let expected = [
            ExitStatus::Code(7),
            ExitStatus::Code(8),
            ExitStatus::Code(75),
            ExitStatus::Signal(libc::SIGUSR1),
            ExitStatus::Signal(libc::SIGUSR2),
        ];
        assert_eq!(read, expected.into_iter().collect());
    }

    #[test]
    fn what_is_neither_and_too_many_are_refused() {
        for text in ["[256]", "[-1]", r#"["SIGNOPE"]"#, "[1.5]", "[null]", "7"] {
            assert!(serde_json::from_str::<ExitStatusSet>(text).is_err(), "{text}");
        }
        let many = format!("[{}]", vec!["1"; MAX_ENTRIES + 1].join(","));
        assert!(serde_json::from_str::<ExitStatusSet>(&many).is_err());
    }
}
