//! The egress proxy that the environment names. Its credentials are read where the kernel put them,
//! written as Base64 into secret pages, and wiped from the environment.

use std::ffi::CStr;
use std::fmt;
use std::io::{self, Write};

use super::sys::{self, SecretPages};
use crate::http1::proxy::{ProxyUrl, ProxyUrlError, is_exempt};
use crate::http1::url::{Host, Scheme, UpstreamUrl};

/// The variables that may name the proxy, in curl's order.
const PROXY: [&CStr; 4] = [c"https_proxy", c"HTTPS_PROXY", c"all_proxy", c"ALL_PROXY"];
/// The variables that may list the hosts to reach without a proxy.
const NO_PROXY: [&CStr; 2] = [c"no_proxy", c"NO_PROXY"];
/// The field that carries the credentials (RFC 7617 §2).
const BASIC: &[u8] = b"Proxy-Authorization: Basic ";

/// The proxy that the upstream is reached through.
pub struct Egress {
    /// Its host.
    pub host: Host,
    /// Its port.
    pub port: u16,
    /// The CONNECT request to send to it.
    pub request: ConnectRequest,
}

/// Why the proxy cannot be used.
#[derive(Debug)]
pub enum EgressError {
    /// The variable does not hold the URL of a proxy.
    Url(&'static CStr, ProxyUrlError),
    /// No memory can hold the credentials safely.
    Memory(io::Error),
}

impl fmt::Display for EgressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EgressError::Url(variable, error) => {
                write!(f, "{}: {error}", variable.to_str().unwrap_or_default())
            }
            EgressError::Memory(error) => {
                write!(
                    f,
                    "no memory that can hold the proxy's credentials safely ({error}); raise ulimit -l"
                )
            }
        }
    }
}

impl Egress {
    /// Reads the variables of the proxy and wipes them (see [`wipe`]). `None`: the upstream is
    /// reached without a proxy. Call this only while the process has one thread.
    pub fn take(upstream: &UpstreamUrl) -> Result<Option<Egress>, EgressError> {
        let egress = Egress::find(upstream);
        wipe();
        egress
    }

    /// Reads the environment and leaves it as it is. The caller wipes it.
    pub fn find(upstream: &UpstreamUrl) -> Result<Option<Egress>, EgressError> {
        match upstream.scheme {
            Scheme::Https if !upstream.is_loopback() => Egress::read(upstream),
            _ => Ok(None),
        }
    }

    fn read(upstream: &UpstreamUrl) -> Result<Option<Egress>, EgressError> {
        let exempt = first(&NO_PROXY, |_, list| is_exempt(list, &upstream.host));
        if exempt == Some(true) {
            return Ok(None);
        }
        let read = |variable, value: &[u8]| {
            let url = ProxyUrl::parse(value).map_err(|error| EgressError::Url(variable, error))?;
            let request = ConnectRequest::new(upstream, &url).map_err(EgressError::Memory)?;
            Ok(Egress { host: url.host, port: url.port, request })
        };
        first(&PROXY, read).transpose()
    }
}

/// Wipes from the environment every variable that names a proxy of any kind, used or not: several
/// variables often have the same credentials. Call this only while the process has one thread.
pub fn wipe() {
    sys::wipe_variables(|name| {
        let end = name.len().saturating_sub(b"_proxy".len());
        name[end..].eq_ignore_ascii_case(b"_proxy") && !name.eq_ignore_ascii_case(b"no_proxy")
    });
}

/// Calls `look` with the first variable that is set and not empty.
fn first<R>(names: &[&'static CStr], mut look: impl FnMut(&'static CStr, &[u8]) -> R) -> Option<R> {
    names.iter().find_map(|name| {
        sys::with_variable(name, |value| (!value.is_empty()).then(|| look(name, value))).flatten()
    })
}

/// A CONNECT request with the proxy's credentials, in pages of its own.
pub struct ConnectRequest {
    pages: SecretPages,
    len: usize,
    has_credentials: bool,
}

impl ConnectRequest {
    pub(crate) fn new(upstream: &UpstreamUrl, proxy: &ProxyUrl<'_>) -> io::Result<ConnectRequest> {
        let to = format!("{}:{}", upstream.host, upstream.port);
        let head = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n");
        let credentials = proxy.credentials();
        let encoded = proxy.credentials().map_or(0, |bytes| bytes.count().div_ceil(3) * 4);
        let mut pages = SecretPages::new(head.len() + BASIC.len() + encoded + 4)?;
        let space = pages.writable();
        let mut len = 0;
        let mut put = |bytes: &[u8]| {
            space[len..len + bytes.len()].copy_from_slice(bytes);
            len += bytes.len();
        };
        put(head.as_bytes());
        if let Some(credentials) = credentials {
            put(BASIC);
            base64(credentials, &mut put);
            put(b"\r\n");
        }
        put(b"\r\n");
        pages.make_read_only(pages.len())?;
        Ok(ConnectRequest { pages, len, has_credentials: encoded > 0 })
    }

    /// Writes once, from byte `sent` on, and returns the number of bytes written: 0 if the sink is
    /// full or everything has been written.
    pub fn write_from(&self, sent: usize, sink: &mut impl Write) -> io::Result<usize> {
        match &self.pages.bytes()[sent..self.len] {
            [] => Ok(0),
            rest => sink.write(rest),
        }
    }

    /// Whether the request contains a user name or password.
    pub fn has_credentials(&self) -> bool {
        self.has_credentials
    }

    /// Whether this many bytes are the whole request.
    pub fn is_whole(&self, sent: usize) -> bool {
        sent == self.len
    }
}

/// Encodes as Base64 (RFC 4648 §4), four characters at a time.
fn base64(mut bytes: impl Iterator<Item = u8>, mut put: impl FnMut(&[u8])) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    while let Some(first) = bytes.next() {
        let (second, third) = (bytes.next(), bytes.next());
        let all = u32::from_be_bytes([0, first, second.unwrap_or(0), third.unwrap_or(0)]);
        let digit = |shift: u32| DIGITS[(all >> shift & 63) as usize];
        put(&[
            digit(18),
            digit(12),
            second.map_or(b'=', |_| digit(6)),
            third.map_or(b'=', |_| digit(0)),
        ]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(upstream: &str, proxy: &str) -> String {
        let url = ProxyUrl::parse(proxy.as_bytes()).ok().unwrap();
        let request = ConnectRequest::new(&UpstreamUrl::parse(upstream).unwrap(), &url).unwrap();
        let mut bytes = Vec::new();
        while !request.is_whole(bytes.len()) {
            // A sink that takes three bytes at a time.
            let mut some = [0; 3];
            let sent = request.write_from(bytes.len(), &mut &mut some[..]).unwrap();
            bytes.extend(&some[..sent]);
        }
        assert_eq!(request.write_from(bytes.len(), &mut Vec::new()).unwrap(), 0);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn the_request_names_host_and_port_twice_and_the_credentials_once() {
        for (upstream, proxy, want) in [
            ("https://a.b/x?y", "p:1", "CONNECT a.b:443 HTTP/1.1\r\nHost: a.b:443\r\n\r\n"),
            (
                "https://[2001:db8::1]:8443/",
                "http://user@p",
                "CONNECT [2001:db8::1]:8443 HTTP/1.1\r\nHost: [2001:db8::1]:8443\r\n\
                 Proxy-Authorization: Basic dXNlcjo=\r\n\r\n",
            ),
            (
                "https://10.0.0.1/",
                "Aladdin:open%20sesame@p",
                "CONNECT 10.0.0.1:443 HTTP/1.1\r\nHost: 10.0.0.1:443\r\n\
                 Proxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n\r\n",
            ),
        ] {
            assert_eq!(request(upstream, proxy), want);
        }
    }

    #[test]
    fn the_longest_credentials_fit() {
        let long = "x".repeat(crate::http1::limits::URL - 2);
        assert_eq!(request("https://a.b/", &format!("{long}@p")).len(), 5532);
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        // RFC 4648 §10.
        for (text, want) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
            ("\u{7fff}\u{3ff}", "57+/z78="),
        ] {
            let mut out: Vec<u8> = Vec::new();
            base64(text.bytes(), |digits| out.extend(digits));
            assert_eq!(out, want.as_bytes());
        }
    }
}
