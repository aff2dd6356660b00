//! The upstream URL, parsed strictly. A URL that a browser would correct is refused.

use core::fmt;

use super::digits;
use super::limits;

/// The protocol towards the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Plain HTTP.
    Http,
    /// HTTP over TLS.
    Https,
}

/// The host of the upstream or of the egress proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A name, in lower case.
    Name(String),
    /// An IPv4 address.
    V4([u8; 4]),
    /// An IPv6 address.
    V6([u8; 16]),
}

impl Host {
    /// `localhost` or a name below it. Such a name means this machine (RFC 6761 §6.3). It is never
    /// looked up, because a file or a name server could give another address.
    pub fn is_localhost(&self) -> bool {
        match self {
            Host::Name(name) => name == "localhost" || name.ends_with(".localhost"),
            Host::V4(_) | Host::V6(_) => false,
        }
    }
}

/// As in a URL, with an IPv6 address in brackets.
impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Name(name) => f.write_str(name),
            Host::V4([a, b, c, d]) => write!(f, "{a}.{b}.{c}.{d}"),
            Host::V6(octets) => write!(f, "[{}]", core::net::Ipv6Addr::from(*octets)),
        }
    }
}

/// A URL of the form `scheme://host[:port][/path][?query]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamUrl {
    /// http or https.
    pub scheme: Scheme,
    /// Name or address.
    pub host: Host,
    /// 1 to 65535; the scheme's own when the URL names none.
    pub port: u16,
    /// Begins with `/`.
    pub path_and_query: String,
    authority: String,
}

/// Why a URL is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UrlError {
    /// Longer than the limit.
    TooLong,
    /// Not http:// or https://.
    Scheme,
    /// The URL contains `user@` or `user:password@`.
    Userinfo,
    /// The host is missing or malformed.
    Host,
    /// The port is malformed.
    Port,
    /// The URL contains a fragment.
    Fragment,
    /// The path or query contains a byte that is not allowed there.
    Path,
}

impl fmt::Display for UrlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            UrlError::TooLong => "the URL must not be longer than 4096 bytes",
            UrlError::Scheme => "the URL must begin with https:// (or http:// for a loopback host)",
            UrlError::Userinfo => {
                "the URL must not contain a user name or password; give the key on stdin"
            }
            UrlError::Host => "the URL needs a host: a name, an IPv4 address or an [IPv6] address",
            UrlError::Port => "the port must be a number from 1 to 65535",
            UrlError::Fragment => "the URL must not contain a fragment (#)",
            UrlError::Path => "the path or query contains a character that must be percent-encoded",
        })
    }
}

impl UpstreamUrl {
    /// The default of `--upstream-url`.
    pub fn openai() -> UpstreamUrl {
        UpstreamUrl::https("api.openai.com", "/v1/responses")
    }

    /// The default of `--oidc-token-url`.
    pub fn openai_tokens() -> UpstreamUrl {
        UpstreamUrl::https("auth.openai.com", "/oauth/token")
    }

    fn https(host: &str, path: &str) -> UpstreamUrl {
        UpstreamUrl {
            scheme: Scheme::Https,
            host: Host::Name(host.into()),
            port: 443,
            path_and_query: path.into(),
            authority: host.into(),
        }
    }

    /// Parses a URL.
    pub fn parse(text: &str) -> Result<UpstreamUrl, UrlError> {
        if text.len() > limits::URL {
            return Err(UrlError::TooLong);
        }
        let (scheme, rest) = text.split_once("://").ok_or(UrlError::Scheme)?;
        let (scheme, default_port) = if scheme.eq_ignore_ascii_case("https") {
            (Scheme::Https, 443)
        } else if scheme.eq_ignore_ascii_case("http") {
            (Scheme::Http, 80)
        } else {
            return Err(UrlError::Scheme);
        };
        if rest.contains('#') {
            return Err(UrlError::Fragment);
        }
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if authority.contains('@') {
            return Err(UrlError::Userinfo);
        }
        let (host, port) = host_and_port(authority, default_port)?;
        if !is_path_and_query(path.as_bytes()) {
            return Err(UrlError::Path);
        }
        let slash = if path.starts_with('/') { "" } else { "/" };
        let mut authority = host.to_string();
        if port != default_port {
            authority.push_str(&format!(":{port}"));
        }
        let path_and_query = format!("{slash}{path}");
        Ok(UpstreamUrl { scheme, host, port, path_and_query, authority })
    }

    /// The Host field's value: `host[:port]`, without the scheme's own port.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// 127.0.0.0/8, ::1, localhost or a name below it.
    pub fn is_loopback(&self) -> bool {
        match &self.host {
            Host::Name(_) => self.host.is_localhost(),
            Host::V4(octets) => octets[0] == 127,
            Host::V6(octets) => u128::from_be_bytes(*octets) == 1,
        }
    }
}

/// Parses `host[:port]`.
pub(super) fn host_and_port(authority: &str, default_port: u16) -> Result<(Host, u16), UrlError> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or(UrlError::Host)?;
            (Host::V6(v6(address).ok_or(UrlError::Host)?), port)
        }
        None => {
            let at = authority.find(':').unwrap_or(authority.len());
            (name_or_v4(&authority[..at])?, &authority[at..])
        }
    };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => default_port,
        None => return Err(UrlError::Host),
        Some(digits) => {
            digits::port(digits.as_bytes()).filter(|port| *port > 0).ok_or(UrlError::Port)?
        }
    };
    Ok((host, port))
}

fn name_or_v4(text: &str) -> Result<Host, UrlError> {
    let last = text.rsplit('.').next().unwrap_or(text);
    // A host that ends in a number is an IPv4 address or invalid (as in the WHATWG URL standard).
    if last.bytes().all(|b| b.is_ascii_digit()) {
        return v4(text).map(Host::V4).ok_or(UrlError::Host);
    }
    let fine = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let hex = last.as_bytes().get(..2).is_some_and(|start| start.eq_ignore_ascii_case(b"0x"));
    if text.len() <= 253 && !hex && text.split('.').all(fine) {
        Ok(Host::Name(text.to_ascii_lowercase()))
    } else {
        Err(UrlError::Host)
    }
}

/// Four decimal numbers without leading zeros.
pub(super) fn v4(text: &str) -> Option<[u8; 4]> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.len() > 1 && part.starts_with('0') {
            return None;
        }
        *octet = u8::try_from(digits::decimal(part.as_bytes(), 3)?).ok()?;
    }
    parts.next().is_none().then_some(octets)
}

/// An IPv6 address (RFC 4291 §2.2), without a zone.
pub(super) fn v6(text: &str) -> Option<[u8; 16]> {
    text.parse::<core::net::Ipv6Addr>().ok().map(|address| address.octets())
}

/// A path and query (RFC 3986 §3.3 and §3.4) with well-formed percent-encoding.
fn is_path_and_query(mut rest: &[u8]) -> bool {
    loop {
        rest = match rest {
            [] => return true,
            [b'%', a, b, rest @ ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => rest,
            [byte, rest @ ..]
                if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?".contains(byte) =>
            {
                rest
            }
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        for (text, authority, port, path, loopback) in [
            ("https://api.openai.com/v1/responses", "api.openai.com", 443, "/v1/responses", false),
            ("HTTPS://API.OpenAI.com", "api.openai.com", 443, "/", false),
            ("https://a.b:443/x", "a.b", 443, "/x", false),
            ("https://a.b:8443/x", "a.b:8443", 8443, "/x", false),
            ("http://localhost:80/", "localhost", 80, "/", true),
            ("http://localhost:443/", "localhost:443", 443, "/", true),
            ("http://a.LOCALHOST:1/", "a.localhost:1", 1, "/", true),
            ("https://notlocalhost/", "notlocalhost", 443, "/", false),
            ("https://localhost.example/", "localhost.example", 443, "/", false),
            ("http://127.9.9.9:1", "127.9.9.9:1", 1, "/", true),
            ("http://[::1]:8080/a?b", "[::1]:8080", 8080, "/a?b", true),
            ("https://[2001:DB8::1]/", "[2001:db8::1]", 443, "/", false),
            (
                "https://r.azure.com/openai/v1/responses?api-version=preview&x=%20",
                "r.azure.com",
                443,
                "/openai/v1/responses?api-version=preview&x=%20",
                false,
            ),
            ("https://a.b?x=1", "a.b", 443, "/?x=1", false),
            ("https://my_host-1.example", "my_host-1.example", 443, "/", false),
        ] {
            let url = UpstreamUrl::parse(text).unwrap();
            assert_eq!((url.authority(), url.port), (authority, port), "{text}");
            assert_eq!(
                (url.path_and_query.as_str(), url.is_loopback()),
                (path, loopback),
                "{text}"
            );
        }
    }

    #[test]
    fn hostile_urls_are_refused_with_the_reason() {
        for (text, want) in [
            ("", UrlError::Scheme),
            ("nonsense", UrlError::Scheme),
            ("ftp://a.b/", UrlError::Scheme),
            (" https://a.b/", UrlError::Scheme),
            ("localhost:443/v1", UrlError::Scheme),
            ("/v1/responses", UrlError::Scheme),
            ("https:/a.b/", UrlError::Scheme),
            ("https://", UrlError::Host),
            ("https:///v1", UrlError::Host),
            ("https://:443/", UrlError::Host),
            ("https://u@a.b/", UrlError::Userinfo),
            ("https://u:p@a.b/", UrlError::Userinfo),
            ("https://a.b@c.d/", UrlError::Userinfo),
            ("https://a.b/#f", UrlError::Fragment),
            ("https://a.b#f", UrlError::Fragment),
            ("https://a.b:/", UrlError::Port),
            ("https://a.b:0/", UrlError::Port),
            ("https://a.b:65536/", UrlError::Port),
            ("https://a.b:+80/", UrlError::Port),
            ("https://a.b:80a/", UrlError::Port),
            ("https://a.b:80:80/", UrlError::Port),
            ("https://a..b/", UrlError::Host),
            ("https://-a.b/", UrlError::Host),
            ("https://a b/", UrlError::Host),
            ("https://a,b/", UrlError::Host),
            ("https://caf\u{e9}.fr/", UrlError::Host),
            ("https://!\u{47c}", UrlError::Host),
            ("https://a%2eb/", UrlError::Host),
            ("https://a\\b/", UrlError::Host),
            ("https://a.b./", UrlError::Host),
            ("https://1.2.3/", UrlError::Host),
            ("https://1.2.3.4.5/", UrlError::Host),
            ("https://1.2.3.256/", UrlError::Host),
            ("https://01.2.3.4/", UrlError::Host),
            ("https://127.1/", UrlError::Host),
            ("https://2130706433/", UrlError::Host),
            ("https://0x7f.0.0.0x1/", UrlError::Host),
            ("https://[::1/", UrlError::Host),
            ("https://[::1]x/", UrlError::Host),
            ("https://[::1%25eth0]/", UrlError::Host),
            ("https://[]/", UrlError::Host),
            ("https://a.b/x y", UrlError::Path),
            ("https://a.b/\r\nX: y", UrlError::Path),
            ("https://a.b/\\", UrlError::Path),
            ("https://a.b/%", UrlError::Path),
            ("https://a.b/%2", UrlError::Path),
            ("https://a.b/%zz", UrlError::Path),
            ("https://a.b/\u{e9}", UrlError::Path),
            ("https://a.b/\"", UrlError::Path),
            ("https://a.b/<", UrlError::Path),
        ] {
            assert_eq!(UpstreamUrl::parse(text), Err(want), "{}", text.escape_default());
        }
    }

    #[test]
    fn the_length_limit_holds_at_n_and_not_at_n_plus_1() {
        let url = |n: usize| format!("https://a.b/{}", "x".repeat(n - 12));
        assert!(UpstreamUrl::parse(&url(limits::URL)).is_ok());
        assert_eq!(UpstreamUrl::parse(&url(limits::URL + 1)), Err(UrlError::TooLong));
    }
}
