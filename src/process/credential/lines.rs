//! Splits the bytes of stdin into lines, in a buffer of the caller.

use std::io;
use std::ops::Range;

use zeroize::Zeroize;

/// read(2), once.
pub(crate) type Source<'a> = &'a mut dyn FnMut(&mut [u8]) -> io::Result<usize>;

/// The bytes of lines in a buffer. The caller owns the buffer and passes the same one each time: it
/// is in secret pages, which this type must not keep open.
#[derive(Default)]
pub(crate) struct Lines {
    /// The bytes that have been read and belong to no line that [`Lines::next`] has returned.
    unread: Range<usize>,
    state: State,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    /// The next byte belongs to a line.
    #[default]
    InLine,
    /// The next byte belongs to a line that is too long, up to its newline.
    Skipping,
}

/// The result of [`Lines::settle`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    /// The buffer has space for the rest of the line.
    HasRoom,
    /// The line does not fit into the buffer. The rest of it is skipped. Reported once for each
    /// line.
    TooLong,
}

impl Lines {
    /// Reads once into the free part of the buffer. Call it after [`Lines::settle`]: then there is
    /// a free part. Returns the number of bytes; 0 is the end of the input.
    pub(crate) fn read(&mut self, buffer: &mut [u8], source: Source<'_>) -> io::Result<usize> {
        let n = source(&mut buffer[self.unread.end..])?;
        self.unread.end += n;
        Ok(n)
    }

    /// The range of the next whole line in the buffer, without its end.
    pub(crate) fn next(&mut self, buffer: &[u8]) -> Option<Range<usize>> {
        loop {
            let length = buffer[self.unread.clone()].iter().position(|byte| *byte == b'\n')?;
            let line = self.unread.start..self.unread.start + length;
            self.unread.start = line.end + 1;
            match std::mem::take(&mut self.state) {
                State::InLine => return Some(trimmed(buffer, line)),
                State::Skipping => {}
            }
        }
    }

    /// Prepares the next read: moves the beginning of a line to the beginning of the buffer, and
    /// wipes all other bytes. Call it when [`Lines::next`] has returned `None`.
    pub(crate) fn settle(&mut self, buffer: &mut [u8]) -> Settled {
        let is_full = self.unread.len() == buffer.len();
        if is_full || self.state == State::Skipping {
            self.unread.start = self.unread.end;
        }
        buffer.copy_within(self.unread.clone(), 0);
        self.unread = 0..self.unread.len();
        buffer[self.unread.end..].zeroize();
        if is_full && self.state == State::InLine {
            self.state = State::Skipping;
            return Settled::TooLong;
        }
        Settled::HasRoom
    }

    /// The input has ended: takes the last line, which has no newline. The buffer keeps the bytes.
    pub(crate) fn end(&mut self, buffer: &[u8]) -> Option<Range<usize>> {
        let line = std::mem::take(&mut self.unread);
        let is_skipped = std::mem::take(&mut self.state) == State::Skipping;
        (!is_skipped && !line.is_empty()).then(|| trimmed(buffer, line))
    }

    /// Whether bytes other than line ends have been read after the last line.
    pub(crate) fn has_more(&self, buffer: &[u8]) -> bool {
        buffer[self.unread.clone()].iter().any(|byte| !matches!(byte, b'\r' | b'\n'))
    }
}

/// The line without carriage returns at its end.
fn trimmed(buffer: &[u8], line: Range<usize>) -> Range<usize> {
    let length =
        buffer[line.clone()].iter().rposition(|byte| *byte != b'\r').map_or(0, |at| at + 1);
    line.start..line.start + length
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 10;

    /// What comes of an input that arrives in these pieces, in a buffer of [`SIZE`] bytes: lines,
    /// `None` for each that is too long, and the rest without an end.
    fn split(pieces: &[&[u8]]) -> (Vec<Option<Vec<u8>>>, Option<Vec<u8>>) {
        let (mut lines, mut buffer, mut found) = (Lines::default(), [0; SIZE], Vec::new());
        for piece in pieces {
            let mut piece = *piece;
            while !piece.is_empty() {
                let mut source = |room: &mut [u8]| io::Read::read(&mut piece, room);
                assert!(lines.read(&mut buffer, &mut source).unwrap() > 0, "no room");
                while let Some(line) = lines.next(&buffer) {
                    found.push(Some(buffer[line].to_vec()));
                }
                if lines.settle(&mut buffer) == Settled::TooLong {
                    found.push(None);
                }
                assert!(buffer[lines.unread.end..].iter().all(|byte| *byte == 0), "not wiped");
            }
        }
        let rest = lines.end(&buffer).map(|line| buffer[line].to_vec());
        (found, rest)
    }

    #[test]
    fn lines_are_the_same_however_they_arrive() {
        let whole = |text: &[u8]| Some(text.to_vec());
        for (input, lines, rest) in [
            (&b""[..], vec![], None),
            (b"one", vec![], whole(b"one")),
            (b"one\n", vec![whole(b"one")], None),
            (b"one\r\ntwo\r\r\n", vec![whole(b"one"), whole(b"two")], None),
            (b"\n\r\n", vec![whole(b""), whole(b"")], None),
            (b"a\rb\nc\r", vec![whole(b"a\rb")], whole(b"c")),
            // One byte fewer than the buffer has, and its newline.
            (b"123456789\nx\n", vec![whole(b"123456789"), whole(b"x")], None),
            // As many as the buffer has: the newline finds no room.
            (b"1234567890\nx\n", vec![None, whole(b"x")], None),
            (b"1234567890123456789012345\nx\ny", vec![None, whole(b"x")], whole(b"y")),
            (b"12345678901234", vec![None], None),
            (b"1234567890\n\n1234567890\n", vec![None, whole(b""), None], None),
        ] {
            let bytes: Vec<&[u8]> = input.chunks(1).collect();
            let threes: Vec<&[u8]> = input.chunks(3).collect();
            for pieces in [vec![input], bytes, threes] {
                assert_eq!(split(&pieces), (lines.clone(), rest.clone()), "{input:?}");
            }
        }
    }

    #[test]
    fn whether_text_follows_a_line_is_told() {
        for (input, want) in
            [(&b"key"[..], false), (b"key\n", false), (b"key\n\r\n\n", false), (b"key\n \n", true)]
        {
            let (mut lines, mut buffer, mut piece) = (Lines::default(), [0; SIZE], input);
            lines.read(&mut buffer, &mut |room| io::Read::read(&mut piece, room)).unwrap();
            if lines.next(&buffer).is_none() {
                lines.end(&buffer);
            }
            assert_eq!(lines.has_more(&buffer), want, "{input:?}");
        }
    }
}
