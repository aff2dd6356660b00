//! Receives one response into a buffer of the caller: the head first, then the body in its place,
//! without the framing of its chunks.

use core::fmt;

use super::limits::{RESPONSE_BODY, RESPONSE_HEAD};
use crate::http1::field::{FieldName, FramingFields};
use crate::http1::framing::{Body, Framing};
use crate::http1::head::{self, MalformedHead, ScanProgress};
use crate::http1::limits::INTERIM;

/// Bytes of the buffer: the longest body, and one piece that has not been looked at.
pub const BUFFER: usize = RESPONSE_BODY + PIECE;
/// Bytes that are looked at together.
const PIECE: usize = 4096;

/// Why a response cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseFault {
    /// It is not well-formed HTTP/1.1, switches protocols, has too many interim responses, or bytes
    /// follow it.
    Malformed,
    /// The head or the body is too long.
    TooLong,
    /// The connection ended before the response did.
    CutOff,
    /// The body is not one JSON object.
    NotJson,
    /// The member with the token is missing, or no string.
    NoToken,
    /// The token has bytes that a token68 has not, or too many.
    TokenForm,
    /// The token is of another type than the one that was asked for.
    TokenType,
    /// The lifetime is missing, or no whole number of seconds from 1 on.
    Lifetime,
}

impl ResponseFault {
    /// Every fault, so that one can be named by its position.
    pub const ALL: [ResponseFault; 8] = [
        ResponseFault::Malformed,
        ResponseFault::TooLong,
        ResponseFault::CutOff,
        ResponseFault::NotJson,
        ResponseFault::NoToken,
        ResponseFault::TokenForm,
        ResponseFault::TokenType,
        ResponseFault::Lifetime,
    ];
}

impl fmt::Display for ResponseFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ResponseFault::Malformed => "the response is not well-formed HTTP/1.1",
            ResponseFault::TooLong => "the response is longer than 64 KiB, or its head than 16 KiB",
            ResponseFault::CutOff => "the connection ended within the response",
            ResponseFault::NotJson => "the response is not one JSON object",
            ResponseFault::NoToken => "the response has no token",
            ResponseFault::TokenForm => {
                "the token has bytes that no token has, or more than 8192 of them"
            }
            ResponseFault::TokenType => {
                "token_type is not Bearer, or issued_token_type is no access token"
            }
            ResponseFault::Lifetime => "expires_in is no whole number of seconds from 1 on",
        })
    }
}

/// A response that is being received.
#[derive(Default)]
pub struct Reception {
    state: State,
    progress: ScanProgress,
    /// Bytes at the front of the buffer that are in use: of the head, or of the body.
    used: usize,
    /// Interim responses so far.
    interim: u8,
}

#[derive(Default)]
enum State {
    #[default]
    Head,
    Body(u16, Body),
    Complete(u16),
}

/// A response that is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// 200 to 599.
    pub status: u16,
    /// The length of the body, which begins at the front of the buffer.
    pub len: usize,
}

impl Reception {
    /// Takes the next bytes. The buffer has [`BUFFER`] bytes and is always the same.
    pub fn receive(
        &mut self,
        mut bytes: &[u8],
        buffer: &mut [u8],
    ) -> Result<Option<Received>, ResponseFault> {
        while !bytes.is_empty() {
            let room = buffer.len() - self.used;
            let (piece, rest) = bytes.split_at(bytes.len().min(PIECE).min(room));
            if piece.is_empty() {
                return Err(ResponseFault::TooLong);
            }
            let start = self.used;
            buffer[start..start + piece.len()].copy_from_slice(piece);
            self.take(start + piece.len(), buffer)?;
            bytes = rest;
        }
        Ok(self.received())
    }

    /// The connection has ended. `is_orderly` says that the end was announced, so that nothing is
    /// missing.
    pub fn end(&mut self, is_orderly: bool) -> Result<Received, ResponseFault> {
        if let (State::Body(status, Body::UntilClose), true) = (&self.state, is_orderly) {
            self.state = State::Complete(*status);
        }
        self.received().ok_or(ResponseFault::CutOff)
    }

    fn received(&self) -> Option<Received> {
        match self.state {
            State::Complete(status) => Some(Received { status, len: self.used }),
            State::Head | State::Body(..) => None,
        }
    }

    /// Looks at the new bytes, which end at `filled`.
    fn take(&mut self, mut filled: usize, buffer: &mut [u8]) -> Result<(), ResponseFault> {
        let mut at = self.used;
        loop {
            match &mut self.state {
                State::Head => {
                    self.used = filled;
                    let Some(head) = read_head(&buffer[..filled], &mut self.progress)? else {
                        return Ok(());
                    };
                    // The rest begins the body or, after an interim response, the next head.
                    buffer.copy_within(head.len..filled, 0);
                    filled -= head.len;
                    (at, self.used, self.progress) = (0, 0, ScanProgress::default());
                    self.state = match head.framing {
                        // No other protocol was asked for.
                        _ if head.status == 101 => return Err(ResponseFault::Malformed),
                        _ if head.status < 200 => {
                            self.interim += 1;
                            if self.interim > INTERIM {
                                return Err(ResponseFault::Malformed);
                            }
                            State::Head
                        }
                        Framing::None | Framing::Length(0) => State::Complete(head.status),
                        framing => State::Body(head.status, Body::new(framing)),
                    };
                    if head.status < 200 && filled == 0 {
                        return Ok(());
                    }
                }
                State::Body(status, body) => {
                    if at == filled {
                        return Ok(());
                    }
                    let step =
                        body.step(&buffer[at..filled]).map_err(|_| ResponseFault::Malformed)?;
                    let data = at + step.framing;
                    buffer.copy_within(data..data + step.data, self.used);
                    self.used += step.data;
                    at = data + step.data;
                    if self.used > RESPONSE_BODY {
                        return Err(ResponseFault::TooLong);
                    }
                    if step.end {
                        self.state = State::Complete(*status);
                    }
                }
                // The server was asked to close the connection: nothing may follow.
                State::Complete(_) if at < filled => return Err(ResponseFault::Malformed),
                State::Complete(_) => return Ok(()),
            }
        }
    }
}

/// What counts of a head.
struct Head {
    status: u16,
    framing: Framing,
    len: usize,
}

fn read_head(input: &[u8], progress: &mut ScanProgress) -> Result<Option<Head>, ResponseFault> {
    let head = head::response(input, progress, |head| {
        let mut fields = FramingFields::default();
        for field in head.fields.iter() {
            match FieldName::of(field.name) {
                FieldName::ContentLength => fields.content_length(field.value),
                FieldName::TransferEncoding => fields.transfer_encoding(field.value),
                _ => {}
            }
        }
        let framing = Framing::of_response(&fields, head.http10, head.status);
        Ok(Head { status: head.status, framing: framing.or(Err(MalformedHead))?, len: head.len })
    });
    let head = head.map_err(|MalformedHead| ResponseFault::Malformed)?;
    if head.as_ref().map_or(input.len(), |head| head.len) > RESPONSE_HEAD {
        return Err(ResponseFault::TooLong);
    }
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oidc::limits;

    /// The response, received in pieces of this size: its status, body, or fault.
    fn receive(
        text: &[u8],
        size: usize,
        ends: Option<bool>,
    ) -> Result<Option<(u16, Vec<u8>)>, ResponseFault> {
        let mut buffer = vec![0; BUFFER];
        let mut reception = Reception::default();
        let mut got = None;
        for piece in text.chunks(size) {
            got = reception.receive(piece, &mut buffer)?;
        }
        if let Some(is_orderly) = ends {
            got = Some(reception.end(is_orderly)?);
        }
        Ok(got.map(|Received { status, len }| (status, buffer[..len].to_vec())))
    }

    fn each_size(text: &[u8], ends: Option<bool>) -> Result<Option<(u16, Vec<u8>)>, ResponseFault> {
        let whole = receive(text, usize::MAX, ends);
        for size in [1, 2, 7] {
            assert_eq!(receive(text, size, ends), whole);
        }
        whole
    }

    #[test]
    fn a_body_of_each_framing_is_received_however_it_is_cut() {
        for text in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x\r\nllo\r\n0\r\n\r\n",
            "HTTP/1.1 103 Early\r\nA: b\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        ] {
            assert_eq!(each_size(text.as_bytes(), None), Ok(Some((200, b"hello".to_vec()))));
        }
        let until_close = b"HTTP/1.1 200 OK\r\n\r\nhello";
        assert_eq!(each_size(until_close, None), Ok(None));
        assert_eq!(each_size(until_close, Some(true)), Ok(Some((200, b"hello".to_vec()))));
        assert_eq!(each_size(until_close, Some(false)), Err(ResponseFault::CutOff));
        let empty = b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(each_size(empty, None), Ok(Some((401, vec![]))));
        assert_eq!(each_size(b"HTTP/1.1 204 No\r\n\r\n", None), Ok(Some((204, vec![]))));
    }

    #[test]
    fn what_is_malformed_or_cut_off_is_a_fault() {
        for (text, want) in [
            ("HTTP/1.1 200 OK\nContent-Length: 5\n\nhello", ResponseFault::Malformed),
            ("HTTP/2 200\r\n\r\n", ResponseFault::Malformed),
            ("\r\nHTTP/1.1 200 OK\r\n\r\n", ResponseFault::Malformed),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
                ResponseFault::Malformed,
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
                ResponseFault::Malformed,
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
                ResponseFault::Malformed,
            ),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello!", ResponseFault::Malformed),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nx", ResponseFault::Malformed),
        ] {
            assert_eq!(each_size(text.as_bytes(), None), Err(want), "{text}");
        }
        for text in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        ] {
            assert_eq!(
                each_size(text.as_bytes(), Some(true)),
                Err(ResponseFault::CutOff),
                "{text}"
            );
        }
    }

    #[test]
    fn interim_responses_are_bounded_and_never_101() {
        let text = |n: usize| {
            let interim = "HTTP/1.1 100 Continue\r\n\r\n".repeat(n);
            interim + "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
        };
        let most = usize::from(INTERIM);
        assert_eq!(each_size(text(most).as_bytes(), None), Ok(Some((200, vec![]))));
        let more = text(most + 1);
        assert_eq!(each_size(more.as_bytes(), None), Err(ResponseFault::Malformed));
        let switch = text(1).replace("100", "101");
        assert_eq!(each_size(switch.as_bytes(), None), Err(ResponseFault::Malformed));
    }

    #[test]
    fn head_and_body_have_bounds() {
        let head = |n: usize| {
            let text = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nA: \r\n\r\n";
            text.replace("A: ", &format!("A: {}", "x".repeat(n - text.len())))
        };
        for size in [1000, usize::MAX] {
            let at = |n| receive(head(n).as_bytes(), size, None);
            assert_eq!(at(limits::RESPONSE_HEAD), Ok(Some((200, vec![]))));
            assert_eq!(at(limits::RESPONSE_HEAD + 1), Err(ResponseFault::TooLong));
            let endless = &head(200_000).into_bytes()[..190_000];
            assert_eq!(receive(endless, size, None), Err(ResponseFault::TooLong));
        }
        let body =
            |n: usize| format!("HTTP/1.1 200 OK\r\nContent-Length: {n}\r\n\r\n{}", "x".repeat(n));
        let until_close = |n: usize| format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(n));
        let chunked = |n: usize| {
            format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n",
                "1\r\nx\r\n".repeat(n)
            )
        };
        for size in [1000, usize::MAX] {
            for text in [&body as &dyn Fn(usize) -> String, &until_close, &chunked] {
                let full = receive(text(limits::RESPONSE_BODY).as_bytes(), size, Some(true));
                assert_eq!(full.unwrap().unwrap().1.len(), limits::RESPONSE_BODY);
                let more = receive(text(limits::RESPONSE_BODY + 1).as_bytes(), size, Some(true));
                assert_eq!(more, Err(ResponseFault::TooLong));
            }
        }
    }
}
