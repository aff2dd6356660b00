//! Every local response: its reason, its status and its text.

use core::fmt;

use super::gather::GatherList;

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// The head is not HTTP/1.x as RFC 9112 defines it.
    Malformed,
    /// Host is missing, repeated or malformed.
    InvalidHost,
    /// Content-Length and Transfer-Encoding contradict each other or are malformed (RFC 9112 §6.3).
    InvalidFraming,
    /// The chunked body is malformed (RFC 9112 §7.1).
    InvalidChunk,
    /// The route is not the one that is served.
    RouteNotAllowed,
    /// Host does not name this machine.
    HostNotAllowed,
    /// The request has an Origin field: a web page sent it.
    OriginNotAllowed,
    /// Sec-Fetch-Site: another site's web page sent the request.
    CrossSite,
    /// The connection belongs to a local user who may not use the relay.
    UserNotAllowed,
    /// Authorization is not the client token.
    ClientToken,
    /// `--max-requests` requests have been forwarded.
    RequestLimit,
    /// The key is older than `--key-max-age`.
    KeyExpired,
    /// `--github-oidc`: the key has expired, and it could not be renewed.
    RenewalUnavailable,
    /// The head or the next part of the body did not arrive in time, or its unfinished head gave way
    /// to other connections.
    Timeout,
    /// The request line is too long.
    UriTooLong,
    /// Expect is something other than 100-continue.
    ExpectationFailed,
    /// The client wants to open a WebSocket.
    WebSocket,
    /// The head is too long.
    HeadTooLarge,
    /// The head has too many fields.
    TooManyFields,
    /// Every connection slot is taken, or a whole head that waited for the upstream gave way because
    /// all heads together were too large.
    TooManyConnections,
    /// The version is neither 1.0 nor 1.1.
    VersionNotSupported,
}

/// Why there is no response from the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamFault {
    /// The name does not resolve.
    Dns,
    /// Every address refused the connection.
    Refused,
    /// No address can be reached.
    Unreachable,
    /// No descriptor is left for the connection.
    OutOfDescriptors,
    /// The connector process has ended.
    ConnectorFailed,
    /// A secret would go in plaintext to a process of this machine that is not known to belong to a
    /// trusted user.
    NotTrusted,
    /// The certificate is not signed by a trusted issuer.
    TlsUnknownIssuer,
    /// The certificate is for another name.
    TlsWrongName,
    /// The certificate is expired or not yet valid.
    TlsExpired,
    /// The certificate is not valid for another reason.
    TlsBadCertificate,
    /// The upstream requires a client certificate.
    TlsClientCertificate,
    /// The TLS handshake failed in some other way.
    TlsFailed,
    /// No usable connection in time.
    ConnectTimeout,
    /// The connection ended before the response was complete.
    Closed,
    /// The response is not well-formed HTTP/1.x.
    BadResponse,
    /// 101, although the request asked for no other protocol.
    SwitchedProtocols,
    /// No final response in time.
    Timeout,
    /// The response contains the key.
    CredentialReflected,
    /// The request's key was replaced so often that the relay can no longer search the response for
    /// it.
    KeyReplaced,
    /// The response is encoded, so the key could not be found in it.
    Encoded,
    /// The egress proxy's name does not resolve.
    ProxyDns,
    /// The egress proxy cannot be reached.
    ProxyUnreachable,
    /// The egress proxy requires credentials, or other credentials.
    ProxyAuthRequired,
    /// The egress proxy opens no tunnel and responds with this status.
    ProxyRefused(u16),
    /// The egress proxy's response to CONNECT is malformed or missing.
    ProxyBadResponse,
    /// The egress proxy opened no tunnel in time.
    ProxyTimeout,
}

/// A response that the relay makes itself. It consists of static text and at most one number.
#[derive(Clone, Copy, Debug)]
pub struct LocalResponse {
    /// Status code and reason phrase.
    pub status_line: &'static str,
    /// Field lines beyond the usual ones, each with its CRLF.
    fields: &'static str,
    /// `error.code`.
    pub code: &'static str,
    /// `error.message`, up to the proxy's status.
    pub message: &'static str,
    /// The status with which the egress proxy refused. The message ends with it.
    proxy_status: Option<u16>,
}

/// The reason for a local response.
#[derive(Clone, Copy)]
enum Cause {
    Reject(Reject),
    Fault(UpstreamFault),
}

/// Status line, `error.code`, `error.message`.
type Row = (&'static str, &'static str, &'static str);

/// The table.
#[rustfmt::skip]
#[inline(always)]
const fn row(cause: Cause) -> Row {
    use Cause::{Fault, Reject};
    use self::Reject as R;
    use self::UpstreamFault as F;
    match cause {
        Reject(R::Malformed) => ("400 Bad Request", "malformed_request",
            "The request is not well-formed HTTP/1.1."),
        Reject(R::InvalidHost) => ("400 Bad Request", "invalid_host",
            "The request needs exactly one valid Host field."),
        Reject(R::InvalidFraming) => ("400 Bad Request", "invalid_framing",
            "Content-Length or Transfer-Encoding is repeated or malformed, or one contradicts the other."),
        Reject(R::InvalidChunk) => ("400 Bad Request", "invalid_chunk",
            "The chunked request body is malformed."),
        Reject(R::RouteNotAllowed) => ("403 Forbidden", "route_not_allowed",
            "This relay serves POST /v1/responses and nothing else."),
        Reject(R::HostNotAllowed) => ("403 Forbidden", "host_not_allowed",
            "The Host field must name 127.0.0.1, localhost or [::1]."),
        Reject(R::OriginNotAllowed) => ("403 Forbidden", "origin_not_allowed",
            "Web pages may not use this relay: the request has an Origin field."),
        Reject(R::CrossSite) => ("403 Forbidden", "cross_site_request",
            "Web pages may not use this relay: Sec-Fetch-Site names another site."),
        Reject(R::UserNotAllowed) => ("403 Forbidden", "user_not_allowed",
            "--allow-uid does not name the local user of this connection."),
        Reject(R::ClientToken) => ("401 Unauthorized", "client_token_required",
            "This relay requires its client token: Authorization: Bearer TOKEN."),
        Reject(R::RequestLimit) => ("429 Too Many Requests", "request_limit_reached",
            "This relay has forwarded as many requests as --max-requests allows."),
        Reject(R::KeyExpired) => ("503 Service Unavailable", "key_expired",
            "The key is older than --key-max-age, and no fresh one has come; try again later."),
        Reject(R::RenewalUnavailable) => ("503 Service Unavailable", "renewal_unavailable",
            "The access token has expired, and it could not be renewed; try again later."),
        Reject(R::Timeout) => ("408 Request Timeout", "request_timeout",
            "The request did not arrive in time."),
        Reject(R::UriTooLong) => ("414 URI Too Long", "uri_too_long",
            "The request line is too long."),
        Reject(R::ExpectationFailed) => ("417 Expectation Failed", "expectation_failed",
            "The only expectation that can be met is 100-continue."),
        Reject(R::WebSocket) => ("426 Upgrade Required", "websocket_not_supported",
            "WebSockets are not relayed: use POST /v1/responses with HTTP/1.1."),
        Reject(R::HeadTooLarge) => ("431 Request Header Fields Too Large", "head_too_large",
            "The request head is too large."),
        Reject(R::TooManyFields) => ("431 Request Header Fields Too Large", "too_many_fields",
            "The request head has too many fields."),
        Reject(R::TooManyConnections) => ("503 Service Unavailable", "too_many_connections",
            "Every connection slot of this relay is taken; try again later."),
        Reject(R::VersionNotSupported) => ("505 HTTP Version Not Supported", "version_not_supported",
            "This relay speaks HTTP/1.1 and HTTP/1.0."),

        Fault(F::Dns) => ("502 Bad Gateway", "upstream_dns_failed",
            "The upstream's name could not be resolved."),
        Fault(F::Refused) => ("502 Bad Gateway", "upstream_refused",
            "The upstream refused the connection."),
        Fault(F::Unreachable) => ("502 Bad Gateway", "upstream_unreachable",
            "The upstream could not be reached."),
        Fault(F::OutOfDescriptors) => ("502 Bad Gateway", "out_of_descriptors",
            "No file descriptor is left for a connection to the upstream."),
        Fault(F::ConnectorFailed) => ("502 Bad Gateway", "connector_failed",
            "The connector has ended unexpectedly, so the relay ends too. Start it again."),
        Fault(F::NotTrusted) => ("502 Bad Gateway", "upstream_not_trusted",
            "Nothing was sent: the program that listens at the loopback address of the upstream, or \
             of the egress proxy, does not belong to a user whom the relay trusts. If it is the right \
             program, name its user with --upstream-uid; otherwise end it."),
        Fault(F::TlsUnknownIssuer) => ("502 Bad Gateway", "upstream_tls_unknown_issuer",
            "The upstream's certificate has an unknown issuer; name a private CA with --ca-file."),
        Fault(F::TlsWrongName) => ("502 Bad Gateway", "upstream_tls_wrong_name",
            "The upstream's certificate is not valid for the name in --upstream-url."),
        Fault(F::TlsExpired) => ("502 Bad Gateway", "upstream_tls_expired",
            "The upstream's certificate is expired or not yet valid."),
        Fault(F::TlsBadCertificate) => ("502 Bad Gateway", "upstream_tls_bad_certificate",
            "The certificate of the upstream, or of one of its issuers, is not valid for this use."),
        Fault(F::TlsClientCertificate) => ("502 Bad Gateway", "upstream_tls_client_certificate",
            "The upstream requires a client certificate, and this relay has none."),
        Fault(F::TlsFailed) => ("502 Bad Gateway", "upstream_tls_failed",
            "The TLS handshake with the upstream failed."),
        Fault(F::ConnectTimeout) => ("504 Gateway Timeout", "upstream_connect_timeout",
            "No connection to the upstream could be made in time."),
        Fault(F::Closed) => ("502 Bad Gateway", "upstream_closed",
            "The upstream closed the connection before it responded."),
        Fault(F::BadResponse) => ("502 Bad Gateway", "upstream_bad_response",
            "The upstream's response is not well-formed HTTP/1.1."),
        Fault(F::SwitchedProtocols) => ("502 Bad Gateway", "upstream_switched_protocols",
            "The upstream responded 101 Switching Protocols, which is not relayed."),
        Fault(F::Timeout) => ("504 Gateway Timeout", "upstream_timeout",
            "The upstream did not respond within --upstream-timeout."),
        Fault(F::CredentialReflected) => ("502 Bad Gateway", "credential_reflected",
            "The upstream's response was withheld: it contains the credential."),
        Fault(F::KeyReplaced) => ("502 Bad Gateway", "key_replaced",
            "The key of this request was replaced too often for its response to be searched for it."),
        Fault(F::Encoded) => ("502 Bad Gateway", "upstream_encoded",
            "The upstream's response was withheld: it is encoded, so the credential could not be \
             found in it."),
        Fault(F::ProxyDns) => ("502 Bad Gateway", "proxy_dns_failed",
            "The name of the egress proxy could not be resolved."),
        Fault(F::ProxyUnreachable) => ("502 Bad Gateway", "proxy_unreachable",
            "The egress proxy could not be reached."),
        Fault(F::ProxyAuthRequired) => ("502 Bad Gateway", "proxy_auth_required",
            "The egress proxy requires credentials other than those in its URL (407)."),
        Fault(F::ProxyRefused(_)) => ("502 Bad Gateway", "proxy_refused",
            "The egress proxy refused to connect to the upstream."),
        Fault(F::ProxyBadResponse) => ("502 Bad Gateway", "proxy_bad_response",
            "The egress proxy sent no well-formed response to CONNECT."),
        Fault(F::ProxyTimeout) => ("504 Gateway Timeout", "proxy_timeout",
            "The egress proxy made no connection to the upstream in time."),
    }
}

impl Reject {
    /// The local response to the client.
    pub const fn response(self) -> LocalResponse {
        let fields = match self {
            // RFC 9110 §15.5.22: the response names a protocol that is supported.
            Reject::WebSocket => "Upgrade: HTTP/1.1\r\nConnection: Upgrade\r\n",
            Reject::TooManyConnections => "Retry-After: 1\r\n",
            Reject::KeyExpired | Reject::RenewalUnavailable => "Retry-After: 5\r\n",
            // RFC 9110 §15.5.2: the response names the authentication scheme.
            Reject::ClientToken => "WWW-Authenticate: Bearer\r\n",
            _ => "",
        };
        LocalResponse { fields, ..LocalResponse::new(Cause::Reject(self)) }
    }

    /// The end of the request is known, so the connection can be used again.
    pub const fn keeps_framing(self) -> bool {
        matches!(
            self,
            Reject::RouteNotAllowed
                | Reject::HostNotAllowed
                | Reject::OriginNotAllowed
                | Reject::CrossSite
                | Reject::ClientToken
                | Reject::RequestLimit
                | Reject::KeyExpired
                | Reject::RenewalUnavailable
                | Reject::WebSocket
        )
    }
}

impl UpstreamFault {
    /// The same fault on the way to the egress proxy.
    pub const fn of_proxy(self) -> UpstreamFault {
        match self {
            UpstreamFault::Dns => UpstreamFault::ProxyDns,
            UpstreamFault::Refused | UpstreamFault::Unreachable => UpstreamFault::ProxyUnreachable,
            UpstreamFault::ConnectTimeout => UpstreamFault::ProxyTimeout,
            other => other,
        }
    }

    /// The local response to the client.
    pub const fn response(self) -> LocalResponse {
        let proxy_status = match self {
            UpstreamFault::ProxyRefused(status) => Some(status),
            _ => None,
        };
        LocalResponse { proxy_status, ..LocalResponse::new(Cause::Fault(self)) }
    }
}

/// The text between a message and the proxy's status.
const PROXY_STATUS: &str = " Its status is ";

impl LocalResponse {
    #[inline(always)]
    const fn new(cause: Cause) -> LocalResponse {
        let (status_line, code, message) = row(cause);
        LocalResponse { status_line, fields: "", code, message, proxy_status: None }
    }

    /// The status code: the first three digits of the status line.
    pub const fn status(&self) -> u16 {
        match self.status_line.as_bytes() {
            [a, b, c, ..] => 100 * digit(*a) + 10 * digit(*b) + digit(*c),
            _ => 0,
        }
    }

    /// Writes the response. `close`: the connection ends after it. `is_head`: the request was HEAD,
    /// so the JSON body is left out.
    pub fn write(&self, close: bool, is_head: bool, out: &mut GatherList) {
        const BODY: [&str; 3] =
            ["{\"error\":{\"message\":\"", "\",\"type\":\"proxy_error\",\"code\":\"", "\"}}\n"];
        let status = if self.proxy_status.is_some() { PROXY_STATUS } else { "" };
        let (before, behind) = ([BODY[0], self.message, status], [BODY[1], self.code, BODY[2]]);
        out.text(b"HTTP/1.1 ");
        out.text(self.status_line.as_bytes());
        out.text(b"\r\nContent-Type: application/json\r\n");
        out.date();
        out.text(self.fields.as_bytes());
        if close {
            out.text(b"Connection: close\r\n");
        }
        out.text(b"Content-Length: ");
        // A status has three digits, and a full stop follows it.
        let number = if self.proxy_status.is_some() { "100.".len() as u64 } else { 0 };
        let text: u64 = before.iter().chain(&behind).map(|part| part.len() as u64).sum();
        out.decimal(text + number);
        out.text(b"\r\n\r\n");
        if !is_head {
            before.iter().for_each(|part| out.text(part.as_bytes()));
            if let Some(status) = self.proxy_status {
                out.decimal(u64::from(status));
                out.text(b".");
            }
            behind.iter().for_each(|part| out.text(part.as_bytes()));
        }
    }
}

const fn digit(byte: u8) -> u16 {
    (byte - b'0') as u16
}

/// The message, with the proxy's status.
impl fmt::Display for LocalResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message)?;
        self.proxy_status.map_or(Ok(()), |status| write!(f, "{PROXY_STATUS}{status}."))
    }
}
