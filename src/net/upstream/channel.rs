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

/// A pending alert is still sent, if the socket accepts it.
impl Drop for Channel {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::{AsFd, AsRawFd};
    use std::time::Duration;

    use super::*;
    use crate::net::loop_state::testing::{FarEnd, Loop, readable};
    use crate::net::socket::EVENTS;
    use crate::process::sys;

    fn channel() -> (Channel, FarEnd) {
        let (near, far) = Loop::pair();
        (Channel::new(Socket::new(near, true, true)), far)
    }

    #[test]
    fn bytes_that_find_no_room_wait_in_order_and_none_is_lost() {
        let (mut channel, mut far) = channel();
        let sent: Vec<u8> = (0..8 << 20).map(|n: u32| (n % 251) as u8).collect();
        let (first, rest) = sent.split_at(sent.len() / 2);
        channel.send_slices(&mut [IoSlice::new(&first[..1]), IoSlice::new(&first[1..])]).unwrap();
        channel.send(rest).unwrap();
        assert!(!channel.output.is_empty(), "the socket has taken all of it");
        let reader = std::thread::spawn(move || {
            let mut seen = vec![0; 8 << 20];
            far.0.read_exact(&mut seen).unwrap();
            seen
        });
        let mut poll = mio::Poll::new().unwrap();
        let mut events = mio::Events::with_capacity(8);
        let fd = channel.socket.fd().as_raw_fd();
        let mut source = mio::unix::SourceFd(&fd);
        poll.registry().register(&mut source, mio::Token(0), EVENTS).unwrap();
        while !channel.output.is_empty() {
            poll.poll(&mut events, Some(Duration::from_secs(20))).unwrap();
            assert!(!events.is_empty(), "the socket stays full");
            events.iter().for_each(|event| channel.socket.note(event));
            channel.flush();
        }
        assert!(reader.join().unwrap() == sent);
    }

    #[test]
    fn after_a_failed_write_what_waits_is_dropped() {
        let (mut channel, far) = channel();
        channel.output.push(b"waits");
        sys::reset_on_close(far.0.as_fd()).unwrap();
        drop(far);
        readable(&channel.socket);
        channel.flush();
        assert!(channel.has_failed() && channel.output.is_empty());
    }

    #[test]
    fn what_waits_goes_out_when_the_connection_ends() {
        let (mut channel, mut far) = channel();
        channel.output.push(b"waits");
        drop(channel);
        assert_eq!(far.rest().as_deref(), Some("waits"));
    }
}
