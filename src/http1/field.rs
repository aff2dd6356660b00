//! Field names and what is done with them: what ends at this hop and what travels on
//! (RFC 9110 §7.6.1).

use super::limits;

/// May stand in a token (RFC 9110 §5.6.2).
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

/// May stand in a field value: visible, obs-text, SP or HTAB (RFC 9110 §5.5).
pub fn is_value_byte(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// What a field name means to a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// Nothing: it travels on, unless Connection nominates it.
    Other,
    /// Ends here, always.
    HopByHop,
    /// Replaced by the credential block.
    Authorization,
    /// Names what ends here (RFC 9110 §7.6.1).
    Connection,
    /// Framing, written anew.
    ContentLength,
    /// RFC 9110 §10.1.1.
    Expect,
    /// Replaced by the upstream's.
    Host,
    /// Sent by web pages.
    Origin,
    /// Sent by browsers: where the page came from.
    SecFetchSite,
    /// Framing, written anew.
    TransferEncoding,
    /// Ends here; a WebSocket is told apart by it.
    Upgrade,
}

impl Name {
    /// Looks a field name up; case does not matter.
    pub fn of(name: &[u8]) -> Name {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        // By length first: nearly every field of a real request is settled by that alone.
        match name.len() {
            2 if is("te") => Name::HopByHop,
            4 if is("host") => Name::Host,
            6 if is("expect") => Name::Expect,
            6 if is("origin") => Name::Origin,
            7 if is("upgrade") => Name::Upgrade,
            7 if is("trailer") => Name::HopByHop,
            10 if is("connection") => Name::Connection,
            10 if is("keep-alive") => Name::HopByHop,
            13 if is("authorization") => Name::Authorization,
            14 if is("content-length") => Name::ContentLength,
            14 if is("sec-fetch-site") => Name::SecFetchSite,
            17 if is("transfer-encoding") => Name::TransferEncoding,
            // Proxy-Authorization, Proxy-Connection, Proxy-Authenticate and their kin.
            6.. if name[..6].eq_ignore_ascii_case(b"proxy-") => Name::HopByHop,
            _ => Name::Other,
        }
    }
}

/// What the length fields of one head say, before it is judged.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lengths {
    /// Content-Length fields seen.
    pub content_lengths: usize,
    /// The last one's value, where it is one plain number.
    pub length: Option<u64>,
    /// Transfer-Encoding fields seen.
    pub transfer_encodings: usize,
    /// The last one is exactly `chunked`.
    pub chunked: bool,
}

impl Lengths {
    /// Notes a Content-Length field.
    pub fn content_length(&mut self, value: &[u8]) {
        self.content_lengths += 1;
        self.length = number(value);
    }

    /// Notes a Transfer-Encoding field.
    pub fn transfer_encoding(&mut self, value: &[u8]) {
        self.transfer_encodings += 1;
        self.chunked = value.eq_ignore_ascii_case(b"chunked");
    }
}

/// 1 to 20 decimal digits and nothing else, within u64.
fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 20 {
        return None;
    }
    text.iter().try_fold(0u64, |value, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

/// The Connection fields of one head.
#[derive(Clone, Copy, Debug, Default)]
pub struct Connection {
    /// `close` was among the options.
    pub close: bool,
    /// `upgrade` was among the options.
    pub upgrade: bool,
    /// Some option names a field that would otherwise travel on.
    pub nominates: bool,
    options: usize,
}

impl Connection {
    /// Notes a Connection field; false when it cannot be read or holds too many options.
    pub fn note(&mut self, value: &[u8]) -> bool {
        for option in options(value) {
            self.options += 1;
            if self.options > limits::CONNECTION_OPTIONS
                || !option.iter().all(|b| is_token_byte(*b))
            {
                return false;
            }
            if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if option.eq_ignore_ascii_case(b"upgrade") {
                self.upgrade = true;
            } else if !option.eq_ignore_ascii_case(b"keep-alive") {
                self.nominates = true;
            }
        }
        true
    }
}

/// The non-empty members of a comma-separated list (RFC 9110 §5.6.1).
pub fn options(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|option| !option.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_in_every_spelling() {
        for (name, want) in [
            ("authorization", Name::Authorization),
            ("AUTHORIZATION", Name::Authorization),
            ("aUtHoRiZaTiOn", Name::Authorization),
            ("Proxy-Authorization", Name::HopByHop),
            ("proxy-anything", Name::HopByHop),
            ("TE", Name::HopByHop),
            ("Trailer", Name::HopByHop),
            ("Keep-Alive", Name::HopByHop),
            ("Content-Length", Name::ContentLength),
            ("Content-Lengths", Name::Other),
            ("x-authorization", Name::Other),
            ("Accept", Name::Other),
        ] {
            assert_eq!(Name::of(name.as_bytes()), want);
        }
    }

    #[test]
    fn connection_options_are_bounded_and_must_be_tokens() {
        let list = |n: usize| vec!["a"; n].join(", ").into_bytes();
        assert!(Connection::default().note(&list(limits::CONNECTION_OPTIONS)));
        assert!(!Connection::default().note(&list(limits::CONNECTION_OPTIONS + 1)));
        assert!(!Connection::default().note(b"a b"));
        let mut connection = Connection::default();
        assert!(connection.note(b" , Keep-Alive,,CLOSE , "));
        assert!(connection.close && !connection.nominates && !connection.upgrade);
    }
}
