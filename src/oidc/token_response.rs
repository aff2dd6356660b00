//! What the bodies of the two responses say.

use core::fmt;

use super::Step;
use super::json::{self, Value};
use super::limits::{LIFETIME, WORD};
use super::receive::ResponseFault;
use crate::http1::digits;
use crate::http1::limits::TOKEN68;

/// A token that a response carries. The token itself has been written into the caller's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its length.
    pub len: usize,
    /// For how many seconds an access token is valid, at most [`LIFETIME`]; 0 for an ID token, which
    /// is used at once.
    pub lifetime: u64,
}

/// Reads the body of the response to a step, and writes the token to the front of `out`. The token
/// is token68, so it needs no escape in the next request and is one line for the relay.
pub fn token(step: Step, body: &[u8], out: &mut [u8]) -> Result<Token, ResponseFault> {
    match step {
        Step::IdToken => {
            let [value] = members(body, ["value"])?;
            Ok(Token { len: token68(value, out)?, lifetime: 0 })
        }
        Step::AccessToken => {
            let names = ["access_token", "issued_token_type", "token_type", "expires_in"];
            let [token, issued, kind, lifetime] = members(body, names)?;
            let len = token68(token, out)?;
            let is_access = is_text(issued, |text| text == ISSUED_TOKEN_TYPE);
            if !is_access || !is_text(kind, |text| text.eq_ignore_ascii_case(b"Bearer")) {
                return Err(ResponseFault::TokenType);
            }
            Ok(Token { len, lifetime: seconds(lifetime)? })
        }
    }
}

/// The type of the token that is asked for (RFC 8693 §3).
const ISSUED_TOKEN_TYPE: &[u8] = b"urn:ietf:params:oauth:token-type:access_token";

fn members<'a, const N: usize>(
    body: &'a [u8],
    names: [&str; N],
) -> Result<[Option<Value<'a>>; N], ResponseFault> {
    json::members(body, names).map_err(|_| ResponseFault::NotJson)
}

/// Writes a token to the front of `out` and returns its length.
fn token68(value: Option<Value<'_>>, out: &mut [u8]) -> Result<usize, ResponseFault> {
    let Some(Value::Text(text)) = value else {
        return Err(ResponseFault::NoToken);
    };
    let room = out.len().min(TOKEN68);
    let token = json::unescape(text, &mut out[..room]).ok_or(ResponseFault::TokenForm)?;
    let token = &out[token];
    if is_token68(token) { Ok(token.len()) } else { Err(ResponseFault::TokenForm) }
}

/// token68 (RFC 9110 §11.2).
pub fn is_token68(text: &[u8]) -> bool {
    let end = text.iter().rposition(|byte| *byte != b'=').map_or(0, |last| last + 1);
    let fits = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~+/".contains(byte);
    end > 0 && text[..end].iter().all(fits)
}

fn is_text(value: Option<Value<'_>>, is: impl Fn(&[u8]) -> bool) -> bool {
    matches!(value, Some(Value::Text(text)) if is(text))
}

/// A whole number of seconds from 1 on. One that is longer than a token is used counts as that.
fn seconds(value: Option<Value<'_>>) -> Result<u64, ResponseFault> {
    let Some(Value::Number(digits)) = value else {
        return Err(ResponseFault::Lifetime);
    };
    match digits::decimal(digits, 20) {
        Some(0) => Err(ResponseFault::Lifetime),
        Some(seconds) => Ok(seconds.min(LIFETIME)),
        None if !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) => Ok(LIFETIME),
        None => Err(ResponseFault::Lifetime),
    }
}

/// The word with which a provider says what is wrong (RFC 6749 §5.2): lower-case letters, digits and
/// `_`, so it can be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorWord {
    bytes: [u8; WORD],
    len: usize,
}

impl ErrorWord {
    /// The word, if it is a plain one. It begins with a letter.
    pub fn new(text: &[u8]) -> Option<ErrorWord> {
        let fits = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'_';
        let mut bytes = [0; WORD];
        bytes.get_mut(..text.len())?.copy_from_slice(text);
        let is_plain = text.first().is_some_and(u8::is_ascii_lowercase) && text.iter().all(fits);
        is_plain.then_some(ErrorWord { bytes, len: text.len() })
    }

    /// Reads the word in the body of a refusal, unless it is a part of one of these tokens.
    pub fn of_body(body: &[u8], tokens: [&[u8]; 2]) -> Option<ErrorWord> {
        let word = ErrorWord::of_error(body)?;
        let word_is_in = |token: &[u8]| token.windows(word.len).any(|part| part == word.as_bytes());
        (!tokens.into_iter().any(word_is_in)).then_some(word)
    }

    /// `error`, or the `code` of an `error` that is an object.
    fn of_error(body: &[u8]) -> Option<ErrorWord> {
        let [error] = json::members(body, ["error"]).ok()?;
        match error? {
            Value::Text(word) => ErrorWord::new(word),
            Value::Object(object) => match json::members(object, ["code"]).ok()? {
                [Some(Value::Text(word))] => ErrorWord::new(word),
                _ => None,
            },
            Value::Number(_) | Value::Other => None,
        }
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl fmt::Display for ErrorWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes().iter().try_for_each(|byte| write!(f, "{}", char::from(*byte)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oidc::limits;

    fn read(step: Step, body: &str) -> Result<(String, u64), ResponseFault> {
        let mut out = vec![0; TOKEN68];
        let Token { len, lifetime } = token(step, body.as_bytes(), &mut out)?;
        Ok((String::from_utf8(out[..len].to_vec()).unwrap(), lifetime))
    }

    #[test]
    fn an_id_token_is_the_value() {
        for (body, want) in [
            (r#"{"value":"ey.J_-.s"}"#, Ok(("ey.J_-.s".into(), 0))),
            (r#"{"count":1,"value":"ey\u002e\/\u003D"}"#, Ok(("ey./=".into(), 0))),
            (r#"{"value":""}"#, Err(ResponseFault::TokenForm)),
            (r#"{"value":"a b"}"#, Err(ResponseFault::TokenForm)),
            (r#"{"value":"a\nb"}"#, Err(ResponseFault::TokenForm)),
            (r#"{"value":"a\"b"}"#, Err(ResponseFault::TokenForm)),
            (r#"{"value":"=a"}"#, Err(ResponseFault::TokenForm)),
            (r#"{"value":"é"}"#, Err(ResponseFault::TokenForm)),
            (r#"{"value":null}"#, Err(ResponseFault::NoToken)),
            (r#"{"value":{"value":"a"}}"#, Err(ResponseFault::NoToken)),
            (r#"{"Value":"a"}"#, Err(ResponseFault::NoToken)),
            (r#"{}"#, Err(ResponseFault::NoToken)),
            (r#"{"value":"a","value":"b"}"#, Err(ResponseFault::NotJson)),
            (r#""a""#, Err(ResponseFault::NotJson)),
            ("", Err(ResponseFault::NotJson)),
        ] {
            assert_eq!(read(Step::IdToken, body), want, "{body}");
        }
    }

    const GOOD: &str = r#"{"access_token":"at.1","issued_token_type":"urn:ietf:params:oauth:token-type:access_token","token_type":"Bearer","expires_in":900}"#;

    #[test]
    fn an_access_token_has_its_type_and_a_lifetime() {
        assert_eq!(read(Step::AccessToken, GOOD), Ok(("at.1".into(), 900)));
        for (from, to, want) in [
            ("Bearer", "bEARER", Ok(900)),
            ("Bearer", "DPoP", Err(ResponseFault::TokenType)),
            ("\"Bearer\"", "1", Err(ResponseFault::TokenType)),
            ("token_type\":\"B", "x\":\"B", Err(ResponseFault::TokenType)),
            (
                "oauth:token-type:access_token",
                "oauth:token-type:jwt",
                Err(ResponseFault::TokenType),
            ),
            ("issued_token_type", "x", Err(ResponseFault::TokenType)),
            ("\"at.1\"", "[\"at.1\"]", Err(ResponseFault::NoToken)),
            ("access_token\":", "x\":", Err(ResponseFault::NoToken)),
            ("at.1", "at\\u0000", Err(ResponseFault::TokenForm)),
            ("900", "1", Ok(1)),
            ("900", "3600", Ok(limits::LIFETIME)),
            ("900", "3601", Ok(limits::LIFETIME)),
            ("900", "99999999999999999999999", Ok(limits::LIFETIME)),
            ("900", "0", Err(ResponseFault::Lifetime)),
            ("900", "-1", Err(ResponseFault::Lifetime)),
            ("900", "900.0", Err(ResponseFault::Lifetime)),
            ("900", "9e2", Err(ResponseFault::Lifetime)),
            ("900", "\"900\"", Err(ResponseFault::Lifetime)),
            ("900", "null", Err(ResponseFault::Lifetime)),
            ("expires_in", "x", Err(ResponseFault::Lifetime)),
            ("900}", "900", Err(ResponseFault::NotJson)),
        ] {
            let body = GOOD.replacen(from, to, 1);
            assert_ne!(body, GOOD);
            let got = read(Step::AccessToken, &body).map(|(_, lifetime)| lifetime);
            assert_eq!(got, want, "{body}");
        }
    }

    #[test]
    fn a_token_has_the_bound_of_a_key() {
        let body = |n| format!(r#"{{"value":"{}"}}"#, "a".repeat(n));
        assert_eq!(read(Step::IdToken, &body(TOKEN68)).unwrap().0.len(), TOKEN68);
        assert_eq!(read(Step::IdToken, &body(TOKEN68 + 1)), Err(ResponseFault::TokenForm));
    }

    #[test]
    fn only_a_plain_word_is_shown() {
        let word = |body: &str| {
            ErrorWord::of_body(body.as_bytes(), [b"x_12", b""]).map(|word| word.to_string())
        };
        let long = "a".repeat(limits::WORD);
        for (body, want) in [
            (r#"{"error":"invalid_grant","error_description":"…"}"#, Some("invalid_grant")),
            (r#"{"error":{"code":"expired_2","message":"x"}}"#, Some("expired_2")),
            (&format!(r#"{{"error":"{long}"}}"#), Some(&long)),
            (&format!(r#"{{"error":"{long}a"}}"#), None),
            (r#"{"error":"Invalid"}"#, None),
            (r#"{"error":"1a"}"#, None),
            (r#"{"error":"a b"}"#, None),
            (r#"{"error":"a\nb"}"#, None),
            (r#"{"error":""}"#, None),
            (r#"{"error":1}"#, None),
            (r#"{"error":{"message":"x"}}"#, None),
            (r#"{"message":"x"}"#, None),
            ("<html>", None),
        ] {
            assert_eq!(word(body).as_deref(), want, "{body}");
        }
    }

    #[test]
    fn a_word_that_is_a_part_of_a_token_is_not_shown() {
        let body = br#"{"error":"ab_1"}"#;
        for (tokens, is_shown) in [
            (["ab_", "b_1"], true),
            (["", ""], true),
            (["ab_1", "x"], false),
            (["x", "ab_1"], false),
            (["xab_1y", ""], false),
            (["", "xab_1"], false),
        ] {
            let word = ErrorWord::of_body(body, tokens.map(str::as_bytes));
            assert_eq!(word.is_some(), is_shown, "{tokens:?}");
        }
    }
}
