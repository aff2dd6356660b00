//! What the upstream sends: the response side of an exchange.

use super::{Continue, Exchange, RequestSide, ResponseSide, ResponseStep, add_data};
use crate::http1::framing::{Body, Framing};
use crate::http1::gather::GatherList;
use crate::http1::head::{self, ScanProgress};
use crate::http1::limits;
use crate::http1::local_response::UpstreamFault;
use crate::http1::response::{self, Coding, Response, ResponseContext};

impl Exchange {
    /// Reads upstream bytes and returns how many are used up: one interim head, or all that belongs
    /// to the response. `out` must be empty and is filled with runs of `input`. `reflects` is shown
    /// each head and the body as they come and answers true to stop the exchange.
    pub fn receive_response(
        &mut self,
        input: &[u8],
        out: &mut GatherList,
        reflects: &mut impl FnMut(&[u8]) -> bool,
    ) -> (usize, ResponseStep) {
        let mut at = 0;
        if let ResponseSide::Head = self.response {
            let mut progress = self.response_progress;
            let head = head::response(input, &mut progress, |head| {
                Ok(self.judge_response(&head, out, reflects))
            });
            match head {
                Ok(None) => {
                    self.response_progress = progress;
                    return (0, ResponseStep::Forward);
                }
                Ok(Some(Ok(response))) => {
                    self.response_progress = ScanProgress::default();
                    at = response.len;
                    if response.status < 200 {
                        return (at, ResponseStep::Forward);
                    }
                }
                Ok(Some(Err(fault))) => return (0, ResponseStep::Fault(fault)),
                Err(_) => return (0, ResponseStep::Fault(UpstreamFault::BadResponse)),
            }
        }
        match self.response_body(input, &mut at, out, reflects) {
            Ok(()) => (at, ResponseStep::Forward),
            Err(fault) => (at, ResponseStep::Fault(fault)),
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
        let interim = head.status < 200;
        // A final response before the request has ended: that connection serves no other request. An
        // error ends the upload (RFC 9112 §9.5), which is settled before the head is written, since
        // the head says whether the client's connection goes on. Behind a success or a redirect the
        // upstream may still read: both directions flow until both have ended.
        if !interim && let RequestSide::Body(body) = &self.request {
            self.upstream_close = true;
            if head.status >= 400 {
                let body = body.clone();
                self.drop_body(&body, self.owes_continue());
            }
        }
        let manner = ResponseContext { http10: self.http10, close: self.close };
        let response =
            response::judge(head, manner, out).map_err(|_| UpstreamFault::BadResponse)?;
        if response.is_encoded && !self.policy.allow_encoded_responses {
            return Err(UpstreamFault::Encoded);
        }
        if interim {
            if head.status == 100 {
                match self.expectation {
                    Continue::SentByUs => out.clear(),
                    Continue::Owed => self.expectation = Continue::NotExpected,
                    Continue::NotExpected => {}
                }
            }
            self.interim += 1;
            return if self.interim > limits::INTERIM {
                Err(UpstreamFault::BadResponse)
            } else {
                Ok(response)
            };
        }
        self.upstream_close |= response.close || response.framing == Framing::UntilClose;
        self.coding = response::coding(response.framing, self.http10);
        self.status = Some(response.status);
        self.logged = response.logged;
        let body = Body::new(response.framing);
        self.response =
            if body.is_end() { ResponseSide::Complete } else { ResponseSide::Body(body) };
        Ok(response)
    }

    fn response_body(
        &mut self,
        input: &[u8],
        at: &mut usize,
        out: &mut GatherList,
        reflects: &mut impl FnMut(&[u8]) -> bool,
    ) -> Result<(), UpstreamFault> {
        let ResponseSide::Body(body) = &mut self.response else {
            return Ok(());
        };
        let chunked = self.coding == Coding::Chunked;
        while *at < input.len() && !out.is_full() {
            let step = body.step(&input[*at..]).map_err(|_| UpstreamFault::BadResponse)?;
            *at += step.framing;
            if step.data > 0 {
                if reflects(&input[*at..*at + step.data]) {
                    return Err(UpstreamFault::CredentialReflected);
                }
                self.bytes_out += step.data as u64;
                add_data(input, *at, step.data, chunked, out);
                *at += step.data;
            }
            if step.end {
                if chunked {
                    out.text(b"0\r\n\r\n");
                }
                self.response = ResponseSide::Complete;
                break;
            }
        }
        Ok(())
    }

    /// The upstream will send no more. `clean`: it said so itself (close_notify, or a plain FIN).
    pub fn receive_end(&mut self, clean: bool, out: &mut GatherList) -> ResponseStep {
        match &self.response {
            ResponseSide::Body(Body::UntilClose) if clean => {
                if self.coding == Coding::Chunked {
                    out.text(b"0\r\n\r\n");
                }
                self.response = ResponseSide::Complete;
                ResponseStep::Forward
            }
            _ => ResponseStep::Fault(UpstreamFault::Closed),
        }
    }
}
