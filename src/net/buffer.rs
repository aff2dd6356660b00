//! Buffers: the backlog of a connection, and the scratch buffers of the loop.

use std::cell::RefCell;

use zeroize::Zeroize;

use super::limits::{KEPT_BUFFER_SIZES, KEPT_BUFFERS};

thread_local! {
    /// Buffers of emptied backlogs. Without this list, the allocator would return the memory to the
    /// kernel and take it again for each request that waits for its connection.
    static FREE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes that wait to be sent or parsed. A backlog is empty most of the time, and then owns no
/// memory.
///
/// A backlog has no bound of its own. Callers add the bytes of one read at most, and only while the
/// backlog is empty or below a bound (see [`super::limits`]).
#[derive(Default)]
pub struct Backlog {
    bytes: Vec<u8>,
    start: usize,
}

impl Backlog {
    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The bytes that wait.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// Adds bytes at the end.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.bytes.capacity() == 0
            && KEPT_BUFFER_SIZES.contains(&bytes.len())
            && let Ok(Some(kept)) = FREE.try_with(|free| free.borrow_mut().pop())
        {
            self.bytes = kept;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Removes `n` bytes from the front.
    pub fn consume(&mut self, n: usize) {
        self.start += n;
        debug_assert!(self.start <= self.bytes.len());
        if self.start >= self.bytes.len() {
            *self = Backlog::default();
        }
    }

    /// Moves the bytes out, so that the owner of the backlog can be borrowed while they are parsed.
    /// [`Backlog::put_back`] moves them in again.
    pub fn take(&mut self) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.drain(..std::mem::take(&mut self.start));
        bytes
    }

    /// Moves the bytes of [`Backlog::take`] in again, without the first `used` bytes.
    pub fn put_back(&mut self, bytes: Vec<u8>, used: usize) {
        debug_assert!(self.is_empty());
        self.bytes = bytes;
        self.consume(used);
    }
}

impl Drop for Backlog {
    fn drop(&mut self) {
        if KEPT_BUFFER_SIZES.contains(&self.bytes.capacity()) {
            self.bytes.clear();
            let kept = std::mem::take(&mut self.bytes);
            let _ = FREE.try_with(|free| {
                let mut free = free.borrow_mut();
                if free.len() < KEPT_BUFFERS {
                    free.push(kept);
                }
            });
        }
    }
}

/// A scratch buffer of the loop. It is filled and emptied within one turn.
pub struct Scratch {
    bytes: Vec<u8>,
    len: usize,
}

impl Scratch {
    /// A buffer of zeroed memory. The kernel provides its pages when they are first used.
    pub fn new(size: usize) -> Scratch {
        Scratch { bytes: vec![0; size], len: 0 }
    }

    /// Forgets the bytes.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Forgets the bytes and overwrites all memory of the buffer.
    pub fn wipe(&mut self) {
        self.bytes.as_mut_slice().zeroize();
        self.len = 0;
    }

    /// The bytes that were added.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// The bytes that were added.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }

    /// The unfilled bytes, `n` of them at least. [`Scratch::add`] counts the bytes that are written
    /// there.
    pub fn unfilled(&mut self, n: usize) -> &mut [u8] {
        if self.bytes.len() - self.len < n {
            self.bytes.resize(self.len + n, 0);
        }
        &mut self.bytes[self.len..]
    }

    /// Counts bytes that were written into [`Scratch::unfilled`] as added.
    pub fn add(&mut self, n: usize) {
        self.len += n;
    }

    /// Adds bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.unfilled(bytes.len())[..bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }
}

/// The scratch buffers of upstream connections. They are filled and emptied within one turn.
pub struct TlsScratch {
    /// Ciphertext from the upstream.
    pub ciphertext_in: Scratch,
    /// Plaintext from the upstream.
    pub plaintext_in: Scratch,
    /// Ciphertext for the upstream.
    pub ciphertext_out: Scratch,
    /// Several slices of plaintext, joined for one record.
    pub record: Scratch,
}

impl TlsScratch {
    /// Overwrites all memory that plaintext may lie in. Records are decrypted in place.
    pub fn wipe(&mut self) {
        self.ciphertext_in.wipe();
        self.plaintext_in.wipe();
        self.record.wipe();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backlog_takes_the_buffer_of_one_that_has_emptied_and_none_of_its_bytes() {
        let mut first = Backlog::default();
        first.push(&[1; 3000]);
        let buffer = first.bytes.as_ptr();
        first.consume(3000);
        let mut second = Backlog::default();
        second.push(&[2; 2000]);
        assert_eq!(second.bytes.as_ptr(), buffer);
        assert_eq!(second.bytes(), [2; 2000]);
    }

    #[test]
    fn few_buffers_are_kept_and_none_of_a_large_backlog() {
        let kept = || FREE.with_borrow(Vec::len);
        let drop_many = |size: usize| {
            let filled = std::iter::repeat_with(|| {
                let mut backlog = Backlog::default();
                backlog.push(&vec![0; size]);
                backlog
            });
            drop(filled.take(2 * KEPT_BUFFERS).collect::<Vec<_>>());
        };
        drop_many(KEPT_BUFFER_SIZES.end() + 1);
        drop_many(KEPT_BUFFER_SIZES.start() - 1);
        assert_eq!(kept(), 0);
        drop_many(4000);
        assert_eq!(kept(), KEPT_BUFFERS);
    }

    #[test]
    fn a_buffer_that_is_wiped_keeps_its_size_and_no_byte() {
        let mut scratch = Scratch::new(100);
        scratch.push(&[7; 150]);
        scratch.clear();
        scratch.push(&[8; 3]);
        scratch.wipe();
        assert!(scratch.bytes().is_empty());
        let room = scratch.unfilled(150);
        assert!(room.len() >= 150 && room.iter().all(|byte| *byte == 0));
    }
}
