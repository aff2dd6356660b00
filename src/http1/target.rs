//! What may be asked for: the allow-list, and the Host field's guard against foreign names.

use super::work;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// `POST /v1/responses`.
    Responses,
    /// `GET /v1/responses`, which is only ever asked for to open a WebSocket.
    ResponsesSocket,
    /// `GET /shutdown`.
    Shutdown,
    /// Anything else.
    Other,
}

impl Route {
    /// Compares bytes: a target is never normalised, so nothing but the exact origin-form matches.
    pub fn of(method: &[u8], target: &[u8]) -> Route {
        match (method, target) {
            (b"POST", b"/v1/responses") => Route::Responses,
            (b"GET", b"/v1/responses") => Route::ResponsesSocket,
            (b"GET", b"/shutdown") => Route::Shutdown,
            _ => Route::Other,
        }
    }
}

/// What a Host field names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostKind {
    /// 127.0.0.0/8, `localhost`, `[::1]` or a host that the operator allows, with any port.
    Loopback,
    /// Some other host: a web page rebound to this address would send that.
    Foreign,
    /// Not `uri-host [":" port]` (RFC 9110 §7.2).
    Invalid,
}

impl HostKind {
    /// Reads a Host field's value. `allowed` are the hosts that the operator names.
    pub fn of(value: &[u8], allowed: &[&[u8]]) -> HostKind {
        let (host, kind) = HostKind::apart(value);
        if kind == HostKind::Foreign && allowed.iter().any(|own| host.eq_ignore_ascii_case(own)) {
            return HostKind::Loopback;
        }
        kind
    }

    /// `name`, an address or `[address]`, without a port, can be told from others and is no pattern.
    pub fn can_be_allowed(name: &[u8]) -> bool {
        let (host, kind) = HostKind::apart(name);
        let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-._[:]".contains(b);
        kind != HostKind::Invalid && host.len() == name.len() && name.iter().all(plain)
    }

    /// The host without its port, and what it is.
    fn apart(value: &[u8]) -> (&[u8], HostKind) {
        work::spend(value.len());
        let host = match value {
            [b'[', rest @ ..] => match rest.iter().position(|byte| *byte == b']') {
                Some(end) => &value[..end + 2],
                None => return (value, HostKind::Invalid),
            },
            _ => &value[..value.iter().position(|b| *b == b':').unwrap_or(value.len())],
        };
        (host, HostKind::judge(host, &value[host.len()..]))
    }

    fn judge(host: &[u8], port: &[u8]) -> HostKind {
        if host.is_empty() || !is_port(port) {
            return HostKind::Invalid;
        }
        if let Some(address) = host.strip_prefix(b"[") {
            let address = &address[..address.len() - 1];
            let v6 = |b: &u8| b.is_ascii_hexdigit() || matches!(b, b':' | b'.');
            return match address {
                b"::1" => HostKind::Loopback,
                _ if address.len() >= 2 && address.contains(&b':') && address.iter().all(v6) => {
                    HostKind::Foreign
                }
                _ => HostKind::Invalid,
            };
        }
        if !is_reg_name(host) {
            return HostKind::Invalid;
        }
        if host.eq_ignore_ascii_case(b"localhost") || is_loopback_v4(host) {
            return HostKind::Loopback;
        }
        HostKind::Foreign
    }
}

/// Nothing, or a colon and up to five digits that make a port.
fn is_port(text: &[u8]) -> bool {
    match text {
        [] => true,
        [b':', digits @ ..] if digits.len() <= 5 => digits
            .iter()
            .try_fold(0u32, |n, b| b.is_ascii_digit().then(|| n * 10 + u32::from(b - b'0')))
            .is_some_and(|port| port <= 65535),
        _ => false,
    }
}

/// RFC 3986 §3.2.2 reg-name; IPv4 addresses are spelled with the same bytes.
fn is_reg_name(host: &[u8]) -> bool {
    let mut rest = host;
    loop {
        rest = match rest {
            [] => return true,
            [b'%', a, b, rest @ ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => rest,
            [byte, rest @ ..]
                if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+;=".contains(byte) =>
            {
                rest
            }
            _ => return false,
        }
    }
}

fn is_loopback_v4(host: &[u8]) -> bool {
    let octet = |part: &[u8]| {
        matches!(
            part,
            [b'0'..=b'9']
                | [b'1'..=b'9', b'0'..=b'9']
                | [b'1', b'0'..=b'9', b'0'..=b'9']
                | [b'2', b'0'..=b'4', b'0'..=b'9']
                | [b'2', b'5', b'0'..=b'5']
        )
    };
    let mut parts = host.split(|byte| *byte == b'.');
    parts.next() == Some(b"127") && parts.clone().count() == 3 && parts.all(octet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_origin_form_is_a_route() {
        assert_eq!(Route::of(b"POST", b"/v1/responses"), Route::Responses);
        assert_eq!(Route::of(b"GET", b"/v1/responses"), Route::ResponsesSocket);
        assert_eq!(Route::of(b"GET", b"/shutdown"), Route::Shutdown);
        for target in [
            "/v1/responses/",
            "/v1/responses?",
            "/v1/responses?a=b",
            "/v1/responses#f",
            "//v1/responses",
            "/v1//responses",
            "/v1/./responses",
            "/v1/../v1/responses",
            "/v1%2fresponses",
            "/V1/responses",
            "http://127.0.0.1/v1/responses",
            "127.0.0.1:443",
            "*",
            "/",
            "",
            "/shutdown",
        ] {
            assert_eq!(Route::of(b"POST", target.as_bytes()), Route::Other, "{target}");
        }
        for method in ["post", "Post", "HEAD", "PUT", "OPTIONS", "POSTS", ""] {
            assert_eq!(Route::of(method.as_bytes(), b"/v1/responses"), Route::Other, "{method}");
        }
    }

    #[test]
    fn hosts_are_loopback_foreign_or_invalid() {
        for host in [
            "localhost",
            "LocalHost:1",
            "127.0.0.1",
            "127.0.0.1:65535",
            "127.255.255.255:0",
            "[::1]",
            "[::1]:80",
            "localhost:",
        ] {
            assert_eq!(HostKind::of(host.as_bytes(), &[]), HostKind::Loopback, "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:80",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "localhost.",
            "127.1",
            "127.0.0.01",
            "127.0.0.256",
            "128.0.0.1",
            "0.0.0.0",
            "2130706433",
            "0x7f.0.0.1",
            "[::]",
            "[::2]:80",
            "[::ffff:127.0.0.1]",
            "local%68ost",
            "a_b",
        ] {
            assert_eq!(HostKind::of(host.as_bytes(), &[]), HostKind::Foreign, "{host}");
        }
        for host in [
            "",
            ":80",
            "localhost:65536",
            "localhost:1a",
            "localhost:+1",
            "localhost:123456",
            "a b",
            "a,b",
            "a/b",
            "u@a",
            "localhost:1:2",
            "[::1",
            "[]",
            "[::1]x",
            "[::1]:x",
            "[g::1]",
            "::1",
            "a%2",
            "a\\b",
            "a\"b",
            "[v1.x]",
            "caf\u{e9}",
        ] {
            assert_eq!(HostKind::of(host.as_bytes(), &[]), HostKind::Invalid, "{host}");
        }
    }

    #[test]
    fn a_host_that_is_allowed_is_compared_whole_and_without_its_port() {
        let allowed: [&[u8]; 3] = [b"a.internal", b"10.0.0.1", b"[fd00::1]"];
        for host in ["a.internal", "A.Internal:80", "10.0.0.1:1", "[fd00::1]", "[FD00::1]:9"] {
            assert_eq!(HostKind::of(host.as_bytes(), &allowed), HostKind::Loopback, "{host}");
        }
        for host in ["internal", "b.a.internal", "a.internal.", "10.0.0.10", "[fd00::2]", "b.c"] {
            assert_eq!(HostKind::of(host.as_bytes(), &allowed), HostKind::Foreign, "{host}");
        }
        for host in ["a.internal:x", "a.internal:65536", ""] {
            assert_eq!(HostKind::of(host.as_bytes(), &allowed), HostKind::Invalid, "{host}");
        }
        for (name, fine) in [
            ("host.docker.internal", true),
            ("10.0.0.1", true),
            ("[fd00::1]", true),
            ("a_b", true),
            ("", false),
            ("a:80", false),
            ("[fd00::1]:80", false),
            ("fd00::1", false),
            ("*", false),
            ("*.a", false),
            ("a/b", false),
            ("a%20", false),
        ] {
            assert_eq!(HostKind::can_be_allowed(name.as_bytes()), fine, "{name}");
        }
    }
}
