//! Content that does not compress, and that anybody can work out again.

/// Letters of a text made of noise.
const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Word `index`: none is like its neighbours. Source: the finalizer of splitmix64.
pub(crate) fn word(index: u64) -> u64 {
    let mut word = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// A text of `length` bytes, another for every `seed`.
pub(crate) fn text(seed: u64, length: usize) -> String {
    // Ten letters of six bits out of each word.
    let letters = |block: u64| {
        let bits = word(word(seed).wrapping_add(block));
        (0..10).map(move |place| char::from(LETTERS[(bits >> (6 * place)) as usize % LETTERS.len()]))
    };
    (0..).flat_map(letters).take(length).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_can_be_made_again_and_no_other_is_like_it() {
        assert_eq!(text(7, 100), text(7, 100));
        assert_ne!(text(7, 100), text(8, 100));
        assert_eq!(text(7, 4096).len(), 4096);
        assert!(text(7, 100).starts_with(&text(7, 9)));
    }
}
