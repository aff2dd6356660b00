//! The framing of a body (RFC 9112 §6.3), and the scan for its end.

use super::chunked::{ChunkFault, ChunkScanner, ChunkStep};
use super::field::FramingFields;

/// How the end of a body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// The message has no body, whatever its fields say.
    None,
    /// A known number of bytes.
    Length(u64),
    /// Chunked transfer coding.
    Chunked,
    /// The end of the connection; in responses only.
    UntilClose,
}

/// The framing fields contradict each other, are repeated, or are malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FramingFault;

impl Framing {
    /// The framing of a request. Without a framing field, the body is empty. HTTP/1.0 has no
    /// transfer coding.
    pub fn of_request(lengths: &FramingFields, http10: bool) -> Result<Framing, FramingFault> {
        match Framing::declared(lengths, http10)? {
            Some(framing) => Ok(framing),
            None => Ok(Framing::Length(0)),
        }
    }

    /// The framing of the response to a POST with this status.
    pub fn of_response(
        lengths: &FramingFields,
        http10: bool,
        status: u16,
    ) -> Result<Framing, FramingFault> {
        let declared = Framing::declared(lengths, http10)?;
        Ok(match status {
            100..=199 | 204 | 304 => Framing::None,
            _ => declared.unwrap_or(Framing::UntilClose),
        })
    }

    fn declared(lengths: &FramingFields, http10: bool) -> Result<Option<Framing>, FramingFault> {
        match (lengths.content_lengths, lengths.transfer_encodings) {
            (0, 0) => Ok(None),
            (1, 0) => lengths.length.map(|n| Some(Framing::Length(n))).ok_or(FramingFault),
            (0, 1) if lengths.chunked && !http10 => Ok(Some(Framing::Chunked)),
            _ => Err(FramingFault),
        }
    }
}

/// How a body is written for the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// Without a transfer coding.
    Plain,
    /// In chunks, whose sizes the relay chooses.
    Chunked,
}

impl Coding {
    /// The coding of a body with this framing. A body of unknown length is sent in chunks, so that
    /// a truncated body does not look complete. HTTP/1.0 has no chunks.
    pub fn of(framing: Framing, http10: bool) -> Coding {
        match framing {
            Framing::Chunked | Framing::UntilClose if !http10 => Coding::Chunked,
            _ => Coding::Plain,
        }
    }
}

/// The rest of a body.
#[derive(Clone, Debug)]
pub enum Body {
    /// Nothing is left.
    End,
    /// This many bytes are left; never 0.
    Length(u64),
    /// Chunks are left.
    Chunked(ChunkScanner),
    /// Everything up to the end of the connection.
    UntilClose,
}

impl Body {
    /// A body that has not been read yet.
    pub fn new(framing: Framing) -> Body {
        match framing {
            Framing::None | Framing::Length(0) => Body::End,
            Framing::Length(n) => Body::Length(n),
            Framing::Chunked => Body::Chunked(ChunkScanner::default()),
            Framing::UntilClose => Body::UntilClose,
        }
    }

    /// Scans `input` up to the end of the first range of data, or of the body.
    pub fn step(&mut self, input: &[u8]) -> Result<ChunkStep, ChunkFault> {
        let step = match self {
            Body::End => ChunkStep { end: true, ..ChunkStep::default() },
            Body::Length(left) => {
                let data = input.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= data as u64;
                ChunkStep { framing: 0, data, end: *left == 0 }
            }
            Body::Chunked(scanner) => scanner.step(input)?,
            Body::UntilClose => ChunkStep { framing: 0, data: input.len(), end: false },
        };
        if step.end {
            *self = Body::End;
        }
        Ok(step)
    }

    /// Nothing is left.
    pub fn is_end(&self) -> bool {
        matches!(self, Body::End)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(cl: &[&str], te: &[&str]) -> FramingFields {
        let mut lengths = FramingFields::default();
        cl.iter().for_each(|v| lengths.content_length(v.as_bytes()));
        te.iter().for_each(|v| lengths.transfer_encoding(v.as_bytes()));
        lengths
    }

    #[test]
    fn one_framing_field_or_none_is_well_formed() {
        for (cl, te, want) in [
            (&[][..], &[][..], Framing::Length(0)),
            (&["0"], &[], Framing::Length(0)),
            (&["42"], &[], Framing::Length(42)),
            (&["007"], &[], Framing::Length(7)),
            (&["18446744073709551615"], &[], Framing::Length(u64::MAX)),
            (&[], &["chunked"], Framing::Chunked),
            (&[], &["CHUNKED"], Framing::Chunked),
        ] {
            assert_eq!(Framing::of_request(&lengths(cl, te), false), Ok(want));
        }
        assert_eq!(Framing::of_response(&lengths(&[], &[]), false, 200), Ok(Framing::UntilClose));
    }

    #[test]
    fn doubtful_lengths_are_refused_in_both_directions() {
        for (cl, te) in [
            (&["1", "1"][..], &[][..]),
            (&["1", "2"], &[]),
            (&["1, 1"], &[]),
            (&["+1"], &[]),
            (&["-1"], &[]),
            (&["1 1"], &[]),
            (&["0x1"], &[]),
            (&["1.0"], &[]),
            (&[""], &[]),
            (&["18446744073709551616"], &[]),
            (&["000000000000000000001"], &[]),
            (&["1"], &["chunked"]),
            (&[], &["chunked", "chunked"]),
            (&[], &["chunked, chunked"]),
            (&[], &["gzip, chunked"]),
            (&[], &["identity"]),
            (&[], &["xchunked"]),
            (&[], &["chunked;q=1"]),
            (&[], &[""]),
        ] {
            assert_eq!(Framing::of_request(&lengths(cl, te), false), Err(FramingFault));
            assert_eq!(Framing::of_response(&lengths(cl, te), false, 200), Err(FramingFault));
        }
        assert_eq!(Framing::of_request(&lengths(&[], &["chunked"]), true), Err(FramingFault));
        assert_eq!(Framing::of_response(&lengths(&[], &["chunked"]), true, 200), Err(FramingFault));
    }

    #[test]
    fn statuses_without_a_body_have_none_whatever_is_declared() {
        for status in [100, 103, 199, 204, 304] {
            assert_eq!(
                Framing::of_response(&lengths(&["5"], &[]), false, status),
                Ok(Framing::None)
            );
        }
    }

    #[test]
    fn a_body_of_known_length_ends_exactly_there() {
        let mut body = Body::new(Framing::Length(5));
        assert_eq!(body.step(b"abc"), Ok(ChunkStep { framing: 0, data: 3, end: false }));
        assert_eq!(body.step(b"defg"), Ok(ChunkStep { framing: 0, data: 2, end: true }));
        assert!(body.is_end());
    }
}
