//! How far a response has been searched for keys.

use zeroize::Zeroize;

/// Bytes of a response that are kept for the next piece: one fewer than the number that is always
/// found.
pub(super) const SEAM: usize = 30;

/// The progress of a search: the last bytes of the response so far.
pub struct SearchPosition {
    pub(super) seam: [u8; SEAM],
}

impl Default for SearchPosition {
    /// The position at the beginning of a response. No key contains a zero byte, so zeros match
    /// nothing.
    fn default() -> SearchPosition {
        SearchPosition { seam: [0; SEAM] }
    }
}

impl Drop for SearchPosition {
    fn drop(&mut self) {
        self.seam.zeroize();
    }
}

impl SearchPosition {
    /// Moves past a piece in which no key was found.
    pub(crate) fn advance(&mut self, piece: &[u8]) {
        match piece.last_chunk() {
            Some(last) => self.seam = *last,
            None => {
                self.seam.copy_within(piece.len().., 0);
                self.seam[SEAM - piece.len()..].copy_from_slice(piece);
            }
        }
    }

    /// Forgets the response, because a key was found in it.
    pub(crate) fn wipe(&mut self) {
        self.seam.zeroize();
    }
}
