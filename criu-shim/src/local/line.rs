//! One message a line, with a bound on the line.

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Longest line that either side accepts, bytes, without the line feed. Real messages have a few hundred.
pub const MAX_LINE: usize = 64 * 1024;

/// A line that is no message.
#[derive(Debug, Error)]
pub enum LineError {
    /// Longer than [`MAX_LINE`].
    #[error("line of more than {MAX_LINE} bytes on the local socket")]
    TooLong,
    /// Not the JSON of a message.
    #[error("parse a message of the local protocol")]
    Parse(#[source] serde_json::Error),
    /// A message could not be written as JSON.
    #[error("encode a message of the local protocol")]
    Encode(#[source] serde_json::Error),
}

/// A message as one line, line feed included.
///
/// # Errors
/// [`LineError::TooLong`] where the other side would refuse it.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, LineError> {
    let mut line = serde_json::to_vec(message).map_err(LineError::Encode)?;
    if line.len() > MAX_LINE {
        return Err(LineError::TooLong);
    }
    line.push(b'\n');
    Ok(line)
}

/// The message in one line; a line feed at the end may be there or not.
///
/// # Errors
/// [`LineError::TooLong`] before anything is parsed; [`LineError::Parse`] for anything else than a message.
pub fn decode<T: DeserializeOwned>(line: &[u8]) -> Result<T, LineError> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    if line.len() > MAX_LINE {
        return Err(LineError::TooLong);
    }
    serde_json::from_slice(line).map_err(LineError::Parse)
}

#[cfg(test)]
mod tests {
    use super::super::{
        Ahead, Create, FromRelay, FromShim, Hello, PagesAt, RelayStage, ReleaseOptions, Role, SystemV, ToRelay, ToShim,
    };
    use super::*;
    use proptest::prelude::*;
    use std::fmt::Debug;

    fn reads_back<T: Serialize + DeserializeOwned + PartialEq + Debug>(message: T, expected: &str) {
        let line = encode(&message).unwrap();
        assert_eq!(String::from_utf8(line.clone()).unwrap().trim_end(), expected);
        assert_eq!(decode::<T>(&line).unwrap(), message);
    }

    #[test]
    fn messages_look_as_documented() {
        reads_back(Hello::new(Role::Shim), r#"{"version":6,"role":"shim"}"#);
        reads_back(
            FromShim::Restored { token: "t".into(), exit_code: 1 },
            r#"{"type":"restored","token":"t","exitCode":1}"#,
        );
        reads_back(ToShim::ColdStart, r#"{"type":"coldStart"}"#);
        reads_back(
            ToShim::Restore {
                token: "t".into(),
                images_dir: "/i".into(),
                work_dir: "/w".into(),
                stand_in: true,
                ahead: None,
            },
            r#"{"type":"restore","token":"t","imagesDir":"/i","workDir":"/w","standIn":true}"#,
        );
        let pages = PagesAt { store: "/s".into(), work: "/w".into() };
        reads_back(Ahead { pages, request: None }, r#"{"pages":{"store":"/s","work":"/w"}}"#);
        reads_back(
            FromRelay::Relay { token: "t".into(), stage: RelayStage::Requested, criu: Some(7) },
            r#"{"type":"relay","token":"t","stage":"requested","criu":7}"#,
        );
        let of_before: FromRelay = decode(br#"{"type":"relay","token":"t","stage":"held"}"#).unwrap();
        assert_eq!(of_before, FromRelay::Relay { token: "t".into(), stage: RelayStage::Held, criu: None });
        reads_back(ToRelay::Abandon, r#"{"type":"abandon"}"#);
        let release: ToRelay =
            decode(br#"{"type":"release","options":{"logLevel":2,"systemV":{"removed":[7]}}}"#).unwrap();
        let options =
            ReleaseOptions { log_level: 2, system_v: Some(SystemV { removed: vec![7] }), ..Default::default() };
        assert_eq!(release, ToRelay::Release { options });
    }

    #[test]
    fn create_carries_the_identity_and_nothing_to_act_on() {
        let create: FromShim = decode(
            br#"{"type":"create","containerId":"c","bundle":"/b","podNamespace":"n","podName":"p","podUid":"u",
                "containerName":"app","containerType":"container"}"#,
        )
        .unwrap();
        assert!(matches!(create, FromShim::Create(Create { replacement_of: None, .. })));
    }

    #[test]
    fn a_line_above_the_bound_is_refused_before_it_is_parsed() {
        let long = vec![b' '; MAX_LINE + 1];
        assert!(matches!(decode::<ToShim>(&long), Err(LineError::TooLong)));
        let reason = "x".repeat(MAX_LINE);
        assert!(matches!(encode(&ToShim::Refuse { reason }), Err(LineError::TooLong)));
    }

    #[test]
    fn another_version_is_refused_by_name() {
        let hello: Hello = decode(br#"{"version":7,"role":"relay"}"#).unwrap();
        assert_eq!(
            hello.check().unwrap_err().to_string(),
            "the client speaks version 7 of the local protocol, this agent version 6"
        );
    }

    proptest! {
        #[test]
        fn no_line_makes_a_decoder_panic(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode::<FromShim>(&line).is_err());
            prop_assert!(decode::<ToRelay>(&line).is_err());
        }
    }
}
