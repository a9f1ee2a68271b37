//! Which CRIU this is, and whether it will do.

use super::rpc::{Request, RequestType};
use super::swrk::Swrk;
use super::{CriuError, CriuProgram};
use std::fmt;
use thiserror::Error;

/// The oldest CRIU that Tideover drives: options and image formats are those of this version.
pub const OLDEST: Version = Version { major: 4, minor: 2, patch: 0 };

/// A version of CRIU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Major.
    pub major: u32,
    /// Minor.
    pub minor: u32,
    /// Patch level.
    pub patch: u32,
}

/// This CRIU is too old.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("CRIU {found} is older than {OLDEST}")]
pub struct VersionError {
    /// What is there.
    pub found: Version,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl Version {
    /// # Errors
    /// [`VersionError`] if it is older than [`OLDEST`].
    pub fn supported(self) -> Result<(), VersionError> {
        if self >= OLDEST { Ok(()) } else { Err(VersionError { found: self }) }
    }
}

/// Asks a CRIU for its version; it is started, with all of its libraries, for that.
///
/// # Errors
/// Any [`CriuError`]: what can't say its version can't dump either.
pub fn version(program: &CriuProgram) -> Result<Version, CriuError> {
    let swrk = Swrk::start(program, None)?;
    let request = Request { r#type: RequestType::Version.into(), ..Default::default() };
    let answer = swrk.exchange(&request, RequestType::Version)?.version.unwrap_or_default();
    let part = |number: i32| u32::try_from(number).unwrap_or(0);
    Ok(Version { major: part(answer.major), minor: part(answer.minor), patch: part(answer.sublevel.unwrap_or(0)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_version_is_refused_by_name() {
        let old = Version { major: 3, minor: 17, patch: 1 };
        assert_eq!(old.supported().unwrap_err().to_string(), "CRIU 3.17.1 is older than 4.2.0");
        assert!(Version { major: 4, minor: 2, patch: 1 }.supported().is_ok());
        assert!(Version { major: 5, minor: 0, patch: 0 }.supported().is_ok());
    }
}
