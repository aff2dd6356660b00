//! Field names and their meaning for a relay (RFC 9110 §7.6.1). `forward` decides which fields are
//! forwarded.

use super::digits;
use super::limits;
use super::work;

/// The byte is allowed in a token (RFC 9110 §5.6.2).
pub fn is_token_byte(byte: u8) -> bool {
    TOKEN[byte as usize]
}

const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let marks = b"!#$%&'*+-.^_`|~";
    let mut i = 0;
    while i < marks.len() {
        table[marks[i] as usize] = true;
        i += 1;
    }
    table
};

/// The byte is allowed in a field value: visible, obs-text, SP or HTAB (RFC 9110 §5.5).
pub fn is_value_byte(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// Two names differ only in case and in their marks: letters and digits are the same, in the same
/// places. A gateway that passes fields to a program as variables gives both the same name:
/// `Api_Key` and `api-key` become `HTTP_API_KEY`.
pub fn is_alike(name: &[u8], other: &[u8]) -> bool {
    if name.len() != other.len() {
        return false;
    }
    work::spend(name.len());
    name.iter().zip(other).all(|(x, y)| {
        x.eq_ignore_ascii_case(y) || !(x.is_ascii_alphanumeric() || y.is_ascii_alphanumeric())
    })
}

/// The meaning of a field name to a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldName {
    /// No meaning here.
    Other,
    /// Belongs to one connection (RFC 9110 §7.6.1).
    HopByHop,
    /// Credentials. The key replaces the client's.
    Authorization,
    /// Names further fields that belong to this connection (RFC 9110 §7.6.1).
    Connection,
    /// Framing. The relay writes its own.
    ContentLength,
    /// A response with such a field cannot be searched for the key.
    ContentEncoding,
    /// Names the character set of a response.
    ContentType,
    /// When a message was created. The relay adds one to a response without it.
    Date,
    /// The client's expectation (RFC 9110 §10.1.1).
    Expect,
    /// The host that the request is for. The relay writes the upstream's.
    Host,
    /// The origin of the web page that sent the request.
    Origin,
    /// Whether the request comes from a page of the same site, as the browser says.
    SecFetchSite,
    /// Framing. The relay writes its own.
    TransferEncoding,
    /// The protocol to change to. A WebSocket handshake has this field.
    Upgrade,
    /// In a request, such a field would change the method or the target, or ask for a response that
    /// cannot be searched for the key.
    Withheld,
    /// A server may take the name for one of the others (see [`is_alike`]).
    Disguised,
}

impl FieldName {
    /// Looks up a field name, in any case.
    pub fn of(name: &[u8]) -> FieldName {
        // Length and first letter decide nearly every field of a real request. No known name begins
        // with a mark, so names that are alike have the same first letter.
        match (name.len(), name.first().map_or(0, |first| first | 0x20)) {
            (2, b't') => FieldName::HopByHop.of_any(name, [b"te"]),
            (4, b'd') => FieldName::Date.of_any(name, [b"date"]),
            // RFC 3229 has another way to encode a body: A-IM asks for it, IM announces it.
            (2, b'i') => FieldName::ContentEncoding.of_any(name, [b"im"]),
            (4, b'a') => FieldName::Withheld.of_any(name, [b"a-im"]),
            (4, b'h') => FieldName::Host.of_any(name, [b"host"]),
            (5, b'r') => FieldName::Withheld.of_any(name, [b"range"]),
            (6, b'e') => FieldName::Expect.of_any(name, [b"expect"]),
            (6, b'o') => FieldName::Origin.of_any(name, [b"origin"]),
            (7, b'u') => FieldName::Upgrade.of_any(name, [b"upgrade"]),
            (7, b't') => FieldName::HopByHop.of_any(name, [b"trailer"]),
            (8, b'i') => FieldName::Withheld.of_any(name, [b"if-range"]),
            (10, b'c') => FieldName::Connection.of_any(name, [b"connection"]),
            (10, b'k') => FieldName::HopByHop.of_any(name, [b"keep-alive"]),
            (12, b'c') => FieldName::ContentType.of_any(name, [b"content-type"]),
            (13, b'a') => FieldName::Authorization.of_any(name, [b"authorization"]),
            (13, b'x') => FieldName::Withheld.of_any(name, [b"x-http-method", b"x-rewrite-url"]),
            (14, b'c') => FieldName::ContentLength.of_any(name, [b"content-length"]),
            (14, b's') => FieldName::SecFetchSite.of_any(name, [b"sec-fetch-site"]),
            (14, b'a') => FieldName::Withheld.of_any(name, [b"accept-charset"]),
            (14, b'x') => FieldName::Withheld.of_any(name, [b"x-original-url", b"x-original-uri"]),
            (15, b'x') => FieldName::Withheld.of_any(name, [b"x-forwarded-uri"]),
            (16, b'x') => FieldName::Withheld.of_any(name, [b"x-forwarded-host"]),
            (15, b'a') => FieldName::Withheld.of_any(name, [b"accept-encoding"]),
            (16, b'c') => FieldName::ContentEncoding.of_any(name, [b"content-encoding"]),
            (17, b't') => FieldName::TransferEncoding.of_any(name, [b"transfer-encoding"]),
            (17, b'x') => {
                FieldName::Withheld.of_any(name, [b"x-method-override", b"x-original-method"])
            }
            (18, b'x') => FieldName::Withheld.of_any(name, [b"x-forwarded-method"]),
            (21, b'x') => FieldName::Withheld.of_any(name, [b"x-envoy-original-path"]),
            (22, b'x') => FieldName::Withheld.of_any(name, [b"x-http-method-override"]),
            // Proxy-Authorization, Proxy-Connection, Proxy-Authenticate and so on.
            (6.., b'p') => FieldName::HopByHop.of_any(&name[..6], [b"proxy-"]),
            _ => FieldName::Other,
        }
    }

    /// `self` if `name` is one of `known`, `Disguised` if it is alike, otherwise `Other`.
    #[inline(always)]
    fn of_any<const LEN: usize, const N: usize>(
        self,
        name: &[u8],
        known: [&[u8; LEN]; N],
    ) -> FieldName {
        let Ok(name) = <&[u8; LEN]>::try_from(name) else {
            return FieldName::Other;
        };
        for known in known {
            if is_same(name, known) {
                return self;
            }
        }
        if known.iter().any(|known| is_alike(name, *known)) {
            FieldName::Disguised
        } else {
            FieldName::Other
        }
    }
}

/// Two names differ only in case; `known` is in lower case. There is no branch: the compiler knows
/// the length and compares whole words.
#[inline(always)]
fn is_same<const LEN: usize>(name: &[u8; LEN], known: &[u8; LEN]) -> bool {
    let case = |known: &u8| if known.is_ascii_lowercase() { 0x20 } else { 0 };
    name.iter().zip(known).fold(0, |all, (x, y)| all | ((x | case(y)) ^ y)) == 0
}

/// The framing fields of one head. [`Framing`](super::framing::Framing) decides what they mean.
#[derive(Clone, Copy, Debug, Default)]
pub struct FramingFields {
    /// The number of Content-Length fields.
    pub content_lengths: usize,
    /// The value of the last one, if it is one plain number.
    pub length: Option<u64>,
    /// The number of Transfer-Encoding fields.
    pub transfer_encodings: usize,
    /// The last one is exactly `chunked`.
    pub chunked: bool,
}

impl FramingFields {
    /// Records a Content-Length field.
    pub fn content_length(&mut self, value: &[u8]) {
        self.content_lengths += 1;
        self.length = digits::decimal(value, 20);
    }

    /// Records a Transfer-Encoding field.
    pub fn transfer_encoding(&mut self, value: &[u8]) {
        self.transfer_encodings += 1;
        self.chunked = value.eq_ignore_ascii_case(b"chunked");
    }
}

/// A connection option is not a token, or there are too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidOptions;

/// The Connection fields of one head.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConnectionOptions {
    /// `close` was among the options.
    pub close: bool,
    /// `upgrade` was among the options.
    pub upgrade: bool,
    /// Some option names a field.
    pub names_fields: bool,
    options: usize,
}

impl ConnectionOptions {
    /// Records a Connection field. An option that is not a token, or one option too many, is an
    /// error. Empty options count too.
    pub fn note(&mut self, value: &[u8]) -> Result<(), InvalidOptions> {
        for option in members(value) {
            self.options += 1;
            if self.options > limits::CONNECTION_OPTIONS
                || !option.iter().all(|b| is_token_byte(*b))
            {
                return Err(InvalidOptions);
            }
            if option.is_empty() {
                // An empty list member has no meaning (RFC 9110 §5.6.1.2).
            } else if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if option.eq_ignore_ascii_case(b"upgrade") {
                self.upgrade = true;
            } else if !option.eq_ignore_ascii_case(b"keep-alive") {
                self.names_fields = true;
            }
        }
        Ok(())
    }
}

/// The names in the Connection fields of one head, sorted: a field of the head is looked up by
/// binary search.
pub(super) struct NamedFields<'b> {
    names: [&'b [u8]; limits::CONNECTION_OPTIONS],
    count: usize,
}

impl<'b> NamedFields<'b> {
    /// From Connection fields that [`ConnectionOptions::note`] has accepted.
    #[cold]
    pub(super) fn by(values: impl Iterator<Item = &'b [u8]>) -> NamedFields<'b> {
        let mut named = NamedFields { names: [&[]; limits::CONNECTION_OPTIONS], count: 0 };
        for name in values.flat_map(options).take(limits::CONNECTION_OPTIONS) {
            if let Err(at) = named.search(name) {
                named.names.copy_within(at..named.count, at + 1);
                named.names[at] = name;
                named.count += 1;
            }
        }
        named
    }

    /// One of the names is `name`, in any case.
    pub(super) fn contains(&self, name: &[u8]) -> bool {
        self.search(name).is_ok()
    }

    fn search(&self, name: &[u8]) -> Result<usize, usize> {
        self.names[..self.count].binary_search_by(|other| {
            work::spend(1 + name.len().min(other.len()));
            let lengths = other.len().cmp(&name.len());
            let letters = || other.iter().map(u8::to_ascii_lowercase);
            lengths.then_with(|| letters().cmp(name.iter().map(u8::to_ascii_lowercase)))
        })
    }
}

/// The non-empty members of a comma-separated list (RFC 9110 §5.6.1).
pub fn options(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    members(value).filter(|option| !option.is_empty())
}

fn members(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(|member| {
        work::spend(1 + member.len());
        member.trim_ascii()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_in_every_spelling() {
        for (name, want) in [
            ("authorization", FieldName::Authorization),
            ("AUTHORIZATION", FieldName::Authorization),
            ("aUtHoRiZaTiOn", FieldName::Authorization),
            ("Proxy-Authorization", FieldName::HopByHop),
            ("proxy-anything", FieldName::HopByHop),
            ("TE", FieldName::HopByHop),
            ("Trailer", FieldName::HopByHop),
            ("Keep-Alive", FieldName::HopByHop),
            ("Content-Length", FieldName::ContentLength),
            ("date", FieldName::Date),
            ("Data", FieldName::Other),
            ("Content-Lengths", FieldName::Other),
            ("x-authorization", FieldName::Other),
            ("Accept", FieldName::Other),
            ("Content_Length", FieldName::Disguised),
            ("content.length", FieldName::Disguised),
            ("TRANSFER_ENCODING", FieldName::Disguised),
            ("Keep_Alive", FieldName::Disguised),
            ("Proxy_Authorization", FieldName::Disguised),
            ("proxy-a_b", FieldName::HopByHop),
            ("X-HTTP-Method-Override", FieldName::Withheld),
            ("x_original_url", FieldName::Disguised),
            ("Accept-Encoding", FieldName::Withheld),
            ("Content-Encoding", FieldName::ContentEncoding),
            ("Content-Encoding2", FieldName::Other),
            ("X_Y", FieldName::Other),
        ] {
            assert_eq!(FieldName::of(name.as_bytes()), want);
        }
    }

    #[test]
    fn connection_options_are_bounded_and_must_be_tokens() {
        let list = |n: usize| vec!["a"; n].join(", ").into_bytes();
        assert!(ConnectionOptions::default().note(&list(limits::CONNECTION_OPTIONS)).is_ok());
        assert!(ConnectionOptions::default().note(&list(limits::CONNECTION_OPTIONS + 1)).is_err());
        let commas = |n: usize| ",".repeat(n).into_bytes();
        assert!(ConnectionOptions::default().note(&commas(limits::CONNECTION_OPTIONS - 1)).is_ok());
        assert!(ConnectionOptions::default().note(&commas(limits::CONNECTION_OPTIONS)).is_err());
        let mut many = ConnectionOptions::default();
        assert!((0..limits::CONNECTION_OPTIONS).all(|_| many.note(b"").is_ok()));
        assert!(many.note(b"").is_err());
        assert!(ConnectionOptions::default().note(b"a b").is_err());
        let mut connection = ConnectionOptions::default();
        assert!(connection.note(b" , Keep-Alive,,CLOSE , ").is_ok());
        assert!(connection.close && !connection.names_fields && !connection.upgrade);
    }

    #[test]
    fn a_name_in_connection_is_found_in_any_order_and_case() {
        let value = b"x-b, X-A,,x-a, close , aaaa, x-c,b";
        let named = NamedFields::by([&value[..], b"Z"].into_iter());
        for name in ["x-a", "X-B", "x-C", "CLOSE", "aaaA", "B", "z"] {
            assert!(named.contains(name.as_bytes()), "{name}");
        }
        for name in ["", "x", "x-d", "x-aa", "aaab", "y", "x_a"] {
            assert!(!named.contains(name.as_bytes()), "{name}");
        }
        assert!(!NamedFields::by(std::iter::empty()).contains(b""));
    }
}
