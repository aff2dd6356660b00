//! Hashes eight windows of a text at once, and looks the hashes up in a filter.

/// The size of the filter in bytes. It fits in the processor's first-level cache.
pub const FILTER_BYTES: usize = 8 * 1024;

/// A set of hashes, with two bits for each, both in the same word. The hash's highest 11 bits are
/// the word's number; the next five bits and the five bits below them are the numbers of the two
/// bits.
pub type HashFilter = [[u8; 4]; FILTER_BYTES / 4];

/// One factor for each four bytes of the widest window. All are odd.
pub type Factors = [u32; 5];

/// How many windows are looked up together.
pub const BLOCK: usize = 8;

/// Counts the blocks at the beginning of the text that hold no window whose hash is in the filter.
/// A block is eight windows, each `WIDTH` bytes wide, that begin `STRIDE` bytes apart. Stops at the
/// first block that holds such a window, or up to eight windows before the end of the text. `None`
/// where the processor lacks AVX2.
///
/// The hash is the sum of the window's four-byte words, each times its factor, modulo 2^32. That is
/// the same number that `Tables::hash` gives.
#[inline]
pub fn unlisted_blocks<const WIDTH: usize, const STRIDE: usize>(
    filter: &HashFilter,
    factors: &Factors,
    text: &[u8],
) -> Option<usize> {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has these instructions.
        return Some(unsafe { avx2::unlisted_blocks::<WIDTH, STRIDE>(filter, factors, text) });
    }
    let _ = (filter, factors, text);
    None
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{BLOCK, Factors, HashFilter};

    // A closure that the standard library calls would not be compiled for AVX2: hence the loops.

    /// 32 bytes of the block from `at` on.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn load(block: &[u8], at: usize) -> __m256i {
        let bytes: &[u8; 32] = block[at..].first_chunk().expect("a whole block is there");
        // SAFETY: 32 bytes are readable there; the load needs no alignment.
        unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
    }

    /// The `nth` word of each of eight windows. Each lane belongs to one window. Which one does not
    /// matter, as long as it is the same for every `nth`.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn words<const STRIDE: usize>(block: &[u8], nth: usize) -> __m256i {
        let first = load(block, 4 * nth);
        if STRIDE == 8 {
            // Words 0 2 4 6, and 8 10 12 14, counted from `nth` on.
            return _mm256_blend_epi32::<0b1010_1010>(first, load(block, 4 * nth + 28));
        }
        // Words 0 3 6, and 9 12 15, and 18 21.
        let both = _mm256_blend_epi32::<0b1001_0010>(first, load(block, 4 * nth + 32));
        _mm256_blend_epi32::<0b0010_0100>(both, load(block, 4 * nth + 64))
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn unlisted_blocks<const WIDTH: usize, const STRIDE: usize>(
        filter: &HashFilter,
        factors: &Factors,
        text: &[u8],
    ) -> usize {
        const { assert!(matches!((WIDTH, STRIDE), (16, 8) | (20, 12))) };
        let mut lanes = [_mm256_setzero_si256(); 5];
        for (lanes, factor) in lanes.iter_mut().zip(factors) {
            *lanes = _mm256_set1_epi32(factor.cast_signed());
        }
        // The end of a block's last load.
        let reach = WIDTH - 4 + if STRIDE == 8 { 28 } else { 64 } + 32;
        let mut passed = 0;
        let mut rest = text;
        while rest.len() >= reach {
            let block = &rest[..reach];
            let mut hashes = _mm256_setzero_si256();
            for (nth, factor) in lanes.iter().enumerate().take(WIDTH / 4) {
                let products = _mm256_mullo_epi32(words::<STRIDE>(block, nth), *factor);
                hashes = _mm256_add_epi32(hashes, products);
            }
            if is_any_listed(filter, hashes) {
                break;
            }
            passed += 1;
            rest = &rest[BLOCK * STRIDE..];
        }
        passed
    }

    /// Loads each word separately: a gather instruction takes longer, on some processors much
    /// longer.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn is_any_listed(filter: &HashFilter, hashes: __m256i) -> bool {
        let places = _mm256_srli_epi32::<21>(hashes);
        let (low, high) = (_mm256_castsi256_si128(places), _mm256_extracti128_si256::<1>(places));
        let (ab, cd) = (_mm_cvtsi128_si64(low), _mm_extract_epi64::<1>(low));
        let (ef, gh) = (_mm_cvtsi128_si64(high), _mm_extract_epi64::<1>(high));
        let words = _mm256_setr_epi32(
            word(filter, ab),
            word(filter, ab >> 32),
            word(filter, cd),
            word(filter, cd >> 32),
            word(filter, ef),
            word(filter, ef >> 32),
            word(filter, gh),
            word(filter, gh >> 32),
        );
        let (one, last) = (_mm256_set1_epi32(1), _mm256_set1_epi32(31));
        let first = _mm256_and_si256(_mm256_srli_epi32::<16>(hashes), last);
        let second = _mm256_and_si256(_mm256_srli_epi32::<11>(hashes), last);
        let bits = _mm256_or_si256(_mm256_sllv_epi32(one, first), _mm256_sllv_epi32(one, second));
        let listed = _mm256_cmpeq_epi32(_mm256_and_si256(words, bits), bits);
        _mm256_testz_si256(listed, listed) == 0
    }

    /// The filter's word with this number, of which only the lowest bits count.
    #[inline(always)]
    fn word(filter: &HashFilter, place: i64) -> i32 {
        i32::from_le_bytes(filter[place as usize % filter.len()])
    }
}
