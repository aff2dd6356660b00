//! The egress proxy's response to CONNECT.

use super::head::{self, ScanProgress};
use super::local_response::UpstreamFault;

/// Parses the response. `Ok(None)`: more bytes are needed. `Ok(Some(n))`: the tunnel is open, and
/// the head is `n` bytes long.
pub fn response(input: &[u8], progress: &mut ScanProgress) -> Result<Option<usize>, UpstreamFault> {
    // The framing of a successful response means nothing (RFC 9110 §9.3.6).
    let head = head::response(input, progress, |head| Ok((head.status, head.len)));
    match head.or(Err(UpstreamFault::ProxyBadResponse))? {
        None => Ok(None),
        Some((200..=299, len)) => Ok(Some(len)),
        Some((407, _)) => Err(UpstreamFault::ProxyAuthRequired),
        // The relay expects no interim response to CONNECT.
        Some((..200, _)) => Err(UpstreamFault::ProxyBadResponse),
        Some((status, _)) => Err(UpstreamFault::ProxyRefused(status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_to_connect_are_told_apart() {
        use UpstreamFault::{ProxyAuthRequired, ProxyBadResponse, ProxyRefused};
        for (text, want) in [
            ("", Ok(None)),
            ("HTTP/1.1 200", Ok(None)),
            ("HTTP/1.1 200 OK\r\nVia: x\r\n", Ok(None)),
            ("HTTP/1.1 200 Connection established\r\n\r\n", Ok(Some(39))),
            ("HTTP/1.0 200 OK\r\n\r\n", Ok(Some(19))),
            ("HTTP/1.1 204 Fine\r\nContent-Length: 5\r\n\r\nhello", Ok(Some(40))),
            ("HTTP/1.1 407 No\r\n\r\n", Err(ProxyAuthRequired)),
            ("HTTP/1.1 403 No\r\n\r\n", Err(ProxyRefused(403))),
            ("HTTP/1.1 302 There\r\nLocation: http://x/\r\n\r\n", Err(ProxyRefused(302))),
            ("HTTP/1.1 502 No\r\n\r\n", Err(ProxyRefused(502))),
            ("HTTP/1.1 100 Continue\r\n\r\n", Err(ProxyBadResponse)),
            ("HTTP/1.1 101 Switching Protocols\r\n\r\n", Err(ProxyBadResponse)),
            ("HTTP/2 200\r\n\r\n", Err(ProxyBadResponse)),
            ("HTTP/1.1 200 OK\n\n", Err(ProxyBadResponse)),
            ("HTTP/1.1 200 OK\r\nX : y\r\n\r\n", Err(ProxyBadResponse)),
            ("SSH-2.0-x\r\n", Err(ProxyBadResponse)),
            ("\r\nHTTP/1.1 200 OK\r\n\r\n", Err(ProxyBadResponse)),
        ] {
            assert_eq!(response(text.as_bytes(), &mut ScanProgress::default()), want, "{text}");
        }
    }
}
