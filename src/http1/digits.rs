//! Decimal numbers, parsed digit by digit: no sign and no white space is accepted.

/// Parses 1 to `most` digits and nothing else. `None` also if the number does not fit into u64.
pub fn decimal(text: &[u8], most: usize) -> Option<u64> {
    if text.is_empty() || text.len() > most {
        return None;
    }
    text.iter().try_fold(0u64, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

/// Parses a port: 1 to 5 digits, 0 to 65535.
pub fn port(text: &[u8]) -> Option<u16> {
    decimal(text, 5)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_alone_are_a_number() {
        for (text, want) in [
            ("0", Some(0)),
            ("007", Some(7)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("99999999999999999999", None),
            ("", None),
            ("+1", None),
            ("-1", None),
            (" 1", None),
            ("1 ", None),
            ("1_0", None),
            ("0x1", None),
            ("\u{661}", None),
        ] {
            assert_eq!(decimal(text.as_bytes(), 20), want, "{text:?}");
        }
    }

    #[test]
    fn no_more_digits_are_read_than_are_allowed() {
        assert_eq!(decimal(b"123", 3), Some(123));
        assert_eq!(decimal(b"1234", 3), None);
        assert_eq!(decimal(b"0001", 3), None);
        assert_eq!((port(b"65535"), port(b"65536"), port(b"000001")), (Some(65535), None, None));
    }
}
