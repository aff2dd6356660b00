//! A connected socket, and the bytes that wait to be sent on it.

use std::io::{self, IoSlice};

use crate::net::buffer::Backlog;
use crate::net::gather_io::{keep_rest, send};
use crate::net::socket::Socket;

/// The socket of an upstream connection, with its output.
pub struct Channel {
    pub(super) socket: Socket,
    /// Bytes that the socket has not taken yet.
    pub(super) output: Backlog,
    /// A write has failed. Bytes from the upstream can still be read.
    write_failed: bool,
}

impl Channel {
    /// A channel without output.
    pub fn new(socket: Socket) -> Channel {
        Channel { socket, output: Backlog::default(), write_failed: false }
    }

    /// A write has failed: the upstream takes no more bytes.
    pub fn has_failed(&self) -> bool {
        self.write_failed
    }

    /// Records whether a write has failed.
    pub fn note_write(&mut self, result: io::Result<()>) {
        self.write_failed |= result.is_err();
    }

    /// Sends bytes. Bytes that the socket does not take wait in the output.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        send(&mut self.socket, &mut self.output, bytes)
    }

    /// Sends slices with one call. Requires an empty output.
    pub fn send_slices(&mut self, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        let sent = self.socket.write_vectored(slices)?;
        keep_rest(slices, sent, &mut self.output);
        Ok(())
    }

    /// Sends the output. If the write fails, the output is dropped; a read then shows the reason.
    pub fn flush(&mut self) {
        if self.output.is_empty() {
            return;
        }
        match self.socket.write_vectored(&[IoSlice::new(self.output.bytes())]) {
            Ok(n) => self.output.consume(n),
            Err(_) => {
                self.write_failed = true;
                self.output = Backlog::default();
            }
        }
    }
}

/// An alert that waits in the output still goes out, if there is room.
impl Drop for Channel {
    fn drop(&mut self) {
        self.flush();
    }
}
