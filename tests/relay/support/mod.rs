//! What every test stands on: the real binary, real upstreams, raw clients.

pub mod client;
pub mod relay;
pub mod upstream;

use std::time::Duration;

/// No single step of a test takes longer; a step that does is a failure.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub use client::{Client, End, Response, body, post};
pub use relay::Relay;
pub use upstream::{Peer, Request, Upstream, certs};

/// An answer with a body of known length.
pub fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// Bytes that differ from place to place.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0] | 1).collect()
}
