//! The Host field: a guard against web pages whose name is rebound to this address (DNS rebinding).

use super::digits;
use super::work;

/// The kind of host that a Host field names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostKind {
    /// 127.0.0.0/8, `localhost`, `[::1]`, or a host that the operator allows; with any port.
    Loopback,
    /// Some other host. A web page whose name is rebound to this address sends it.
    Foreign,
    /// Not `uri-host [":" port]` (RFC 9110 §7.2).
    Invalid,
}

impl HostKind {
    /// Reads a Host field's value. `allowed`: the hosts of `--allow-host`.
    pub fn of(value: &[u8], allowed: &[&[u8]]) -> HostKind {
        let (host, kind) = HostKind::split(value);
        if kind == HostKind::Foreign && allowed.iter().any(|own| host.eq_ignore_ascii_case(own)) {
            return HostKind::Loopback;
        }
        kind
    }

    /// `--allow-host` may have this value: a name, an IPv4 address or `[IPv6]`, without a port and
    /// without a pattern.
    pub fn can_be_allowed(name: &[u8]) -> bool {
        let (host, kind) = HostKind::split(name);
        let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-._[:]".contains(b);
        kind != HostKind::Invalid && host.len() == name.len() && name.iter().all(plain)
    }

    /// The host without its port, and its kind.
    fn split(value: &[u8]) -> (&[u8], HostKind) {
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

/// Nothing, or a colon and a port, which may be missing.
fn is_port(text: &[u8]) -> bool {
    match text {
        [] | [b':'] => true,
        [b':', digits @ ..] => digits::port(digits).is_some(),
        _ => false,
    }
}

/// A reg-name (RFC 3986 §3.2.2). An IPv4 address is one too.
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
