//! Whether a process image of one host can run on another.

use std::collections::BTreeSet;
use tideover_crds::HostFacts;

/// How many missing CPU features are named.
const NAMED: usize = 5;

/// Compares the host where the processes run with the one where they shall run.
///
/// A process has looked at the CPU once and remembers what it saw, so the target needs every feature of the source.
/// An older kernel may lack what the image describes; images are read only by the version of CRIU that wrote them.
///
/// # Errors
/// The difference, as the end of a sentence.
pub(super) fn fit(source: &HostFacts, target: &HostFacts) -> Result<(), String> {
    if source.architecture != target.architecture {
        return Err(format!("its architecture is {}, not {}", target.architecture, source.architecture));
    }
    let there: BTreeSet<&str> = target.cpu_features.split_whitespace().collect();
    let missing: Vec<&str> = source.cpu_features.split_whitespace().filter(|flag| !there.contains(flag)).collect();
    if !missing.is_empty() {
        let named = missing.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
        return Err(match missing.len().saturating_sub(NAMED) {
            0 => format!("its CPU lacks {named}"),
            more => format!("its CPU lacks {named} and {more} more features"),
        });
    }
    if source.criu != target.criu {
        return Err(format!("its CRIU is {}, not {}", target.criu, source.criu));
    }
    if release(&target.kernel) < release(&source.kernel) {
        return Err(format!("its kernel {} is older than {}", target.kernel, source.kernel));
    }
    Ok(())
}

/// The first two numbers of a kernel release.
fn release(kernel: &str) -> (u32, u32) {
    let mut numbers = kernel.split(|c: char| !c.is_ascii_digit()).map(|digits| digits.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(features: &str, kernel: &str) -> HostFacts {
        HostFacts {
            architecture: "x86_64".into(),
            cpu_features: features.into(),
            kernel: kernel.into(),
            criu: "4.2".into(),
            protocol: 1,
        }
    }

    #[test]
    fn a_target_with_more_features_fits() {
        assert_eq!(fit(&host("avx sse2", "6.1.0-9"), &host("avx avx512f sse2", "6.12.1")), Ok(()));
    }

    #[test]
    fn a_missing_feature_is_named() {
        let told = fit(&host("avx sse2", "6.1.0"), &host("sse2", "6.1.0"));
        assert_eq!(told, Err("its CPU lacks avx".to_owned()));
    }

    #[test]
    fn an_older_kernel_does_not_fit() {
        assert!(fit(&host("", "6.10.1"), &host("", "6.9.7")).is_err());
    }

    #[test]
    fn another_criu_does_not_fit() {
        let other = HostFacts { criu: "4.1".into(), ..host("", "6.1") };
        assert_eq!(fit(&host("", "6.1"), &other), Err("its CRIU is 4.1, not 4.2".to_owned()));
    }
}
