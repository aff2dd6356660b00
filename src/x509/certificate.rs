//! Reads the issuer and the expiry date of a certificate for `--check`: a strict parser of its DER
//! (X.690, RFC 5280 §4.1) up to these two fields. The result is shown to people; no decision
//! depends on it.

/// Bytes of a name that are shown. X.520 allows no more in a common name.
const NAME_SHOWN: usize = 64;

const INTEGER: u8 = 0x02;
const OID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const VERSION: u8 = 0xa0;

const COMMON_NAME: &[u8] = &[0x55, 4, 3];
const ORGANISATION: &[u8] = &[0x55, 4, 10];

/// The parts of a certificate that are shown.
#[derive(Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The issuer's common name, or else its organisation. Visible ASCII; other bytes are escaped.
    /// Empty when the issuer has neither.
    pub issuer: String,
    /// The last day of its validity, in UTC: year, month, day.
    pub not_after: (u64, u64, u64),
}

impl Certificate {
    /// Reads a certificate. `None`: up to the validity, the bytes are not those of a certificate.
    pub fn read(mut der: &[u8]) -> Option<Certificate> {
        let mut certificate = element(&mut der, SEQUENCE)?;
        let mut fields = element(&mut certificate, SEQUENCE)?;
        if fields.first() == Some(&VERSION) {
            element(&mut fields, VERSION)?;
        }
        // The serial number and the signature algorithm.
        element(&mut fields, INTEGER)?;
        element(&mut fields, SEQUENCE)?;
        let issuer = issuer(element(&mut fields, SEQUENCE)?)?;
        let mut validity = element(&mut fields, SEQUENCE)?;
        date(&mut validity)?;
        let not_after = date(&mut validity)?;
        Some(Certificate { issuer, not_after })
    }
}

/// Takes one element with this tag from the front of `input` and returns its content. The length
/// must be in its shortest form, as DER demands.
#[inline(never)]
fn element<'a>(input: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    let (len, rest) = match **input {
        [first, len @ ..=0x7f, ref rest @ ..] if first == tag => (usize::from(len), rest),
        [first, 0x81, len @ 0x80..=0xff, ref rest @ ..] if first == tag => (usize::from(len), rest),
        [first, 0x82, high @ 1..=0xff, low, ref rest @ ..] if first == tag => {
            (usize::from(u16::from_be_bytes([high, low])), rest)
        }
        // The TLS library accepts no handshake message of 64 KiB, so no longer form is needed.
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(len)?;
    *input = rest;
    Some(content)
}

/// The name to show for an issuer.
fn issuer(mut name: &[u8]) -> Option<String> {
    let (mut common_name, mut organisation) = (None, None);
    while !name.is_empty() {
        let mut set = element(&mut name, SET)?;
        while !set.is_empty() {
            let mut attribute = element(&mut set, SEQUENCE)?;
            let kind = element(&mut attribute, OID)?;
            // A string of any type: its bytes are shown.
            let tag = *attribute.first()?;
            let text = element(&mut attribute, tag)?;
            match kind {
                COMMON_NAME => common_name = Some(text),
                ORGANISATION => organisation = Some(text),
                _ => {}
            }
        }
    }
    let text = common_name.or(organisation).unwrap_or_default();
    Some(
        text.iter().take(NAME_SHOWN).flat_map(|byte| byte.escape_ascii()).map(char::from).collect(),
    )
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ` (RFC 5280 §4.1.2.5).
fn date(validity: &mut &[u8]) -> Option<(u64, u64, u64)> {
    let (century, text) = match validity.first() {
        Some(&UTC_TIME) => (None, element(validity, UTC_TIME)?),
        _ => {
            let text = element(validity, GENERALIZED_TIME)?;
            let (century, text) = text.split_at_checked(2)?;
            (Some(two_digits(century)?), text)
        }
    };
    let ([digits @ .., b'Z'], 13) = (text, text.len()) else {
        return None;
    };
    let mut numbers = [0; 6];
    for (number, digits) in numbers.iter_mut().zip(digits.chunks(2)) {
        *number = two_digits(digits)?;
    }
    let [year, month, day, hour, minute, second] = numbers;
    let century = century.unwrap_or(if year < 50 { 20 } else { 19 });
    let is_valid = (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    is_valid.then_some((100 * century + year, month, day))
}

fn two_digits(text: &[u8]) -> Option<u64> {
    match text {
        [tens @ b'0'..=b'9', ones @ b'0'..=b'9'] => {
            Some(u64::from(tens - b'0') * 10 + u64::from(ones - b'0'))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn der(tag: u8, content: &[u8]) -> Vec<u8> {
        let len = content.len();
        let header = match len {
            0..0x80 => vec![tag, len as u8],
            0x80..0x100 => vec![tag, 0x81, len as u8],
            _ => vec![tag, 0x82, (len >> 8) as u8, len as u8],
        };
        [&header, content].concat()
    }

    fn attribute(kind: &[u8], tag: u8, text: &[u8]) -> Vec<u8> {
        der(SET, &der(SEQUENCE, &[der(OID, kind), der(tag, text)].concat()))
    }

    fn certificate(version: &[u8], issuer: &[u8], validity: &[u8]) -> Vec<u8> {
        let fields = [
            version,
            &der(INTEGER, &[1]),
            &der(SEQUENCE, &der(OID, &[42])),
            &der(SEQUENCE, issuer),
            &der(SEQUENCE, validity),
            &der(SEQUENCE, &[0; 300]),
        ];
        let signature = [der(SEQUENCE, &[]), der(3, &[0; 70])].concat();
        der(SEQUENCE, &[der(SEQUENCE, &fields.concat()), signature].concat())
    }

    fn of(issuer: &[u8], validity: &[u8]) -> Option<Certificate> {
        Certificate::read(&certificate(&der(VERSION, &der(INTEGER, &[2])), issuer, validity))
    }

    fn validity(tag: u8, not_after: &[u8]) -> Vec<u8> {
        [der(UTC_TIME, b"200101000000Z"), der(tag, not_after)].concat()
    }

    fn good() -> Vec<u8> {
        validity(UTC_TIME, b"270102030405Z")
    }

    #[test]
    fn the_common_name_is_shown_or_else_the_organisation() {
        let [cn, o] = [(COMMON_NAME, "WE1"), (ORGANISATION, "Google Trust Services")]
            .map(|(kind, text)| attribute(kind, 0x13, text.as_bytes()));
        let country = attribute(&[0x55, 4, 6], 0x13, b"US");
        for (issuer, want) in [
            ([&country[..], &o, &cn].concat(), "WE1"),
            ([&cn[..], &o].concat(), "WE1"),
            ([&country[..], &o].concat(), "Google Trust Services"),
            (country.clone(), ""),
            (Vec::new(), ""),
        ] {
            assert_eq!(of(&issuer, &good()).unwrap().issuer, want);
        }
        // Of version 1, which has no field for it.
        assert_eq!(Certificate::read(&certificate(&[], &cn, &good())).unwrap().issuer, "WE1");
    }

    #[test]
    fn a_name_cannot_paint_the_terminal_nor_fill_it() {
        for (text, want) in [
            (&b"\x1b[31mred\r\n\0"[..], "\\x1b[31mred\\r\\n\\x00".to_owned()),
            ("caf\u{e9} \u{202e}".as_bytes(), "caf\\xc3\\xa9 \\xe2\\x80\\xae".into()),
            (b"\x7f\x9b\\\"'", "\\x7f\\x9b\\\\\\\"\\'".into()),
            (&[b'a'; 1000], "a".repeat(64)),
        ] {
            let issuer = of(&attribute(COMMON_NAME, 0x0c, text), &good()).unwrap().issuer;
            assert_eq!(issuer, want);
        }
    }

    #[test]
    fn both_kinds_of_time_are_read() {
        for (tag, text, want) in [
            (UTC_TIME, &b"270102030405Z"[..], (2027, 1, 2)),
            (UTC_TIME, b"491231235959Z", (2049, 12, 31)),
            (UTC_TIME, b"500101000000Z", (1950, 1, 1)),
            (GENERALIZED_TIME, b"20500101000000Z", (2050, 1, 1)),
            (GENERALIZED_TIME, b"99991231235959Z", (9999, 12, 31)),
        ] {
            assert_eq!(of(&[], &validity(tag, text)).unwrap().not_after, want);
        }
    }

    #[test]
    fn what_is_no_time_is_none() {
        for (tag, text) in [
            (UTC_TIME, &b""[..]),
            (UTC_TIME, b"2701020304Z"),
            (UTC_TIME, b"270102030405"),
            (UTC_TIME, b"2701020304050"),
            (UTC_TIME, b"270102030405Z0"),
            (UTC_TIME, b"20270102030405Z"),
            (UTC_TIME, b"+70102030405Z"),
            (UTC_TIME, b"2701020304 5Z"),
            (UTC_TIME, b"270002030405Z"),
            (UTC_TIME, b"271302030405Z"),
            (UTC_TIME, b"270100030405Z"),
            (UTC_TIME, b"270132030405Z"),
            (UTC_TIME, b"270102240405Z"),
            (UTC_TIME, b"270102036005Z"),
            (UTC_TIME, b"270102030460Z"),
            (UTC_TIME, b"270102030405+0000"),
            (GENERALIZED_TIME, b""),
            (GENERALIZED_TIME, b"2"),
            (GENERALIZED_TIME, b"270102030405Z"),
            (GENERALIZED_TIME, b"20270102030405.5Z"),
            (GENERALIZED_TIME, b"2x270102030405Z"),
            (SEQUENCE, b"270102030405Z"),
            (0x04, b"270102030405Z"),
        ] {
            assert_eq!(of(&[], &validity(tag, text)), None, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn truncated_anywhere_it_is_none() {
        let whole = certificate(&[], &attribute(COMMON_NAME, 0x0c, b"a name"), &good());
        assert!(Certificate::read(&whole).is_some());
        for len in 0..whole.len() {
            assert_eq!(Certificate::read(&whole[..len]), None, "{len} bytes");
        }
    }

    #[test]
    fn no_change_of_one_byte_makes_it_panic_or_run_past_the_end() {
        let whole = certificate(&[], &attribute(COMMON_NAME, 0x0c, b"a name"), &good());
        // Interpreted by miri, every value would take minutes.
        let step = if cfg!(miri) { 51 } else { 1 };
        for at in 0..whole.len().min(120) {
            for byte in (0..=255).step_by(step) {
                let mut changed = whole.clone();
                changed[at] = byte;
                if let Some(certificate) = Certificate::read(&changed) {
                    assert!(certificate.issuer.len() <= 4 * NAME_SHOWN);
                }
            }
        }
    }

    #[test]
    fn lengths_that_are_not_der_are_none() {
        for header in [
            &[SEQUENCE, 0x80][..],
            &[SEQUENCE, 0x81, 0x05],
            &[SEQUENCE, 0x81, 0x7f],
            &[SEQUENCE, 0x82, 0x00, 0xff],
            &[SEQUENCE, 0x82, 0xff, 0xff],
            &[SEQUENCE, 0x83, 0x01, 0x00, 0x00],
            &[SEQUENCE, 0x84, 0xff, 0xff, 0xff, 0xff],
            &[SEQUENCE, 0x88, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            &[SEQUENCE, 0xff],
            &[SET, 0x05],
            &[0x3f, 0x05],
            &[],
        ] {
            let bytes = [header, &[0; 600]].concat();
            assert_eq!(element(&mut &bytes[..], SEQUENCE).map(<[u8]>::len), None, "{header:x?}");
        }
        for (len, header) in [(0x7f, vec![0x7f]), (0x80, vec![0x81, 0x80]), (256, vec![0x82, 1, 0])]
        {
            let bytes = [vec![SEQUENCE], header, vec![0; 600]].concat();
            assert_eq!(element(&mut &bytes[..], SEQUENCE).map(<[u8]>::len), Some(len));
        }
    }
}
