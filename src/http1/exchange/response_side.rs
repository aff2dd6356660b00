//! Bytes from the upstream.

use super::{BodyProgress, Continue, Exchange, ResponseStep, Rest, State, Transfer};
use crate::http1::chunked::ChunkFault;
use crate::http1::framing::{Body, Coding, Framing};
use crate::http1::gather::GatherList;
use crate::http1::head::{self, ScanProgress};
use crate::http1::limits;
use crate::http1::local_response::UpstreamFault;
use crate::http1::response::{self, Response, ResponseContext};

impl Exchange {
    /// Takes bytes from the upstream and returns the number of consumed bytes: one interim head, or
    /// everything that belongs to the response. `out` must be empty; it is filled with ranges of
    /// `input`. `reflects` is shown each head and each range of the body; it returns true to stop
    /// the exchange. Bytes that belong to no response are not consumed.
    pub fn receive_response(
        &mut self,
        input: &[u8],
        out: &mut GatherList,
        reflects: &mut impl FnMut(&[u8]) -> bool,
    ) -> (usize, ResponseStep) {
        let mut at = 0;
        let outcome = match self.state {
            State::Uploading(_) | State::Awaiting => {
                self.response_head(input, &mut at, out, reflects)
            }
            State::Responding { .. } => self.response_body(input, &mut at, out, reflects),
            State::Idle | State::Waiting(_) | State::Complete { .. } => Ok(()),
        };
        (at, outcome.map_or_else(ResponseStep::Fault, |()| ResponseStep::Forward))
    }

    fn response_head(
        &mut self,
        input: &[u8],
        at: &mut usize,
        out: &mut GatherList,
        reflects: &mut impl FnMut(&[u8]) -> bool,
    ) -> Result<(), UpstreamFault> {
        let mut progress = self.response_progress;
        let head = head::response(input, &mut progress, |head| {
            Ok(self.judge_response(&head, out, reflects))
        });
        match head.or(Err(UpstreamFault::BadResponse))? {
            None => {
                self.response_progress = progress;
                Ok(())
            }
            Some(response) => {
                let response = response?;
                self.response_progress = ScanProgress::default();
                *at = response.len;
                if response.status < 200 {
                    return Ok(());
                }
                self.response_body(input, at, out, reflects)
            }
        }
    }

    fn judge_response(
        &mut self,
        head: &head::ResponseHead<'_, '_>,
        out: &mut GatherList,
        reflects: &mut impl FnMut(&[u8]) -> bool,
    ) -> Result<Response, UpstreamFault> {
        if head.status == 101 {
            return Err(UpstreamFault::SwitchedProtocols);
        }
        if reflects(&head.input[..head.len]) {
            return Err(UpstreamFault::CredentialReflected);
        }
        if head.status < 200 {
            return self.judge_interim(head, out);
        }
        // After a final response before the end of the request, the upstream connection serves no
        // other request. An error ends the upload (RFC 9112 §9.5). This is decided before the head
        // is written, because the head says whether the client's connection stays open. After a
        // success or a redirect the upstream may still read: both directions continue until both
        // have ended.
        let rest = match &self.state {
            State::Uploading(body) => {
                self.upstream_closes = true;
                if head.status >= 400 {
                    Rest::of(&body.left, self.expectation)
                } else {
                    Rest::Upload(body.clone())
                }
            }
            State::Idle
            | State::Waiting(_)
            | State::Awaiting
            | State::Responding { .. }
            | State::Complete { .. } => Rest::None,
        };
        self.is_last |= matches!(rest, Rest::Discard);
        let response = self.judge_head(head, out)?;
        self.upstream_closes |= response.close || response.framing == Framing::UntilClose;
        self.status = Some(response.status);
        self.logged = response.logged;
        let coding = Coding::of(response.framing, self.http10);
        self.state = match Transfer::new(response.framing, coding) {
            Some(body) => State::Responding { body, rest },
            None => State::Complete { rest },
        };
        Ok(response)
    }

    fn judge_interim(
        &mut self,
        head: &head::ResponseHead<'_, '_>,
        out: &mut GatherList,
    ) -> Result<Response, UpstreamFault> {
        let response = self.judge_head(head, out)?;
        if head.status == 100 {
            match self.expectation {
                Continue::SentByUs => out.clear(),
                Continue::Owed => self.expectation = Continue::NotExpected,
                Continue::NotExpected => {}
            }
        }
        self.interim += 1;
        if self.interim > limits::INTERIM {
            return Err(UpstreamFault::BadResponse);
        }
        Ok(response)
    }

    fn judge_head(
        &self,
        head: &head::ResponseHead<'_, '_>,
        out: &mut GatherList,
    ) -> Result<Response, UpstreamFault> {
        let context = ResponseContext { http10: self.http10, close: self.is_last };
        let response =
            response::judge(head, context, out).map_err(|_| UpstreamFault::BadResponse)?;
        if response.is_encoded && !self.policy.allow_encoded_responses {
            return Err(UpstreamFault::Encoded);
        }
        Ok(response)
    }

    fn response_body(
        &mut self,
        input: &[u8],
        at: &mut usize,
        out: &mut GatherList,
        reflects: &mut impl FnMut(&[u8]) -> bool,
    ) -> Result<(), UpstreamFault> {
        let State::Responding { body, rest } = &mut self.state else {
            return Ok(());
        };
        let progress = body.forward(input, at, &mut self.bytes_out, out, |data| {
            if reflects(data) { Err(UpstreamFault::CredentialReflected) } else { Ok(()) }
        });
        if progress? == BodyProgress::Ended {
            self.state = State::Complete { rest: rest.clone() };
        }
        Ok(())
    }

    /// The upstream has ended its side of the connection. `is_orderly`: with close_notify or,
    /// without TLS, with FIN.
    pub fn receive_end(&mut self, is_orderly: bool, out: &mut GatherList) -> ResponseStep {
        match &self.state {
            State::Responding { body, rest }
                if is_orderly && matches!(body.left, Body::UntilClose) =>
            {
                body.write_end(out);
                self.state = State::Complete { rest: rest.clone() };
                ResponseStep::Forward
            }
            State::Idle
            | State::Waiting(_)
            | State::Uploading(_)
            | State::Awaiting
            | State::Responding { .. }
            | State::Complete { .. } => ResponseStep::Fault(UpstreamFault::Closed),
        }
    }
}

impl From<ChunkFault> for UpstreamFault {
    fn from(_: ChunkFault) -> UpstreamFault {
        UpstreamFault::BadResponse
    }
}
