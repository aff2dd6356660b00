//! A tunnel through the egress proxy: CONNECT, and what the proxy says to it (RFC 9110 §9.3.6).

use super::limits::PROXY_READ;
use super::socket::{ReadOutcome, Socket};
use crate::http1::connect;
use crate::http1::head::ScanProgress;
use crate::http1::local_response::UpstreamFault;
use crate::process::egress::ConnectRequest;

/// A tunnel that is being opened.
pub struct Tunnel {
    /// The connection to the proxy.
    pub socket: Socket,
    /// Bytes of the request that have gone out.
    sent: usize,
    answer: Vec<u8>,
    progress: ScanProgress,
}

/// How far a tunnel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The proxy has not answered yet.
    Waiting,
    /// What is sent now goes to the upstream.
    Open,
}

impl Tunnel {
    /// Nothing has been asked yet.
    pub fn new(socket: Socket) -> Tunnel {
        Tunnel { socket, sent: 0, answer: Vec::new(), progress: ScanProgress::default() }
    }

    /// Moves on as far as it goes now.
    pub fn advance(&mut self, request: &ConnectRequest) -> Result<Progress, UpstreamFault> {
        // A proxy that takes no more shows why when it is read.
        while let Ok(sent @ 1..) = request.write_from(self.sent, &mut self.socket) {
            self.sent += sent;
        }
        loop {
            let mut bytes = [0; PROXY_READ];
            match self.socket.read(&mut bytes) {
                ReadOutcome::Bytes(n) => self.answer.extend_from_slice(&bytes[..n]),
                ReadOutcome::Nothing => return Ok(Progress::Waiting),
                ReadOutcome::End | ReadOutcome::Broken => {
                    return Err(UpstreamFault::ProxyBadResponse);
                }
            }
            if let Some(len) = connect::response(&self.answer, &mut self.progress)? {
                // Through a tunnel the client speaks first: whatever else has come is not the
                // upstream's.
                let sound = len == self.answer.len() && request.is_whole(self.sent);
                return if sound {
                    Ok(Progress::Open)
                } else {
                    Err(UpstreamFault::ProxyBadResponse)
                };
            }
        }
    }
}
