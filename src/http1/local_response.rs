//! Refusals: why a request is answered here, and the answers, which are static text.

use core::fmt;

use super::gather::GatherList;

/// Why a request is answered here and not upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// The head is not HTTP/1.x as RFC 9112 writes it.
    Malformed,
    /// Host is missing, repeated or unreadable.
    InvalidHost,
    /// Content-Length and Transfer-Encoding do not say one thing (RFC 9112 §6.3).
    InvalidFraming,
    /// The chunked body is broken (RFC 9112 §7.1).
    InvalidChunk,
    /// Nothing is served there.
    RouteNotAllowed,
    /// Host is not a loopback name.
    HostNotAllowed,
    /// Origin: a web page asks.
    OriginNotAllowed,
    /// Sec-Fetch-Site: another site's web page asks.
    CrossSite,
    /// The connection belongs to a local user who may not use the relay.
    UserNotAllowed,
    /// Authorization is not the client token.
    ClientToken,
    /// As many requests have been forwarded as may be.
    RequestLimit,
    /// No complete head, or no more body, in time.
    Timeout,
    /// The request line is too long.
    UriTooLong,
    /// An expectation other than 100-continue.
    ExpectationFailed,
    /// A WebSocket is asked for.
    WebSocket,
    /// The head is too long.
    HeadTooLarge,
    /// The head has too many fields.
    TooManyFields,
    /// Every connection slot is taken.
    TooManyConnections,
    /// A version that is neither 1.0 nor 1.1.
    VersionNotSupported,
}

/// A response of our own: everything in it is static text.
#[derive(Clone, Copy, Debug)]
pub struct LocalResponse {
    /// Status code.
    pub status: u16,
    /// Status code and reason phrase.
    pub status_line: &'static str,
    /// Field lines beyond the usual ones, each with its CRLF.
    pub fields: &'static str,
    /// `error.code`.
    pub code: &'static str,
    /// `error.message`, but for a number.
    pub message: &'static str,
    /// The status that the egress proxy answered with, which ends the message.
    pub said: Option<u16>,
}

impl fmt::Display for LocalResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message)?;
        self.said.map_or(Ok(()), |said| write!(f, "{SAID}{said}."))
    }
}

/// What stands between a message and the number at its end.
const SAID: &str = " It said ";

impl Reject {
    /// The answer that says so.
    pub const fn response(self) -> LocalResponse {
        let (status, status_line, code, message) = match self {
            Reject::Malformed => (
                400,
                "400 Bad Request",
                "malformed_request",
                "The request is not well-formed HTTP/1.1.",
            ),
            Reject::InvalidHost => (
                400,
                "400 Bad Request",
                "invalid_host",
                "The request needs exactly one valid Host field.",
            ),
            Reject::InvalidFraming => (
                400,
                "400 Bad Request",
                "invalid_framing",
                "Content-Length or Transfer-Encoding is repeated, unreadable, or contradicted.",
            ),
            Reject::InvalidChunk => {
                (400, "400 Bad Request", "invalid_chunk", "The chunked request body is malformed.")
            }
            Reject::RouteNotAllowed => (
                403,
                "403 Forbidden",
                "route_not_allowed",
                "This relay serves POST /v1/responses and nothing else.",
            ),
            Reject::HostNotAllowed => (
                403,
                "403 Forbidden",
                "host_not_allowed",
                "The Host field must name 127.0.0.1, localhost or [::1].",
            ),
            Reject::OriginNotAllowed => (
                403,
                "403 Forbidden",
                "origin_not_allowed",
                "Web pages may not use this relay: the request has an Origin field.",
            ),
            Reject::CrossSite => (
                403,
                "403 Forbidden",
                "cross_site_request",
                "Web pages may not use this relay: Sec-Fetch-Site names another site.",
            ),
            Reject::UserNotAllowed => (
                403,
                "403 Forbidden",
                "user_not_allowed",
                "The local user of this connection is not one that --allow-uid names.",
            ),
            Reject::ClientToken => (
                401,
                "401 Unauthorized",
                "client_token_required",
                "This relay asks for its client token: Authorization: Bearer TOKEN.",
            ),
            Reject::RequestLimit => (
                429,
                "429 Too Many Requests",
                "request_limit_reached",
                "This relay has forwarded as many requests as --max-requests allows.",
            ),
            Reject::Timeout => (
                408,
                "408 Request Timeout",
                "request_timeout",
                "The request did not arrive in time.",
            ),
            Reject::UriTooLong => {
                (414, "414 URI Too Long", "uri_too_long", "The request line is too long.")
            }
            Reject::ExpectationFailed => (
                417,
                "417 Expectation Failed",
                "expectation_failed",
                "The only expectation that can be met is 100-continue.",
            ),
            Reject::WebSocket => (
                426,
                "426 Upgrade Required",
                "websocket_not_supported",
                "WebSockets are not relayed: use POST /v1/responses with HTTP/1.1.",
            ),
            Reject::HeadTooLarge => (
                431,
                "431 Request Header Fields Too Large",
                "head_too_large",
                "The request head is too large.",
            ),
            Reject::TooManyFields => (
                431,
                "431 Request Header Fields Too Large",
                "too_many_fields",
                "The request head has too many fields.",
            ),
            Reject::TooManyConnections => (
                503,
                "503 Service Unavailable",
                "too_many_connections",
                "Every connection slot of this relay is taken; try again later.",
            ),
            Reject::VersionNotSupported => (
                505,
                "505 HTTP Version Not Supported",
                "version_not_supported",
                "This relay speaks HTTP/1.1 and HTTP/1.0.",
            ),
        };
        let fields = match self {
            // RFC 9110 §15.5.22 wants the protocol named that would do.
            Reject::WebSocket => "Upgrade: HTTP/1.1\r\nConnection: Upgrade\r\n",
            Reject::TooManyConnections => "Retry-After: 1\r\n",
            // RFC 9110 §15.5.2 wants the scheme named.
            Reject::ClientToken => "WWW-Authenticate: Bearer\r\n",
            _ => "",
        };
        LocalResponse { status, status_line, fields, code, message, said: None }
    }

    /// Where the request ends is known, so the connection may be used again.
    pub const fn keeps_framing(self) -> bool {
        matches!(
            self,
            Reject::RouteNotAllowed
                | Reject::HostNotAllowed
                | Reject::OriginNotAllowed
                | Reject::CrossSite
                | Reject::ClientToken
                | Reject::RequestLimit
                | Reject::WebSocket
        )
    }
}

/// A response of our own, with its JSON body unless it answers a HEAD.
pub(super) fn answer(response: &LocalResponse, close: bool, is_head: bool, out: &mut GatherList) {
    const BODY: [&str; 3] =
        ["{\"error\":{\"message\":\"", "\",\"type\":\"proxy_error\",\"code\":\"", "\"}}\n"];
    let said = if response.said.is_some() { SAID } else { "" };
    let (before, behind) = ([BODY[0], response.message, said], [BODY[1], response.code, BODY[2]]);
    out.text(b"HTTP/1.1 ");
    out.text(response.status_line.as_bytes());
    out.text(b"\r\nContent-Type: application/json\r\n");
    out.date();
    out.text(response.fields.as_bytes());
    if close {
        out.text(b"Connection: close\r\n");
    }
    out.text(b"Content-Length: ");
    // A status has three digits, and a full stop stands behind it.
    let number = if response.said.is_some() { "100.".len() as u64 } else { 0 };
    out.decimal(before.iter().chain(&behind).map(|part| part.len() as u64).sum::<u64>() + number);
    out.text(b"\r\n\r\n");
    if !is_head {
        before.iter().for_each(|part| out.text(part.as_bytes()));
        if let Some(said) = response.said {
            out.decimal(u64::from(said));
            out.text(b".");
        }
        behind.iter().for_each(|part| out.text(part.as_bytes()));
    }
}
