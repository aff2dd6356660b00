//! Outgoing bytes as a list of ranges, as `writev(2)` takes them, so that long ranges are never
//! copied.

use core::ops::Range;

use super::limits;
use super::work;

/// One range of outgoing bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// The block that ends in the key: request line, Host and the key's field. It comes first or
    /// not at all. Only `process::credential` knows its bytes.
    Credential,
    /// Bytes `start..end` of the input from which the list was made.
    Input(usize, usize),
    /// Bytes `start..end` of the list's own text.
    Text(usize, usize),
}

/// A point in time as HTTP writes it: an IMF-fixdate (RFC 9110 §5.6.7).
pub type HttpDate = [u8; 29];

/// A list of segments. It is cleared and used again, so it does not allocate once it has grown.
#[derive(Default)]
pub struct GatherList {
    text: Vec<u8>,
    segments: Vec<Segment>,
    date: Option<HttpDate>,
}

impl GatherList {
    /// Empties the list. The date and the memory are kept.
    pub fn clear(&mut self) {
        self.text.clear();
        self.segments.clear();
    }

    /// Sets the value of Date fields. Before the first call no Date field is written, because this
    /// module has no clock.
    pub fn set_date(&mut self, date: HttpDate) {
        self.date = Some(date);
    }

    /// There is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// The list should be sent before more of a body is added.
    pub fn is_full(&self) -> bool {
        self.segments.len() + 4 > limits::GATHER_SEGMENTS || self.text.len() >= limits::GATHER_TEXT
    }

    /// The segments in order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The bytes of a segment. The credential block has none here.
    pub fn bytes<'a>(&'a self, segment: Segment, input: &'a [u8]) -> &'a [u8] {
        match segment {
            Segment::Credential => &[],
            Segment::Input(start, end) => &input[start..end],
            Segment::Text(start, end) => &self.text[start..end],
        }
    }

    /// The bytes of all segments in order, without the credential block.
    pub fn slices<'a>(&'a self, input: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        self.segments
            .iter()
            .filter(|segment| **segment != Segment::Credential)
            .map(|segment| self.bytes(*segment, input))
    }

    /// The list begins with the credential block.
    pub fn has_credential(&self) -> bool {
        self.segments.first() == Some(&Segment::Credential)
    }

    pub(crate) fn credential(&mut self) {
        debug_assert!(self.segments.is_empty());
        self.segments.push(Segment::Credential);
    }

    /// Adds a range of `input`.
    pub(crate) fn input(&mut self, input: &[u8], range: Range<usize>) {
        if range.len() <= limits::GATHER_COPY {
            self.text(&input[range]);
        } else if let Some(Segment::Input(_, end)) = self.segments.last_mut()
            && *end == range.start
        {
            *end = range.end;
        } else {
            self.segments.push(Segment::Input(range.start, range.end));
        }
    }

    /// Adds bytes that the relay writes itself.
    pub(crate) fn text(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let start = self.text.len();
        work::spend(bytes.len());
        self.text.extend_from_slice(bytes);
        let now = self.text.len();
        if let Some(Segment::Text(_, end)) = self.segments.last_mut() {
            *end = now;
        } else {
            self.segments.push(Segment::Text(start, now));
        }
    }

    /// Adds a Date field, if the date is known.
    pub(crate) fn date(&mut self) {
        if let Some(date) = self.date {
            self.text(b"Date: ");
            self.text(&date);
            self.text(b"\r\n");
        }
    }

    pub(crate) fn decimal(&mut self, number: u64) {
        self.digits(number, 10);
    }

    pub(crate) fn hexadecimal(&mut self, number: u64) {
        self.digits(number, 16);
    }

    fn digits(&mut self, mut number: u64, base: u64) {
        let mut text = [0; 20];
        let mut at = text.len();
        loop {
            at -= 1;
            text[at] = b"0123456789abcdef"[(number % base) as usize];
            number /= base;
            if number == 0 {
                break;
            }
        }
        self.text(&text[at..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(list: &GatherList, input: &[u8]) -> Vec<u8> {
        list.slices(input).flatten().copied().collect()
    }

    #[test]
    fn numbers_have_no_leading_zeros_and_reach_the_largest() {
        let mut list = GatherList::default();
        for (number, decimal, hexadecimal) in
            [(0, "0", "0"), (10, "10", "a"), (255, "255", "ff"), (4096, "4096", "1000")]
        {
            list.clear();
            list.decimal(number);
            list.text(b" ");
            list.hexadecimal(number);
            assert_eq!(joined(&list, b""), format!("{decimal} {hexadecimal}").into_bytes());
        }
        list.clear();
        list.decimal(u64::MAX);
        assert_eq!(joined(&list, b""), b"18446744073709551615");
    }

    #[test]
    fn a_range_is_copied_up_to_the_limit_and_referenced_beyond() {
        let input = vec![b'x'; limits::GATHER_COPY + 1];
        for (len, want) in [
            (limits::GATHER_COPY, Segment::Text(0, limits::GATHER_COPY)),
            (limits::GATHER_COPY + 1, Segment::Input(0, limits::GATHER_COPY + 1)),
        ] {
            let mut list = GatherList::default();
            list.input(&input, 0..len);
            assert_eq!(list.segments(), [want]);
        }
    }

    #[test]
    fn a_list_is_full_before_it_has_too_many_segments_or_too_much_text() {
        let input = vec![b'x'; 100_000];
        let mut list = GatherList::default();
        while !list.is_full() {
            let at = 1_000 * list.segments().len();
            list.input(&input, at..at + limits::GATHER_COPY + 1);
        }
        // The largest addition that is made at a time: a chunk's size line, its data and its end,
        // and the last chunk.
        assert_eq!(list.segments().len(), limits::GATHER_SEGMENTS - 3);
        let mut list = GatherList::default();
        list.text(&vec![b'x'; limits::GATHER_TEXT - 1]);
        assert!(!list.is_full());
        list.text(b"x");
        assert!(list.is_full());
    }

    #[test]
    fn short_ranges_are_copied_together_and_long_ones_referenced() {
        let input: Vec<u8> = (0..4000).map(|i| i as u8).collect();
        let mut list = GatherList::default();
        list.input(&input, 0..3);
        list.text(b"x");
        list.input(&input, 10..2000);
        list.input(&input, 2000..4000);
        assert_eq!(list.segments(), [Segment::Text(0, 4), Segment::Input(10, 4000)]);
        let mut want = input[0..3].to_vec();
        want.push(b'x');
        want.extend(&input[10..]);
        assert_eq!(joined(&list, &input), want);
    }
}
