//! What a page must hold. Pure.

use crate::noise;

/// Odd, so that the steps visit every page of a region whose number of pages is a power of two before one comes again.
const STRIDE: u64 = 0x9e37_79b1;

/// The page that is written at `step`.
pub(super) fn page_at(step: u64, pages: u64) -> u64 {
    step.wrapping_mul(STRIDE) & (pages - 1)
}

/// The step, up to `step`, at which `page` was written last; 0 where it never was.
pub(super) fn version(page: u64, step: u64, pages: u64) -> u64 {
    let first = page.wrapping_mul(inverse(STRIDE)) & (pages - 1);
    step.saturating_sub(step.wrapping_sub(first) & (pages - 1))
}

/// Word `index` of a page, one of 512. No page is zero, and none is another, up to step 2^31.
pub(super) fn word(region: u64, page: u64, version: u64, index: usize) -> u64 {
    noise::word((region << 56) | (page << 40) | (version << 9) | index as u64)
}

/// The number by which an odd one gives 1. Source: Newton's iteration; each step doubles the bits that are right.
fn inverse(odd: u64) -> u64 {
    (0..6).fold(odd, |inverse, _| inverse.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(inverse))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_a_page_is_the_step_that_wrote_it_last() {
        for pages in [1, 2, 16, 512] {
            let mut versions = vec![0; pages as usize];
            for step in 1..3 * pages + 7 {
                versions[page_at(step, pages) as usize] = step;
                for page in 0..pages {
                    assert_eq!(version(page, step, pages), versions[page as usize], "page {page} at {step} of {pages}");
                }
            }
        }
    }

    #[test]
    fn pages_differ_by_region_number_and_version() {
        let words =
            [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4)].map(|(region, page, version)| word(region, page, version, 7));
        assert!(words.iter().enumerate().all(|(at, word)| *word != 0 && !words[..at].contains(word)));
    }
}
