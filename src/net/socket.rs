//! A non-blocking stream that remembers its readiness. Callers never see `WouldBlock` and
//! `Interrupted`.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use mio::Interest;
use mio::event::Event;
use mio::net::TcpStream;

/// The events that every stream is registered for. A priority event announces TCP urgent data.
pub const EVENTS: Interest = Interest::READABLE.add(Interest::WRITABLE).add(Interest::PRIORITY);

/// A stream that is registered once, for both directions, edge-triggered. An event sets a bit of
/// readiness. A call that would block clears the bit, and so does a short read or write.
#[allow(clippy::struct_excessive_bools, reason = "what epoll has reported, in any combination")]
pub struct Socket {
    stream: TcpStream,
    readable: bool,
    writable: bool,
    read_closed: bool,
    /// TCP urgent data has come. A read stops short at its mark.
    has_urgent: bool,
}

/// The result of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    /// This many bytes; not 0.
    Bytes(usize),
    /// Nothing for now.
    Nothing,
    /// The other side will send no more.
    End,
    /// The connection is broken.
    Broken,
}

impl Socket {
    /// Takes over a stream with this readiness.
    pub fn new(stream: TcpStream, readable: bool, writable: bool) -> Socket {
        Socket { stream, readable, writable, read_closed: false, has_urgent: false }
    }

    /// Sets whether an earlier event has reported the end of input.
    pub fn with_read_closed(self, read_closed: bool) -> Socket {
        Socket { read_closed, ..self }
    }

    /// Records the readiness that an event reports.
    pub fn note(&mut self, event: &Event) {
        self.has_urgent |= event.is_priority();
        self.readable |= event.is_readable()
            || event.is_read_closed()
            || event.is_priority()
            || event.is_error();
        self.writable |= event.is_writable() || event.is_error();
        self.read_closed |= event.is_read_closed() || event.is_error();
    }

    /// A read may return something.
    pub fn is_readable(&self) -> bool {
        self.readable
    }

    /// The other side has shut down its direction or reset the connection. Bytes that came before
    /// may still be unread.
    pub fn is_read_closed(&self) -> bool {
        self.read_closed
    }

    /// The address at the other end.
    pub fn remote(&self) -> Option<SocketAddr> {
        self.stream.peer_addr().ok()
    }

    /// The local and the remote address, while the socket is connected.
    pub fn addresses(&self) -> Option<(SocketAddr, SocketAddr)> {
        Some((self.stream.local_addr().ok()?, self.remote()?))
    }

    /// Asks the kernel whether anything has come that no event has reported yet. Returns whether
    /// neither a byte nor an end has come. Otherwise the socket is readable from now on.
    pub fn is_silent(&mut self) -> bool {
        let looked = self.stream.peek(&mut [0]);
        self.readable |= looked.is_ok();
        !self.readable && looked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    /// Reads once.
    pub fn read(&mut self, buffer: &mut [u8]) -> ReadOutcome {
        while self.readable {
            match self.stream.read(buffer) {
                Ok(0) => return ReadOutcome::End,
                Ok(n) => {
                    // A short read has emptied the socket, and the next byte causes an event. But
                    // an end that was announced causes none, and neither do bytes behind an urgent
                    // mark.
                    self.readable = n == buffer.len() || self.read_closed || self.has_urgent;
                    return ReadOutcome::Bytes(n);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.readable = false,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return ReadOutcome::Broken,
            }
        }
        ReadOutcome::Nothing
    }

    /// Writes several slices with one call. Returns 0 if the call would block.
    pub fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let wanted = slices.iter().map(|slice| slice.len()).sum();
        self.write_with(wanted, |stream| stream.write_vectored(slices))
    }

    fn write_with(
        &mut self,
        wanted: usize,
        mut write: impl FnMut(&mut TcpStream) -> io::Result<usize>,
    ) -> io::Result<usize> {
        while self.writable {
            match write(&mut self.stream) {
                Ok(n) => {
                    self.writable = n == wanted;
                    return Ok(n);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(0)
    }

    /// Tells the other side that no more will come.
    pub fn shutdown_write(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }

    /// The file descriptor, for socket options.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Writes with one call. Returns 0 if the call would block.
impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // writev(2): mio's write would be sendto(2), for which the kernel runs the seccomp filter.
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::loop_state::testing::{Loop, readable};

    #[test]
    fn a_read_that_fills_the_buffer_may_leave_more_and_a_short_one_leaves_nothing() {
        let (near, mut far) = Loop::pair();
        let mut socket = Socket::new(near, true, true);
        assert_eq!(socket.read(&mut [0; 4]), ReadOutcome::Nothing);
        assert!(!socket.is_readable(), "nothing is read again before an event");
        far.send("12345678");
        readable(&socket);
        assert_eq!(socket.read(&mut [0; 4]), ReadOutcome::Nothing);
        socket.readable = true;
        assert_eq!(socket.read(&mut [0; 4]), ReadOutcome::Bytes(4));
        assert!(socket.is_readable());
        assert_eq!(socket.read(&mut [0; 5]), ReadOutcome::Bytes(4));
        assert!(!socket.is_readable());
    }

    #[test]
    fn an_end_or_an_urgent_mark_behind_a_short_read_is_still_read() {
        for has_urgent in [false, true] {
            let (near, mut far) = Loop::pair();
            let mut socket = Socket::new(near, true, true);
            (socket.read_closed, socket.has_urgent) = (!has_urgent, has_urgent);
            far.send("1234");
            readable(&socket);
            far.0.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(socket.read(&mut [0; 5]), ReadOutcome::Bytes(4));
            assert!(socket.is_readable());
            readable(&socket);
            assert_eq!(socket.read(&mut [0; 5]), ReadOutcome::End);
        }
    }

    #[test]
    fn a_socket_is_silent_until_a_byte_or_the_end_comes_and_then_says_so_without_an_event() {
        let (near, far) = Loop::pair();
        let mut socket = Socket::new(near, false, true);
        assert!(socket.is_silent() && !socket.is_readable());
        far.0.shutdown(std::net::Shutdown::Write).unwrap();
        readable(&socket);
        assert!(!socket.is_silent() && socket.is_readable());
    }

    #[test]
    fn a_write_that_is_cut_short_waits_for_an_event() {
        let (near, _far) = Loop::pair();
        let mut socket = Socket::new(near, false, true);
        let bytes = vec![0; 64 << 20];
        let sent = socket.write(&bytes).unwrap();
        assert!(sent > 0 && sent < bytes.len() && !socket.writable);
        assert_eq!(socket.write(&bytes).unwrap(), 0);
    }
}
