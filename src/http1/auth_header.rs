//! The field that carries the key upstream: `Authorization: Bearer {}` or the one of
//! `--auth-header`.

use core::fmt;

use super::field::{FieldName, is_token_byte};
use super::limits;

/// A field line with a place for the key at its end: `NAME: {}` or `NAME: SCHEME {}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthHeader<'a> {
    name: &'a str,
    /// Everything before the key, including the space.
    before: &'a str,
}

/// Why a value of `--auth-header` is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthHeaderError {
    /// Longer than the limit.
    TooLong,
    /// Neither `NAME: {}` nor `NAME: SCHEME {}`.
    Form,
    /// The field has another meaning in a request.
    Reserved,
}

impl fmt::Display for AuthHeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AuthHeaderError::TooLong => {
                write!(f, "it is longer than {} bytes; write 'NAME: {{}}'", limits::AUTH_HEADER)
            }
            AuthHeaderError::Form => f.write_str(
                "write 'NAME: {}' or 'NAME: SCHEME {}', with {} where the key goes (e.g. 'api-key: \
                 {}')",
            ),
            AuthHeaderError::Reserved => f.write_str(
                "this field means something else in a request; write the one in which the upstream \
                 expects the key (e.g. 'api-key: {}')",
            ),
        }
    }
}

impl AuthHeader<'static> {
    /// The form that OpenAI expects (RFC 6750 §2.1).
    pub const BEARER: Self = AuthHeader { name: "Authorization", before: "Authorization: Bearer " };
}

impl<'a> AuthHeader<'a> {
    /// Reads a value of `--auth-header`.
    pub fn parse(text: &'a str) -> Result<AuthHeader<'a>, AuthHeaderError> {
        if text.len() > limits::AUTH_HEADER {
            return Err(AuthHeaderError::TooLong);
        }
        let before = text.strip_suffix("{}").ok_or(AuthHeaderError::Form)?;
        let (name, scheme) = before.split_once(": ").ok_or(AuthHeaderError::Form)?;
        let is_scheme = scheme.is_empty() || scheme.strip_suffix(' ').is_some_and(is_token);
        if !is_token(name) || !is_scheme {
            return Err(AuthHeaderError::Form);
        }
        if !may_carry_the_key(name.as_bytes()) {
            return Err(AuthHeaderError::Reserved);
        }
        Ok(AuthHeader { name, before })
    }

    /// Everything before the key: `NAME: ` or `NAME: SCHEME `.
    pub fn before_key(&self) -> &'a str {
        self.before
    }

    /// The field's name, unless it is Authorization, which is never forwarded anyway.
    pub fn other_name(&self) -> Option<&'a [u8]> {
        (FieldName::of(self.name.as_bytes()) != FieldName::Authorization)
            .then_some(self.name.as_bytes())
    }
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(is_token_byte)
}

/// Whether a field of this name can carry the key. Fields that this program reads cannot, and
/// neither can fields about the body, the wanted response or the origin of the request: a key in
/// their place would break the request.
fn may_carry_the_key(name: &[u8]) -> bool {
    let begins = |with: &&str| {
        let start = name.get(..with.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(with.as_bytes()))
    };
    matches!(FieldName::of(name), FieldName::Authorization | FieldName::Other)
        && !["accept", "content-", "sec-"].iter().any(begins)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_taken_apart() {
        for (text, before, other) in [
            ("api-key: {}", "api-key: ", Some("api-key")),
            ("Ocp-Apim-Subscription-Key: {}", "Ocp-Apim-Subscription-Key: ", {
                Some("Ocp-Apim-Subscription-Key")
            }),
            ("X-Auth: Token {}", "X-Auth: Token ", Some("X-Auth")),
            ("AUTHORIZATION: Basic {}", "AUTHORIZATION: Basic ", None),
            ("authorization: {}", "authorization: ", None),
        ] {
            let header = AuthHeader::parse(text).unwrap();
            assert_eq!(header.before_key(), before);
            assert_eq!(header.other_name(), other.map(str::as_bytes));
        }
        assert_eq!(AuthHeader::parse("Authorization: Bearer {}"), Ok(AuthHeader::BEARER));
    }

    #[test]
    fn what_is_of_neither_form_or_has_a_meaning_of_its_own_is_refused() {
        for text in [
            "",
            "{}",
            ": {}",
            " : {}",
            "api-key",
            "api-key: ",
            "api-key: key",
            "api-key:{}",
            "api-key:  {}",
            "api-key:\t{}",
            "api-key: {} ",
            "api-key: {}\r\n",
            "api-key: {}{}",
            "api-key: {} {}",
            "{}: {}",
            "api-key: {}x",
            "api-key: x{}",
            "api-key: A B {}",
            "api-key: A  {}",
            "api-key : {}",
            " api-key: {}",
            "api key: {}",
            "api-key: A: {}",
            "api-key: \u{e9} {}",
            "api\u{e9}: {}",
            "api-key: x\r\nX-A: {}",
            "api-key\r\nX-A: {}",
            "api-key: \n {}",
            "api-key: \0 {}",
        ] {
            assert_eq!(AuthHeader::parse(text), Err(AuthHeaderError::Form), "{text:?}");
        }
        for name in [
            "Host",
            "hOST",
            "Connection",
            "Keep-Alive",
            "Proxy-Authorization",
            "Proxy-Connection",
            "TE",
            "Trailer",
            "Transfer-Encoding",
            "Upgrade",
            "Content-Length",
            "Content-Type",
            "content-encoding",
            "Accept",
            "Accept-Encoding",
            "Expect",
            "Origin",
            "Sec-Fetch-Site",
            "Sec-WebSocket-Key",
        ] {
            let text = format!("{name}: {{}}");
            assert_eq!(AuthHeader::parse(&text), Err(AuthHeaderError::Reserved), "{name}");
        }
    }

    #[test]
    fn the_length_limit_holds_at_n_and_not_at_n_plus_1() {
        let header = |n: usize| format!("{}: {{}}", "x".repeat(n - 4));
        assert!(AuthHeader::parse(&header(limits::AUTH_HEADER)).is_ok());
        let too_long = header(limits::AUTH_HEADER + 1);
        assert_eq!(AuthHeader::parse(&too_long), Err(AuthHeaderError::TooLong));
    }
}
