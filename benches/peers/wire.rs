//! A non-blocking socket, with or without TLS, and the content of every body.

use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::sync::LazyLock;
use std::time::Instant;

use mio::net::TcpStream;
use rustls::Connection;

/// The most bytes of one read.
pub const READ: usize = 256 << 10;

/// One end of a connection.
pub struct Wire {
    pub socket: TcpStream,
    tls: Option<Box<Connection>>,
    /// The bytes that the socket has not accepted yet. With TLS, rustls keeps them.
    backlog: Vec<u8>,
}

impl Wire {
    pub fn new(socket: TcpStream, tls: Option<Connection>) -> io::Result<Wire> {
        socket.set_nodelay(true)?;
        let tls = tls.map(|mut tls| {
            tls.set_buffer_limit(None);
            Box::new(tls)
        });
        Ok(Wire { socket, tls, backlog: Vec::new() })
    }

    /// Passes on the received bytes, decrypted. Returns false at the end of the stream. A read that
    /// does not fill `scratch` has emptied the socket, so no further read follows.
    pub fn read(&mut self, scratch: &mut [u8], mut take: impl FnMut(&[u8])) -> io::Result<bool> {
        loop {
            let n = match self.socket.read(scratch) {
                Ok(0) => return Ok(false),
                Ok(n) => n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(e) => return Err(e),
            };
            match &mut self.tls {
                None => take(&scratch[..n]),
                Some(tls) => decrypt(tls, &scratch[..n], &mut take)?,
            }
            if n < scratch.len() {
                return Ok(true);
            }
        }
    }

    /// Sends these bytes in a TLS record of their own. Bytes that the socket does not accept wait
    /// for [`Wire::flush`].
    pub fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            return tls.writer().write_all(bytes);
        }
        let taken = if self.backlog.is_empty() { write(&mut self.socket, bytes)? } else { 0 };
        self.backlog.extend_from_slice(&bytes[taken..]);
        Ok(())
    }

    /// Returns whether all bytes have been written.
    pub fn flush(&mut self) -> io::Result<bool> {
        match &mut self.tls {
            Some(tls) => {
                while tls.wants_write() {
                    match tls.write_tls(&mut self.socket) {
                        Ok(_) => {}
                        Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                        Err(e) => return Err(e),
                    }
                }
                Ok(!tls.is_handshaking())
            }
            None => {
                let taken = write(&mut self.socket, &self.backlog)?;
                self.backlog.drain(..taken);
                Ok(self.backlog.is_empty())
            }
        }
    }
}

fn write(socket: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let mut at = 0;
    while at < bytes.len() {
        match socket.write(&bytes[at..]) {
            Ok(n) => at += n,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => break,
            Err(e) => return Err(e),
        }
    }
    Ok(at)
}

fn decrypt(
    tls: &mut Connection,
    mut records: &[u8],
    take: &mut impl FnMut(&[u8]),
) -> io::Result<()> {
    while !records.is_empty() {
        tls.read_tls(&mut records)?;
        tls.process_new_packets().map_err(io::Error::other)?;
        let mut reader = tls.reader();
        while let Ok(plain) = reader.fill_buf() {
            let n = plain.len();
            if n == 0 {
                break;
            }
            take(plain);
            reader.consume(n);
        }
    }
    Ok(())
}

/// The content of all bodies, repeated: an event of the Responses API.
pub const EVENT: &[u8] = b"event: response.output_text.delta\n\
    data: {\"type\":\"response.output_text.delta\",\"item_id\":\"msg_0123456789abcdef\",\
    \"output_index\":0,\"content_index\":0,\"delta\":\" word\"}\n\n";

/// [`EVENT`] repeated, a little more than a mebibyte.
static TEXT: LazyLock<Vec<u8>> = LazyLock::new(|| EVENT.repeat((1 << 20) / EVENT.len() + 2));

/// The bytes of a body from this offset on: at most `limit`, and at most a mebibyte.
pub fn body(offset: u64, limit: u64) -> &'static [u8] {
    let start = (offset % EVENT.len() as u64) as usize;
    &TEXT[start..start + limit.min(1 << 20) as usize]
}

/// Whether a piece of a body, from this offset on, has the bytes that were sent.
pub fn is_body(mut offset: u64, piece: &[u8]) -> bool {
    piece.chunks(1 << 20).all(|piece| {
        let right = piece == body(offset, piece.len() as u64);
        offset += piece.len() as u64;
        right
    })
}

/// The size of an event of a slow stream, in bytes.
pub const TIMED: usize = 256;

/// An event that contains its number and the time when it was written, always [`TIMED`] bytes.
pub fn timed_event(number: u64, nanoseconds: u64) -> Vec<u8> {
    let start = format!("data: {{\"i\":{number:08},\"t\":{nanoseconds:020},\"p\":\"");
    format!("{start:.<width$}\"}}\n\n", width = TIMED - 4).into_bytes()
}

/// The time when this event was written, if it has this number and is otherwise unchanged.
pub fn read_timed_event(event: &[u8], number: u64) -> Option<u64> {
    let digits = std::str::from_utf8(event.get(24..44)?).ok()?;
    let nanoseconds = digits.parse().ok()?;
    (event == timed_event(number, nanoseconds)).then_some(nanoseconds)
}

/// Nanoseconds since the first call.
pub fn now() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_nanos() as u64
}
