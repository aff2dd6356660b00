//! Finds the certificates of a PEM file (RFC 7468) line by line, so that an error names the line.
//! Other sections and the text between sections are skipped.

use core::fmt;

/// The fault of a file, and its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PemError {
    /// The line, counted from 1.
    pub line: usize,
    /// The fault.
    pub fault: PemFault,
}

/// The faults that a file can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PemFault {
    /// The line looks like the first or the last of a section, but does not end with five dashes.
    Marker,
    /// The line ends a section that has not begun.
    NoBegin,
    /// The line begins a section that does not end.
    NoEnd,
    /// The line, or the section that begins there, is not Base64.
    NotBase64,
    /// The certificate that begins there cannot be a root.
    NotRoot,
}

impl fmt::Display for PemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.fault {
            PemFault::Marker => "begins or ends a section, and lacks the five dashes at its end",
            PemFault::NoBegin => "ends a section that has not begun",
            PemFault::NoEnd => "begins a section that does not end",
            PemFault::NotBase64 => "is not Base64, or begins a section that is not",
            PemFault::NotRoot => "begins a certificate that cannot be a root",
        };
        write!(f, "line {} {what}; correct the file", self.line)
    }
}

/// Calls `found` for each certificate: with the number of its first line, and with its section from
/// the BEGIN line to the END line.
pub fn certificates<'a>(
    text: &'a [u8],
    mut found: impl FnMut(usize, &'a [u8]) -> Result<(), PemError>,
) -> Result<(), PemError> {
    let mut section: Option<(usize, usize, &[u8])> = None;
    let (mut line, mut at) = (0, 0);
    for whole in text.split_inclusive(|byte| *byte == b'\n') {
        let start = at;
        at += whole.len();
        line += 1;
        let content = whole.trim_ascii_end();
        let error = |line, fault| Err(PemError { line, fault });
        match (marker(content), section) {
            (Err(fault), _) => return error(line, fault),
            (Ok(Some(Marker::Begin(label))), None) => section = Some((line, start, label)),
            (Ok(Some(Marker::End(label))), Some((first, begin, open))) if label == open => {
                if label == CERTIFICATE {
                    found(first, &text[begin..at])?;
                }
                section = None;
            }
            (Ok(Some(Marker::End(_))), None) => return error(line, PemFault::NoBegin),
            (Ok(Some(_)), Some((first, ..))) => return error(first, PemFault::NoEnd),
            (Ok(None), Some((_, _, CERTIFICATE))) if !content.iter().all(is_base64) => {
                return error(line, PemFault::NotBase64);
            }
            (Ok(None), _) => {}
        }
    }
    match section {
        Some((line, ..)) => Err(PemError { line, fault: PemFault::NoEnd }),
        None => Ok(()),
    }
}

const CERTIFICATE: &[u8] = b"CERTIFICATE";

/// The first or the last line of a section, with the section's label.
enum Marker<'a> {
    Begin(&'a [u8]),
    End(&'a [u8]),
}

fn marker(line: &[u8]) -> Result<Option<Marker<'_>>, PemFault> {
    let (rest, marker): (_, fn(_) -> _) = match line.strip_prefix(b"-----BEGIN ") {
        Some(rest) => (rest, Marker::Begin),
        None => match line.strip_prefix(b"-----END ") {
            Some(rest) => (rest, Marker::End),
            None => return Ok(None),
        },
    };
    rest.strip_suffix(b"-----").map(|label| Some(marker(label))).ok_or(PemFault::Marker)
}

fn is_base64(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines in which certificates begin.
    fn read(text: &str) -> Result<Vec<usize>, (usize, PemFault)> {
        let mut lines = Vec::new();
        let all = certificates(text.as_bytes(), |line, section| {
            assert!(section.starts_with(b"-----BEGIN CERTIFICATE-----"));
            lines.push(line);
            Ok(())
        });
        all.map(|()| lines).map_err(|error| (error.line, error.fault))
    }

    const ONE: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    const KEY: &str = "-----BEGIN PRIVATE KEY-----\nProc-Type: x\n\n!\n-----END PRIVATE KEY-----\n";

    #[test]
    fn certificates_are_found_in_bundles_of_any_kind() {
        for (text, want) in [
            (String::new(), vec![]),
            ("# a comment\nand text\n".into(), vec![]),
            (ONE.into(), vec![1]),
            (ONE.replace('\n', "\r\n"), vec![1]),
            (ONE.trim_end().into(), vec![1]),
            (format!("{ONE}{ONE}\n# two\n{ONE}"), vec![1, 4, 9]),
            (format!("{KEY}{ONE}{KEY}"), vec![6]),
            (ONE.replace("AAAA", "AAAA  \n\nBB==\t"), vec![1]),
            (ONE.replace("CERTIFICATE", "X509 CRL"), vec![]),
        ] {
            assert_eq!(read(&text), Ok(want), "{text}");
        }
    }

    #[test]
    fn what_is_broken_is_named_by_its_line() {
        use PemFault::*;
        let cut = &ONE[..ONE.len() - 26];
        for (text, want) in [
            (cut.to_owned(), (1, NoEnd)),
            (format!("{ONE}{cut}"), (4, NoEnd)),
            (format!("{ONE}{cut}{ONE}"), (4, NoEnd)),
            (ONE.replace("END CERT", "END X CERT"), (1, NoEnd)),
            (ONE.replace("-----END CERTIFICATE-----\n", ""), (1, NoEnd)),
            (format!("{ONE}-----BEGIN CERTIFICATE"), (4, Marker)),
            (ONE.replace("ATE-----\nA", "ATE----\nA"), (1, Marker)),
            (ONE.replace("\n", "\r"), (1, NoEnd)),
            (ONE.replace("END CERTIFICATE-----", "END CERTIFICATE"), (3, Marker)),
            (format!("{ONE}-----END CERTIFICATE-----\n"), (4, NoBegin)),
            (format!("\u{feff}{ONE}"), (3, NoBegin)),
            (format!(" {ONE}"), (3, NoBegin)),
            (format!("-{ONE}"), (3, NoBegin)),
            (ONE.replace("AAAA", "AAAA\nAA-A"), (3, NotBase64)),
            (ONE.replace("AAAA", "AA AA"), (2, NotBase64)),
            (ONE.replace("AAAA", "AA\0A"), (2, NotBase64)),
            (ONE.replace("AAAA", "\u{41f}"), (2, NotBase64)),
            (ONE.replace("AAAA", "Proc-Type: 4,ENCRYPTED"), (2, NotBase64)),
            (ONE.replace("AAAA", "----END CERTIFICATE-----"), (2, NotBase64)),
        ] {
            assert_eq!(read(&text), Err(want), "{text}");
        }
    }
}
