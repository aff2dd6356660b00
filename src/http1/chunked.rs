//! The chunked transfer coding (RFC 9112 §7.1), parsed strictly. Data is counted, never copied.

use super::field;
use super::limits;
use super::work;

/// Scans a chunked body in parts. Data and end are the same however the input is cut.
#[derive(Clone, Debug)]
pub struct ChunkScanner {
    state: ChunkState,
    /// Bytes of the trailer section so far.
    section: usize,
    /// Field lines of the trailer section so far.
    fields: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChunkState {
    Size {
        digits: u8,
        value: u64,
    },
    /// White space before a `;`. Nothing else may follow.
    Space {
        value: u64,
        used: usize,
    },
    Ext {
        value: u64,
        used: usize,
    },
    SizeLf {
        value: u64,
    },
    Data {
        left: u64,
    },
    DataCr,
    DataLf,
    LineStart,
    Name,
    Value,
    ValueLf,
    LastLf,
    End,
}

/// The chunked framing is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkFault;

/// The meaning of the next bytes: `framing` bytes to skip, then `data` bytes of body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChunkStep {
    /// Bytes of framing at the front of the input.
    pub framing: usize,
    /// Bytes of body behind them.
    pub data: usize,
    /// The trailer section has ended: the body is complete. Such a step has no data.
    pub end: bool,
}

impl Default for ChunkScanner {
    fn default() -> Self {
        ChunkScanner { state: ChunkState::Size { digits: 0, value: 0 }, section: 0, fields: 0 }
    }
}

impl ChunkScanner {
    /// Scans `input` up to the end of the first range of data, or of the body.
    pub fn step(&mut self, input: &[u8]) -> Result<ChunkStep, ChunkFault> {
        let mut at = 0;
        while at < input.len() {
            if let ChunkState::Data { left } = self.state {
                let data = (input.len() - at).min(usize::try_from(left).unwrap_or(usize::MAX));
                let left = left - data as u64;
                self.state = if left == 0 { ChunkState::DataCr } else { ChunkState::Data { left } };
                return Ok(ChunkStep { framing: at, data, end: false });
            }
            if self.state == ChunkState::End {
                break;
            }
            work::spend(1);
            self.state = self.byte(input[at])?;
            at += 1;
        }
        Ok(ChunkStep { framing: at, data: 0, end: self.state == ChunkState::End })
    }

    fn byte(&mut self, byte: u8) -> Result<ChunkState, ChunkFault> {
        Ok(match (self.state, byte) {
            (ChunkState::Size { digits, value }, _) if byte.is_ascii_hexdigit() => {
                if digits == limits::CHUNK_DIGITS {
                    return Err(ChunkFault);
                }
                let digit = (byte as char).to_digit(16).unwrap_or(0);
                ChunkState::Size { digits: digits + 1, value: value << 4 | u64::from(digit) }
            }
            (ChunkState::Size { digits: 1.., value }, b'\r') => ChunkState::SizeLf { value },
            (ChunkState::Size { digits: 1.., value }, b';') => ChunkState::Ext { value, used: 1 },
            (ChunkState::Size { digits: 1.., value }, b' ' | b'\t') => {
                ChunkState::Space { value, used: 1 }
            }
            (ChunkState::Space { value, used }, b' ' | b'\t' | b';') => {
                if used == limits::CHUNK_EXT {
                    return Err(ChunkFault);
                }
                let used = used + 1;
                if byte == b';' {
                    ChunkState::Ext { value, used }
                } else {
                    ChunkState::Space { value, used }
                }
            }
            (ChunkState::Ext { value, .. }, b'\r') => ChunkState::SizeLf { value },
            (ChunkState::Ext { value, used }, _) if field::is_value_byte(byte) => {
                if used == limits::CHUNK_EXT {
                    return Err(ChunkFault);
                }
                ChunkState::Ext { value, used: used + 1 }
            }
            (ChunkState::SizeLf { value: 0 }, b'\n') => ChunkState::LineStart,
            (ChunkState::SizeLf { value }, b'\n') => ChunkState::Data { left: value },
            (ChunkState::DataCr, b'\r') => ChunkState::DataLf,
            (ChunkState::DataLf, b'\n') => ChunkState::Size { digits: 0, value: 0 },
            (
                ChunkState::LineStart
                | ChunkState::Name
                | ChunkState::Value
                | ChunkState::ValueLf
                | ChunkState::LastLf,
                _,
            ) => {
                return self.trailer_byte(byte);
            }
            _ => return Err(ChunkFault),
        })
    }

    /// The trailer section obeys the rules and limits of a head. It is dropped.
    fn trailer_byte(&mut self, byte: u8) -> Result<ChunkState, ChunkFault> {
        self.section += 1;
        if self.section > limits::HEAD {
            return Err(ChunkFault);
        }
        Ok(match (self.state, byte) {
            (ChunkState::LineStart, b'\r') => ChunkState::LastLf,
            (ChunkState::LineStart, _) if field::is_token_byte(byte) => {
                self.fields += 1;
                if self.fields > limits::FIELDS {
                    return Err(ChunkFault);
                }
                ChunkState::Name
            }
            (ChunkState::Name, b':') => ChunkState::Value,
            (ChunkState::Name, _) if field::is_token_byte(byte) => ChunkState::Name,
            (ChunkState::Value, b'\r') => ChunkState::ValueLf,
            (ChunkState::Value, _) if field::is_value_byte(byte) => ChunkState::Value,
            (ChunkState::ValueLf, b'\n') => ChunkState::LineStart,
            (ChunkState::LastLf, b'\n') => ChunkState::End,
            _ => return Err(ChunkFault),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Body, bytes used, whole; the same for the whole input and for every single-byte cut.
    fn read(input: &[u8]) -> Result<(Vec<u8>, usize, bool), ChunkFault> {
        let feed = |sizes: &mut dyn FnMut(usize) -> usize| {
            let mut scanner = ChunkScanner::default();
            let (mut body, mut at, mut end, mut ready) = (Vec::new(), 0, false, 0);
            while !end && (ready < input.len() || at < ready) {
                if at == ready {
                    ready += sizes(input.len() - ready);
                }
                let step = scanner.step(&input[at..ready])?;
                at += step.framing;
                body.extend_from_slice(&input[at..at + step.data]);
                at += step.data;
                end = step.end;
            }
            Ok((body, at, end))
        };
        let whole = feed(&mut |left| left);
        // Miri takes minutes for a long section byte by byte.
        let step = if cfg!(miri) && input.len() > 256 { 9973 } else { 1 };
        assert_eq!(whole, feed(&mut |left| left.min(step)), "cut at each byte");
        whole
    }

    #[test]
    fn well_formed_bodies_are_read_to_their_end_and_not_beyond() {
        for (input, body, left) in [
            (&b"0\r\n\r\n"[..], &b""[..], 0),
            (b"5\r\nhello\r\n0\r\n\r\n", b"hello", 0),
            (b"5\r\nhello\r\n0\r\n\r\nPOST", b"hello", 4),
            (b"A\r\n0123456789\r\n1\r\nx\r\n000\r\n\r\n", b"0123456789x", 0),
            (b"1;a=b;c=\"d e\"\r\nx\r\n0;last\r\n\r\n", b"x", 0),
            (b"1 ;a\r\nx\r\n0\r\n\r\n", b"x", 0),
            (b"1\r\nx\r\n0\r\nX-T: 1\r\nAuthorization: Bearer z\r\n\r\n", b"x", 0),
            (b"0000000000000001\r\nx\r\n0\r\n\r\n", b"x", 0),
        ] {
            let (got, used, end) = read(input).unwrap();
            assert!(end);
            assert_eq!(got, body);
            assert_eq!(used, input.len() - left);
        }
    }

    #[test]
    fn broken_framing_is_refused() {
        for input in [
            &b"\r\n"[..],
            b";a\r\n",
            b" 5\r\n",
            b"+5\r\n",
            b"-1\r\n",
            b"0x5\r\n",
            b"5_0\r\n",
            b"g\r\n",
            b"5 \r\n",
            b"5\n",
            b"5\rx",
            b"5;a\nb\r\n",
            b"5;a\rb\r\n",
            b"5;a\0\r\n",
            b"00000000000000001\r\n",
            b"1\r\nxy",
            b"1\r\nx\n",
            b"1\r\nx\rX",
            b"0\r\n X: folded\r\n\r\n",
            b"0\r\n: x\r\n\r\n",
            b"0\r\nX : 1\r\n\r\n",
            b"0\r\nX: 1\n\r\n",
            b"0\r\n\n",
            b"0\r\n\rX",
            b"0\r\nX: a\0b\r\n\r\n",
            b"0\r\nno colon\r\n\r\n",
        ] {
            assert_eq!(read(input), Err(ChunkFault), "{}", input.escape_ascii());
        }
    }

    #[test]
    fn extensions_and_trailer_sections_are_bounded() {
        let ext = |n: usize| [&b"0;"[..], &vec![b'a'; n - 1], b"\r\n\r\n"].concat();
        assert!(read(&ext(limits::CHUNK_EXT)).is_ok());
        assert_eq!(read(&ext(limits::CHUNK_EXT + 1)), Err(ChunkFault));
        let fields = |n: usize| [&b"0\r\n"[..], &b"A: 1\r\n".repeat(n), b"\r\n"].concat();
        assert!(read(&fields(limits::FIELDS)).is_ok());
        assert_eq!(read(&fields(limits::FIELDS + 1)), Err(ChunkFault));
        let section = |n: usize| [&b"0\r\nA:"[..], &vec![b'x'; n - 6], b"\r\n\r\n"].concat();
        assert!(read(&section(limits::HEAD)).is_ok());
        assert_eq!(read(&section(limits::HEAD + 1)), Err(ChunkFault));
    }

    #[test]
    fn the_largest_size_is_counted_without_overflow() {
        let digits = |n: usize| [&b"f".repeat(n)[..], b"\r\nabc"].concat();
        let most = usize::from(limits::CHUNK_DIGITS);
        assert_eq!(ChunkScanner::default().step(&digits(most + 1)), Err(ChunkFault));
        let mut scanner = ChunkScanner::default();
        let step = scanner.step(&digits(most)).unwrap();
        assert_eq!(step, ChunkStep { framing: 18, data: 3, end: false });
        assert_eq!(scanner.state, ChunkState::Data { left: u64::MAX - 3 });
    }
}
