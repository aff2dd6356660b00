//! Runs of bytes on their way into a socket or into TLS records.

use std::io::{self, IoSlice, Write};

use super::buffer::{Backlog, Scratch};
use super::socket::Socket;
use super::tls::Tls;
use super::upstream::Space;
use crate::http1::gather::GatherList;

/// The list as slices; returns how many.
pub fn fill<'a>(slices: &mut [IoSlice<'a>], list: &'a GatherList, input: &'a [u8]) -> usize {
    let mut count = 0;
    for (slot, bytes) in slices.iter_mut().zip(list.slices(input)) {
        *slot = IoSlice::new(bytes);
        count += 1;
    }
    count
}

/// Keeps what a vectored write left over.
pub fn keep_rest(runs: &[IoSlice<'_>], mut sent: usize, output: &mut Backlog) {
    for run in runs {
        let skipped = sent.min(run.len());
        sent -= skipped;
        output.push(&run[skipped..]);
    }
}

/// Writes, and keeps what does not fit. Bytes that wait go first.
pub fn send(socket: &mut Socket, output: &mut Backlog, bytes: &[u8]) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    let sent = if output.is_empty() { socket.write(bytes)? } else { 0 };
    output.push(&bytes[sent..]);
    Ok(())
}

/// Takes the one record that begins with the credential block.
pub struct Sealer<'a> {
    /// The connection that seals it.
    pub tls: &'a mut Tls,
    /// Where the ciphertext goes.
    pub out: &'a mut Scratch,
}

impl Write for Sealer<'_> {
    fn write(&mut self, plain: &[u8]) -> io::Result<usize> {
        self.tls.seal(plain, self.out).map_err(|_| io::ErrorKind::ConnectionAborted)?;
        Ok(plain.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Seals the runs but for their first `taken` bytes: one run as it stands, several put together, so
/// that short ones share a record.
pub fn seal_rest(
    tls: &mut Tls,
    runs: &[IoSlice<'_>],
    mut taken: usize,
    space: &mut Space,
) -> io::Result<()> {
    let mut rest = runs.iter().filter_map(|run| {
        let skipped = taken.min(run.len());
        taken -= skipped;
        Some(&run[skipped..]).filter(|run| !run.is_empty())
    });
    let Some(first) = rest.next() else {
        return Ok(());
    };
    let sealed = match rest.next() {
        None => tls.seal(first, &mut space.out),
        Some(second) => {
            space.gather.clear();
            [first, second].into_iter().chain(rest).for_each(|run| space.gather.push(run));
            tls.seal(space.gather.bytes(), &mut space.out)
        }
    };
    sealed.map_err(|_| io::ErrorKind::ConnectionAborted.into())
}
