//! The form of keys, and the reasons why a text is not a key.

use std::fmt;
use std::io;

use crate::http1::limits;

/// The form of keys that are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyForm {
    /// ASCII letters, digits, `-` and `_`: the keys that the reference implementation accepts.
    Word,
    /// token68 (RFC 9110 §11.2), which equals b64token (RFC 6750 §2.1). This form also allows `.`,
    /// `~`, `+` and `/`, and `=` at the end. A JWT has this form.
    Token68,
}

impl KeyForm {
    /// The most bytes that a key of this form may have.
    pub(crate) const fn longest(self) -> usize {
        match self {
            KeyForm::Word => limits::KEY - "Bearer ".len(),
            KeyForm::Token68 => limits::TOKEN68,
        }
    }

    /// Whether a line, without its end, is a key of this form.
    pub(crate) fn check(self, line: &[u8]) -> Result<(), KeyError> {
        if line.len() > self.longest() {
            return Err(KeyError::TooLong(self));
        }
        if line.is_empty() {
            return Err(KeyError::Empty);
        }
        match self.misfit(line) {
            None => Ok(()),
            Some(at) => Err(KeyError::BadCharacter(self, Misfit::of(self, line, at))),
        }
    }

    /// The position, counted from 0, of the first byte that a key of this form may not have.
    fn misfit(self, key: &[u8]) -> Option<usize> {
        let (word, marks): (_, &[u8]) = match self {
            KeyForm::Word => (key, b"-_"),
            KeyForm::Token68 => {
                let end = key.iter().rposition(|byte| *byte != b'=').map_or(0, |last| last + 1);
                (&key[..end], b"-._~+/")
            }
        };
        let fits = |byte: &u8| byte.is_ascii_alphanumeric() || marks.contains(byte);
        word.iter().position(|byte| !fits(byte)).or(word.is_empty().then_some(0))
    }
}

/// Why a key does not fit its form. The value names the kind of a byte, never the byte itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// The text begins with `Bearer `.
    Scheme,
    /// The text begins with `NAME=`.
    Variable,
    /// The text begins with a UTF-8 byte order mark.
    ByteOrderMark,
    /// `--allow-token68` would allow the whole key.
    Token68,
    /// The position of the byte, counted from 1, and its kind.
    Byte(usize, &'static str),
}

impl Misfit {
    fn of(form: KeyForm, key: &[u8], at: usize) -> Misfit {
        let name =
            key.iter().take_while(|byte| byte.is_ascii_uppercase() || **byte == b'_').count();
        if key.get(..7).is_some_and(|start| start.eq_ignore_ascii_case(b"Bearer ")) {
            Misfit::Scheme
        } else if key.starts_with("\u{feff}".as_bytes()) {
            Misfit::ByteOrderMark
        } else if name > 2 && key.get(name) == Some(&b'=') && name + 1 < key.len() {
            Misfit::Variable
        } else if form == KeyForm::Word && KeyForm::Token68.misfit(key).is_none() {
            Misfit::Token68
        } else {
            let kind = match key[at] {
                b' ' => "a space",
                b'\t' => "a tab",
                b'"' | b'\'' | b'`' => "a quotation mark",
                b'.' | b'~' | b'+' | b'/' | b'=' => "one of . ~ + / =",
                0..32 | 127 => "a control character",
                128.. => "not ASCII",
                _ => "a punctuation mark",
            };
            Misfit::Byte(at + 1, kind)
        }
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Misfit::Scheme => f.write_str("it begins with \"Bearer \"; give the key alone"),
            Misfit::Variable => f.write_str("it begins with NAME=; give the value alone"),
            Misfit::ByteOrderMark => {
                f.write_str("it begins with a byte order mark; save the file without one")
            }
            Misfit::Token68 => f.write_str(
                "add --allow-token68 to accept '.', '~', '+', '/' and '=' (in a JWT, for example)",
            ),
            Misfit::Byte(at, kind) => write!(f, "byte {at} is {kind}; give the key alone"),
        }
    }
}

/// Why no key could be read. The texts say how to fix the problem. No text contains a byte of the
/// input.
#[derive(Debug)]
pub enum KeyError {
    /// The first line of the input is empty.
    Empty,
    /// The key is longer than its form allows.
    TooLong(KeyForm),
    /// A byte is not allowed in a key of this form.
    BadCharacter(KeyForm, Misfit),
    /// The key is not followed by a space and its lifetime in milliseconds.
    Lifetime,
    /// read(2) failed.
    Read(io::Error),
    /// The kernel provides neither secret nor locked memory. All secrets need this many KiB.
    Memory(io::Error, usize),
    /// The kernel returned no random numbers, which the search for the key needs.
    Random(io::Error),
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyError::Empty => f.write_str(
                "API key must be provided via stdin (e.g. printenv OPENAI_API_KEY | \
                 env -u OPENAI_API_KEY codex-responses-api-proxy)",
            ),
            KeyError::TooLong(form) => {
                let more = match form {
                    KeyForm::Word => {
                        "; add --allow-token68 to accept a longer one (a JWT, for example)"
                    }
                    KeyForm::Token68 => "",
                };
                write!(f, "API key is too large: at most {} bytes{more}", form.longest())
            }
            KeyError::BadCharacter(KeyForm::Word, misfit) => {
                write!(f, "API key may only contain ASCII letters, numbers, '-' or '_'; {misfit}")
            }
            KeyError::BadCharacter(KeyForm::Token68, misfit) => write!(
                f,
                "API key may only contain ASCII letters, numbers, '-', '.', '_', '~', '+' or '/', and \
                 '=' at its end; {misfit}"
            ),
            KeyError::Lifetime => {
                f.write_str("the key is not followed by a space and its lifetime in milliseconds")
            }
            KeyError::Read(error) => write!(
                f,
                "cannot read the API key from stdin: {error}; give it through a pipe or from a file"
            ),
            KeyError::Memory(error, kib) => write!(
                f,
                "no memory that can hold the API key safely ({error}); raise the limit on locked memory \
                 (ulimit -l) to {kib} KiB or more"
            ),
            KeyError::Random(error) => write!(
                f,
                "no random numbers ({error}); let getrandom(2) through in the container's seccomp \
                 profile"
            ),
        }
    }
}
