//! The egress proxy: its URL, and the hosts that do not go through it (NO_PROXY). The variables are
//! read as curl reads them; where curl would guess, the value is refused. Unlike curl 7.88,
//! NO_PROXY may name networks of IPv6 addresses.

use core::fmt;

use super::digits;
use super::limits;
use super::url::{Host, UrlError, host_and_port, v4, v6};

/// The port of a proxy whose URL names none. curl uses the same.
const PORT: u16 = 1080;

/// A URL of the form `[http://][user[:password]@]host[:port][/]`.
#[derive(PartialEq, Eq)]
pub struct ProxyUrl<'a> {
    /// Name or address.
    pub host: Host,
    /// 1 to 65535.
    pub port: u16,
    /// The part before the `@`, percent-encoded; see [`ProxyUrl::credentials`].
    userinfo: Option<&'a [u8]>,
}

/// Why a proxy cannot be used. The error contains no byte of the URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyUrlError {
    /// The URL asks for TLS to the proxy itself.
    Https,
    /// The proxy speaks SOCKS.
    Socks,
    /// The scheme is another one.
    Scheme,
    /// A second `@`, a user name with a colon in it, or a control byte.
    Userinfo,
    /// Further bytes follow host and port.
    Path,
    /// Host, port or length.
    Url(UrlError),
}

impl fmt::Display for ProxyUrlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ProxyUrlError::Https => "https:// proxies are not supported; name an http:// proxy",
            ProxyUrlError::Socks => "SOCKS proxies are not supported; name an http:// proxy",
            ProxyUrlError::Scheme => "the proxy's URL must begin with http://",
            ProxyUrlError::Userinfo => {
                "the proxy's user name or password contains a character that must be percent-encoded"
            }
            ProxyUrlError::Path => {
                "the proxy's URL must end after host and port; write a / in a password as %2F"
            }
            ProxyUrlError::Url(error) => return error.fmt(f),
        })
    }
}

impl ProxyUrl<'_> {
    /// Parses the value of an environment variable.
    pub fn parse(text: &[u8]) -> Result<ProxyUrl<'_>, ProxyUrlError> {
        if text.len() > limits::URL {
            return Err(ProxyUrlError::Url(UrlError::TooLong));
        }
        let rest = match text.windows(3).position(|part| part == b"://") {
            Some(at) if is_scheme(&text[..at]) => {
                let scheme = &text[..at];
                let begins = |start: &[u8]| {
                    scheme.get(..start.len()).is_some_and(|s| s.eq_ignore_ascii_case(start))
                };
                match scheme.len() {
                    4 if begins(b"http") => &text[at + 3..],
                    5 if begins(b"https") => return Err(ProxyUrlError::Https),
                    _ if begins(b"socks") => return Err(ProxyUrlError::Socks),
                    _ => return Err(ProxyUrlError::Scheme),
                }
            }
            _ => text,
        };
        let rest = rest.strip_suffix(b"/").unwrap_or(rest);
        if rest.iter().any(|byte| matches!(byte, b'/' | b'?' | b'#')) {
            return Err(ProxyUrlError::Path);
        }
        let (userinfo, authority) = match rest.iter().position(|byte| *byte == b'@') {
            Some(at) => (Some(&rest[..at]), &rest[at + 1..]),
            None => (None, rest),
        };
        if authority.contains(&b'@') || !userinfo.is_none_or(is_userinfo) {
            return Err(ProxyUrlError::Userinfo);
        }
        let authority = core::str::from_utf8(authority).or(Err(UrlError::Host));
        let (host, port) =
            authority.and_then(|text| host_and_port(text, PORT)).map_err(ProxyUrlError::Url)?;
        Ok(ProxyUrl { host, port, userinfo: userinfo.filter(|text| !text.is_empty()) })
    }

    /// `user:password` as Basic credentials contain it (RFC 7617 §2). The bytes come one at a time,
    /// so that no copy is made in memory. `None`: the URL has no credentials.
    pub fn credentials(&self) -> Option<impl Iterator<Item = u8>> {
        let text = self.userinfo?;
        let colon = (!text.contains(&b':')).then_some(b':');
        Some(decoded(text).chain(colon))
    }
}

/// The bytes of a scheme (RFC 3986 §3.1).
fn is_scheme(text: &[u8]) -> bool {
    text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte))
}

fn is_userinfo(text: &[u8]) -> bool {
    let user = text.split(|byte| *byte == b':').next().unwrap_or(text);
    !decoded(user).any(|byte| byte == b':') && !decoded(text).any(|byte| byte.is_ascii_control())
}

/// Percent-decodes `text`. As in curl, a `%` without two hexadecimal digits behind it stays as it
/// is.
fn decoded(mut text: &[u8]) -> impl Iterator<Item = u8> {
    let hex = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    core::iter::from_fn(move || {
        if let [b'%', a, b, rest @ ..] = text
            && let (Some(high), Some(low)) = (hex(*a), hex(*b))
        {
            text = rest;
            return Some(high << 4 | low);
        }
        let (first, rest) = text.split_first()?;
        text = rest;
        Some(*first)
    })
}

/// NO_PROXY names this host: its name, a domain above it, its address, a network that contains the
/// address, or everything.
pub fn is_exempt(no_proxy: &[u8], host: &Host) -> bool {
    // As in curl, `* ` is not `*`, and a line break separates nothing. In doubt, the proxy is used.
    no_proxy == b"*"
        || no_proxy
            .split(|byte| matches!(byte, b',' | b' ' | b'\t'))
            .filter_map(|entry| core::str::from_utf8(entry).ok())
            .any(|entry| match host {
                Host::Name(name) => is_in_domain(name, entry),
                Host::V4(octets) => is_in_network(octets, entry, v4),
                Host::V6(octets) => is_in_network(octets, entry, v6),
            })
}

/// `example.com` covers itself and all names below it. A dot before or after it changes nothing.
fn is_in_domain(name: &str, entry: &str) -> bool {
    let domain = entry.strip_suffix('.').unwrap_or(entry);
    let domain = domain.strip_prefix('.').unwrap_or(domain).as_bytes();
    let Some(at) = name.len().checked_sub(domain.len()) else {
        return false;
    };
    let (before, tail) = name.as_bytes().split_at(at);
    !domain.is_empty()
        && tail.eq_ignore_ascii_case(domain)
        && before.last().is_none_or(|byte| *byte == b'.')
}

/// `entry` is an address, or an address with the number of bits that count. As in curl, 0 means
/// all of them.
fn is_in_network<const N: usize>(
    address: &[u8; N],
    entry: &str,
    read: fn(&str) -> Option<[u8; N]>,
) -> bool {
    let (network, bits) = match entry.split_once('/') {
        Some((network, bits)) => (network, digits::decimal(bits.as_bytes(), 3)),
        None => (entry, Some(0)),
    };
    let bare = network.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let network = if N == 16 { bare.unwrap_or(network) } else { network };
    let (Some(bits @ 0..=128), Some(network)) = (bits, read(network)) else {
        return false;
    };
    let bits = if bits == 0 { 8 * N } else { bits as usize };
    bits <= 8 * N
        && address.iter().zip(network).enumerate().all(|(at, (ours, theirs))| {
            let counting = bits.saturating_sub(8 * at).min(8);
            (ours ^ theirs).leading_zeros() as usize >= counting
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> Host {
        host_and_port(text, 1).unwrap().0
    }

    #[test]
    fn proxy_urls_are_taken_apart_as_curl_does() {
        for (text, authority, port, credentials) in [
            ("http://proxy.corp:3128", "proxy.corp", 3128, None),
            ("HTTP://Proxy.Corp:3128/", "proxy.corp", 3128, None),
            ("proxy.corp:3128", "proxy.corp", 3128, None),
            ("proxy.corp", "proxy.corp", 1080, None),
            ("http://10.0.0.1", "10.0.0.1", 1080, None),
            ("http://[2001:DB8::1]:8080", "[2001:db8::1]", 8080, None),
            ("http://@proxy:1", "proxy", 1, None),
            ("http://user@proxy:1", "proxy", 1, Some("user:")),
            ("user:pass@proxy:1", "proxy", 1, Some("user:pass")),
            ("http://:pass@proxy:1", "proxy", 1, Some(":pass")),
            ("http://user:@proxy:1", "proxy", 1, Some("user:")),
            ("http://u:p:q@proxy:1", "proxy", 1, Some("u:p:q")),
            ("http://u%40corp:p%2F%3a%25@proxy:1", "proxy", 1, Some("u@corp:p/:%")),
            ("http://u:50%@proxy:1", "proxy", 1, Some("u:50%")),
            ("http://u:%zz%2@proxy:1", "proxy", 1, Some("u:%zz%2")),
            ("u:p%3A%2F%2Fx@proxy", "proxy", 1080, Some("u:p://x")),
            ("http://c\u{e9}:%c3%a9@proxy:1", "proxy", 1, Some("c\u{e9}:\u{e9}")),
        ] {
            let url = ProxyUrl::parse(text.as_bytes()).ok().unwrap();
            assert_eq!((url.host.to_string().as_str(), url.port), (authority, port), "{text}");
            let got = url.credentials().map(|bytes| bytes.collect::<Vec<u8>>());
            assert_eq!(got.as_deref(), credentials.map(str::as_bytes), "{text}");
        }
    }

    #[test]
    fn hostile_proxy_urls_are_refused_with_the_reason() {
        use ProxyUrlError::*;
        for (text, want) in [
            ("https://proxy:1", Https),
            ("HTTPS://proxy:1", Https),
            ("socks5://proxy:1", Socks),
            ("SOCKS5h://proxy:1", Socks),
            ("socks://proxy:1", Socks),
            ("socks4a://u:p@proxy:1", Socks),
            ("ftp://proxy:1", Scheme),
            ("httpx://proxy:1", Scheme),
            ("://proxy:1", Scheme),
            (" http://proxy:1", Path),
            ("http:/proxy:1", Path),
            ("http://proxy:1//", Path),
            ("http://proxy:1/x", Path),
            ("http://proxy:1?x", Path),
            ("http://proxy:1#x", Path),
            ("http://user:80/word@proxy:1", Path),
            ("u:p://x@proxy", Path),
            ("http://a@b@proxy:1", Userinfo),
            ("http://u%3ax:p@proxy:1", Userinfo),
            ("http://u:p%0d%0aX@proxy:1", Userinfo),
            ("http://u:p\r\nX@proxy:1", Userinfo),
            ("http://u%00:p@proxy:1", Userinfo),
            ("http://u:%7f@proxy:1", Userinfo),
            ("", Url(UrlError::Host)),
            ("/", Url(UrlError::Host)),
            ("http://", Url(UrlError::Host)),
            ("http://u:p@", Url(UrlError::Host)),
            ("http://u:p@:1", Url(UrlError::Host)),
            ("http://pro xy:1", Url(UrlError::Host)),
            ("http://pro\r\nxy:1", Url(UrlError::Host)),
            ("http://caf\u{e9}:1", Url(UrlError::Host)),
            ("http://127.1:1", Url(UrlError::Host)),
            ("http://[::1:1", Url(UrlError::Host)),
            ("http://::1:1", Url(UrlError::Host)),
            ("http://proxy:", Url(UrlError::Port)),
            ("http://proxy:0", Url(UrlError::Port)),
            ("http://proxy:65536", Url(UrlError::Port)),
            ("http://proxy:+1", Url(UrlError::Port)),
            ("http://proxy:1 ", Url(UrlError::Port)),
            ("user:pass", Url(UrlError::Port)),
        ] {
            let error = ProxyUrl::parse(text.as_bytes()).err();
            assert_eq!(error, Some(want), "{}", text.escape_default());
        }
        assert_eq!(ProxyUrl::parse(b"a\xff:1").err(), Some(Url(UrlError::Host)));
        let long = |n: usize| format!("http://{}@proxy", "x".repeat(n - 13));
        assert!(ProxyUrl::parse(long(limits::URL).as_bytes()).is_ok());
        let longer = ProxyUrl::parse(long(limits::URL + 1).as_bytes()).err();
        assert_eq!(longer, Some(Url(UrlError::TooLong)));
    }

    #[test]
    fn no_proxy_names_hosts_domains_addresses_and_networks() {
        for (list, name, want) in [
            ("", "a.b", false),
            (",, ,", "a.b", false),
            ("*", "a.b", true),
            ("*", "[::1]", true),
            (" * ", "[::1]", false),
            ("* ", "a.b", false),
            ("*,x", "a.b", false),
            ("x, *", "a.b", false),
            ("*.b", "a.b", false),
            ("a.b", "a.b", true),
            ("A.B", "a.b", true),
            (".a.b", "a.b", true),
            ("a.b.", "a.b", true),
            ("..a.b", "a.b", false),
            ("b", "a.b", true),
            ("x.a.b", "a.b", false),
            ("example.com", "api.example.com", true),
            ("example.com", "notexample.com", false),
            (".example.com", "notexample.com", false),
            ("example.com", "example.com.evil", false),
            ("example.com:443", "example.com", false),
            (".", "a.b", false),
            ("x,a.b", "a.b", true),
            ("x a.b\ty", "a.b", true),
            ("x\na.b", "a.b", false),
            ("x\ta.b", "a.b", true),
            ("x;a.b", "a.b", false),
            ("caf\u{e9},a.b", "a.b", true),
            ("10.1.2.3", "10.1.2.3", true),
            ("2.3", "10.1.2.3", false),
            ("10.0.0.0/8", "10.1.2.3", true),
            ("10.0.0.0/8", "11.1.2.3", false),
            ("10.1.2.3/32", "10.1.2.3", true),
            ("10.1.2.2/31", "10.1.2.3", true),
            ("10.1.2.4/31", "10.1.2.3", false),
            ("10.1.128.0/17", "10.1.127.3", false),
            ("10.1.0.0/17", "10.1.127.3", true),
            ("10.0.0.0/33", "10.0.0.0", false),
            ("10.0.0.0/-1", "10.0.0.0", false),
            ("10.0.0.0/+8", "10.0.0.0", false),
            ("10.0.0.0/", "10.0.0.0", false),
            ("10.0.0.0/8/8", "10.0.0.0", false),
            ("10.0.0.0/4294967304", "10.0.0.0", false),
            ("10.0.0.0/255.0.0.0", "10.0.0.0", false),
            ("10/8", "10.1.2.3", false),
            ("0.0.0.0/0", "10.1.2.3", false),
            ("[10.1.2.3]", "10.1.2.3", false),
            ("010.1.2.3", "10.1.2.3", false),
            ("::ffff:10.1.2.3", "10.1.2.3", false),
            ("::1", "[::1]", true),
            ("[::1]", "[::1]", true),
            ("[::1", "[::1]", false),
            ("0:0:0:0:0:0:0:1", "[::1]", true),
            ("fd00::/8", "[fd12::1]", true),
            ("[fd00::]/8", "[fd12::1]", true),
            ("fd00::/9", "[fd80::1]", false),
            ("2001:db8::/129", "[2001:db8::]", false),
            ("2001:db8::1/128", "[2001:db8::1]", true),
            ("2001:db8::1/127", "[2001:db8::2]", false),
            ("10.0.0.0/8", "[::a00:0]", false),
        ] {
            assert_eq!(is_exempt(list.as_bytes(), &host(name)), want, "{list:?} {name}");
        }
        assert!(!is_exempt(b"\xff", &host("a.b")));
    }
}
