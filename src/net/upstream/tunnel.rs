//! A tunnel through the egress proxy: the CONNECT request and its response (RFC 9110 §9.3.6).

use crate::http1::connect;
use crate::http1::head::ScanProgress;
use crate::http1::local_response::UpstreamFault;
use crate::net::limits::PROXY_READ;
use crate::net::socket::{ReadOutcome, Socket};
use crate::process::egress::ConnectRequest;

/// A tunnel that is being opened.
pub(super) struct Tunnel {
    /// The connection to the proxy.
    pub(super) socket: Socket,
    /// Bytes of the request that have been sent.
    sent: usize,
    response: Vec<u8>,
    progress: ScanProgress,
}

/// The state of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TunnelProgress {
    /// The proxy has not responded yet.
    Waiting,
    /// The tunnel leads to the upstream.
    Open,
}

impl Tunnel {
    /// A tunnel whose request has not been sent yet.
    pub(super) fn new(socket: Socket) -> Tunnel {
        Tunnel { socket, sent: 0, response: Vec::new(), progress: ScanProgress::default() }
    }

    /// Advances as far as possible without waiting.
    pub(super) fn advance(
        &mut self,
        request: &ConnectRequest,
    ) -> Result<TunnelProgress, UpstreamFault> {
        // If a write fails, the response of the proxy shows the reason.
        while let Ok(sent @ 1..) = request.write_from(self.sent, &mut self.socket) {
            self.sent += sent;
        }
        loop {
            let mut bytes = [0; PROXY_READ];
            match self.socket.read(&mut bytes) {
                ReadOutcome::Bytes(n) => self.response.extend_from_slice(&bytes[..n]),
                ReadOutcome::Nothing => return Ok(TunnelProgress::Waiting),
                ReadOutcome::End | ReadOutcome::Broken => {
                    return Err(UpstreamFault::ProxyBadResponse);
                }
            }
            if let Some(len) = connect::response(&self.response, &mut self.progress)? {
                // In a tunnel the relay speaks first, so bytes after the response are not from the
                // upstream.
                let is_well_formed = len == self.response.len() && request.is_whole(self.sent);
                return if is_well_formed {
                    Ok(TunnelProgress::Open)
                } else {
                    Err(UpstreamFault::ProxyBadResponse)
                };
            }
        }
    }
}
