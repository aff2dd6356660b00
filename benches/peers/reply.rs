//! A response as the client reads it: every byte is compared with the bytes of the upstream.

use codex_responses_api_proxy::http1::chunked::ChunkScanner;

use crate::upstream::Answer;
use crate::wire::{self, is_body, read_timed_event};

/// The progress of a response.
#[derive(Default)]
pub struct Reply {
    head: Vec<u8>,
    framing: Option<Framing>,
    /// The bytes of the body so far.
    pub at: u64,
    /// An event that is not complete yet.
    event: Vec<u8>,
    /// Whether the response is complete and as requested.
    pub whole: bool,
    /// What is wrong with it.
    pub fault: Option<&'static str>,
}

enum Framing {
    Length(u64),
    Chunked(ChunkScanner),
}

impl Reply {
    /// Resets the state for the next response.
    pub fn clear(&mut self) {
        self.head.clear();
        self.event.clear();
        (self.framing, self.at, self.whole, self.fault) = (None, 0, false, None);
    }

    /// Reads the next bytes, which arrived at `now`, and adds the delays of events to `delays`.
    pub fn take(&mut self, bytes: &[u8], answer: Answer, now: u64, delays: &mut Vec<u64>) {
        let result = if self.framing.is_some() {
            self.body(bytes, answer, now, delays)
        } else {
            self.head.extend_from_slice(bytes);
            self.head().and_then(|end| {
                let head = std::mem::take(&mut self.head);
                let result = self.body(&head[end..], answer, now, delays);
                self.head = head;
                result
            })
        };
        self.fault = self.fault.or(result.err());
    }

    /// Returns the end of the head, or of the bytes so far while the head is incomplete. Sets the
    /// framing once the head is complete.
    fn head(&mut self) -> Result<usize, &'static str> {
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut fields);
        let status = response.parse(&self.head).map_err(|_| "a head that is none")?;
        let httparse::Status::Complete(end) = status else { return Ok(self.head.len()) };
        if response.code != Some(200) {
            return Err("a status other than 200");
        }
        for field in response.headers.iter() {
            if field.name.eq_ignore_ascii_case("transfer-encoding") {
                self.framing = Some(Framing::Chunked(ChunkScanner::default()));
            } else if field.name.eq_ignore_ascii_case("content-length") {
                let length = std::str::from_utf8(field.value).ok().and_then(|v| v.parse().ok());
                self.framing = length.map(Framing::Length);
            }
        }
        self.framing.as_ref().map(|_| end).ok_or("an answer without a length")
    }

    fn body(
        &mut self,
        mut bytes: &[u8],
        answer: Answer,
        now: u64,
        delays: &mut Vec<u64>,
    ) -> Result<(), &'static str> {
        while !bytes.is_empty() && !self.whole {
            let (skip, data) = match &mut self.framing {
                Some(Framing::Chunked(scanner)) => {
                    let step = scanner.step(bytes).map_err(|_| "chunks that are none")?;
                    self.whole = step.end;
                    (step.framing, step.data)
                }
                _ => (0, bytes.len()),
            };
            let (piece, rest) = bytes[skip..].split_at(data);
            bytes = rest;
            match answer {
                Answer::Timed(..) => self.events(piece, now, delays)?,
                _ if !is_body(self.at, piece) => return Err("a body other than was sent"),
                _ => {}
            }
            self.at += data as u64;
            self.whole |=
                matches!(self.framing, Some(Framing::Length(length)) if length == self.at);
        }
        if self.whole && self.at != answer.size() {
            return Err("a body of another length than was sent");
        }
        Ok(())
    }

    fn events(
        &mut self,
        mut piece: &[u8],
        now: u64,
        delays: &mut Vec<u64>,
    ) -> Result<(), &'static str> {
        let mut number = (self.at as usize - self.event.len()) as u64 / wire::TIMED as u64;
        while !piece.is_empty() {
            let (part, rest) = piece.split_at(piece.len().min(wire::TIMED - self.event.len()));
            self.event.extend_from_slice(part);
            piece = rest;
            if self.event.len() == wire::TIMED {
                let left = read_timed_event(&self.event, number).ok_or("an event that is wrong")?;
                delays.push(now.saturating_sub(left));
                number += 1;
                self.event.clear();
            }
        }
        Ok(())
    }
}
