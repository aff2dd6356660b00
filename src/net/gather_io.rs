//! Writes gather lists to sockets, or encrypts them into TLS records.

use std::io::{self, IoSlice, Write};

use super::buffer::{Backlog, Scratch, TlsScratch};
use super::socket::Socket;
use super::tls::Tls;
use crate::http1::gather::GatherList;

/// Fills `slices` with the segments of `list`, except the credential block. Returns the number of
/// slices that are filled.
pub fn fill<'a>(slices: &mut [IoSlice<'a>], list: &'a GatherList, input: &'a [u8]) -> usize {
    let mut count = 0;
    for (slot, bytes) in slices.iter_mut().zip(list.slices(input)) {
        *slot = IoSlice::new(bytes);
        count += 1;
    }
    count
}

/// Keeps the bytes that a vectored write of `slices` did not send: all but the first `sent` bytes.
pub fn keep_rest(mut slices: &mut [IoSlice<'_>], sent: usize, output: &mut Backlog) {
    IoSlice::advance_slices(&mut slices, sent);
    slices.iter().for_each(|slice| output.push(slice));
}

/// Writes `bytes` and keeps the rest that the socket does not take. If earlier bytes wait in
/// `output`, nothing is written and `bytes` are kept behind them. Fails if the write fails.
pub fn send(socket: &mut Socket, output: &mut Backlog, bytes: &[u8]) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    let sent = if output.is_empty() { socket.write(bytes)? } else { 0 };
    output.push(&bytes[sent..]);
    Ok(())
}

/// Encrypts the one record that begins with the credential block. Each write is a record of its
/// own, and fails if the connection can encrypt nothing more.
pub struct RecordWriter<'a> {
    /// The TLS connection that encrypts the record.
    pub tls: &'a mut Tls,
    /// The buffer that the ciphertext is added to.
    pub out: &'a mut Scratch,
}

impl Write for RecordWriter<'_> {
    fn write(&mut self, plain: &[u8]) -> io::Result<usize> {
        self.tls.encrypt(plain, self.out).map_err(|_| io::ErrorKind::ConnectionAborted)?;
        Ok(plain.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Encrypts all but the first `taken` bytes of `slices` into `scratch.ciphertext_out`. A single
/// slice is encrypted without a copy. Several slices are copied together first, so that short ones
/// share a record. Fails if the TLS connection can encrypt nothing more.
pub fn encrypt_rest(
    tls: &mut Tls,
    mut slices: &mut [IoSlice<'_>],
    taken: usize,
    scratch: &mut TlsScratch,
) -> io::Result<()> {
    IoSlice::advance_slices(&mut slices, taken);
    let encrypted = match slices {
        [] => return Ok(()),
        [slice] => tls.encrypt(slice, &mut scratch.ciphertext_out),
        slices => {
            scratch.record.clear();
            slices.iter().for_each(|slice| scratch.record.push(slice));
            tls.encrypt(scratch.record.bytes(), &mut scratch.ciphertext_out)
        }
    };
    encrypted.map_err(|_| io::ErrorKind::ConnectionAborted.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::loop_state::testing::Loop;

    #[test]
    fn what_a_write_did_not_send_is_kept_wherever_it_stopped() {
        for sent in 0..=6 {
            let mut slices = [b"abc".as_slice(), b"", b"de", b"f"].map(IoSlice::new);
            let mut output = Backlog::default();
            keep_rest(&mut slices, sent, &mut output);
            assert_eq!(output.bytes(), &b"abcdef"[sent..]);
        }
    }

    #[test]
    fn nothing_overtakes_bytes_that_wait() {
        let (near, mut far) = Loop::pair();
        let (mut socket, mut output) = (Socket::new(near, false, true), Backlog::default());
        send(&mut socket, &mut output, b"first").unwrap();
        assert!(output.is_empty());
        output.push(b"second");
        send(&mut socket, &mut output, b"third").unwrap();
        send(&mut socket, &mut output, b"").unwrap();
        assert_eq!(output.bytes(), b"secondthird");
        far.read_until("first");
        assert!(far.is_silent());
    }
}
