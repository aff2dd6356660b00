//! The two response fields that the access log may repeat. Each byte of them is checked.

use super::digits;
use super::limits;

/// The id that the upstream gives a request: 1 to 64 bytes of `A-Z a-z 0-9 - _`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId {
    bytes: [u8; limits::REQUEST_ID],
    len: u8,
}

impl RequestId {
    /// `None` for a value with any other byte.
    fn of(value: &[u8]) -> Option<RequestId> {
        let is_allowed = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if value.is_empty() || !value.iter().all(is_allowed) {
            return None;
        }
        let mut bytes = [0; limits::REQUEST_ID];
        bytes.get_mut(..value.len())?.copy_from_slice(value);
        Some(RequestId { bytes, len: value.len() as u8 })
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }
}

/// A field that counts only if it occurs once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Once<T> {
    #[default]
    Missing,
    Value(T),
    /// The field is repeated or malformed.
    Unclear,
}

impl<T> Once<T> {
    fn note(&mut self, value: Option<T>) {
        *self = match (&self, value) {
            (Once::Missing, Some(value)) => Once::Value(value),
            _ => Once::Unclear,
        };
    }

    fn value(self) -> Option<T> {
        match self {
            Once::Value(value) => Some(value),
            Once::Missing | Once::Unclear => None,
        }
    }
}

/// The fields of one response head that the access log may repeat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoggedFields {
    request_id: Once<RequestId>,
    retry_after: Once<u64>,
}

impl LoggedFields {
    /// Records a field, if it is one of the two.
    pub fn note(&mut self, name: &[u8], value: &[u8]) {
        match name.len() {
            12 if name.eq_ignore_ascii_case(b"x-request-id") => {
                self.request_id.note(RequestId::of(value));
            }
            11 if name.eq_ignore_ascii_case(b"retry-after") => {
                let seconds = digits::decimal(value, limits::RETRY_AFTER_DIGITS);
                self.retry_after.note(seconds);
            }
            _ => {}
        }
    }

    /// `x-request-id`.
    pub fn request_id(&self) -> Option<RequestId> {
        self.request_id.value()
    }

    /// `Retry-After` in seconds. A date counts as malformed.
    pub fn retry_after(&self) -> Option<u64> {
        self.retry_after.value()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(fields: &[(&str, &str)]) -> (Option<String>, Option<u64>) {
        let mut logged = LoggedFields::default();
        fields.iter().for_each(|(name, value)| logged.note(name.as_bytes(), value.as_bytes()));
        (logged.request_id().map(|id| id.as_str().to_owned()), logged.retry_after())
    }

    #[test]
    fn a_request_id_is_logged_only_when_every_byte_of_it_is_harmless() {
        let longest = "a".repeat(limits::REQUEST_ID);
        for fine in ["req_0123-aZ", "-", &longest] {
            assert_eq!(noted(&[("X-Request-Id", fine)]).0.as_deref(), Some(fine));
        }
        let too_long = "a".repeat(limits::REQUEST_ID + 1);
        for bad in ["", "a b", "a\"", "a\\", "a.b", "a\n", "é", "a,b", &too_long] {
            assert_eq!(noted(&[("x-request-id", bad)]).0, None, "{bad}");
        }
        for name in ["x_request_id", "x-request-ids", "request-id"] {
            assert_eq!(noted(&[(name, "a")]).0, None, "{name}");
        }
    }

    #[test]
    fn seconds_to_wait_are_digits_and_few() {
        for (value, want) in [
            ("0", Some(0)),
            ("007", Some(7)),
            (&"9".repeat(limits::RETRY_AFTER_DIGITS), Some(999_999)),
            (&"9".repeat(limits::RETRY_AFTER_DIGITS + 1), None),
            ("", None),
            ("+1", None),
            ("1.5", None),
            ("1 ", None),
            ("Wed, 21 Oct 2026 07:28:00 GMT", None),
        ] {
            assert_eq!(noted(&[("Retry-After", value)]).1, want, "{value}");
        }
    }

    #[test]
    fn a_field_that_comes_again_is_not_logged() {
        for second in ["b", "a", ""] {
            let twice = [("x-request-id", "a"), ("x-request-id", second)];
            assert_eq!(noted(&twice).0, None);
        }
        let thrice = [("retry-after", "1"); 3];
        assert_eq!(noted(&thrice).1, None);
    }
}
