//! Heads. httparse finds the parts; a strict pass over the raw bytes refuses what httparse accepts
//! (bare LF, repeated empty lines), and limits bound what httparse does not.

use core::mem::MaybeUninit;
use core::ops::Range;

use super::limits;
use super::local_response::Reject;
use super::work;

/// A well-formed request head; its meaning is not judged yet.
pub struct RequestHead<'h, 'b> {
    /// The input; `fields` point into it.
    pub input: &'b [u8],
    /// The method, a token.
    pub method: &'b [u8],
    /// The request target, byte for byte.
    pub target: &'b [u8],
    /// The version is HTTP/1.0; otherwise HTTP/1.1.
    pub http10: bool,
    /// The field lines.
    pub fields: Fields<'h, 'b>,
    /// The length of the head in `input`, with an empty line before it.
    pub len: usize,
}

/// A well-formed response head.
pub struct ResponseHead<'h, 'b> {
    /// The input; `fields` and `reason` point into it.
    pub input: &'b [u8],
    /// 100 to 599.
    pub status: u16,
    /// The reason phrase in `input`; may be empty.
    pub reason: Range<usize>,
    /// The version is HTTP/1.0; otherwise HTTP/1.1.
    pub http10: bool,
    /// The field lines.
    pub fields: Fields<'h, 'b>,
    /// The length of the head in `input`.
    pub len: usize,
}

/// A response head that is malformed, or that could be read in two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MalformedHead;

/// The field lines of a head.
pub struct Fields<'h, 'b> {
    headers: &'h [httparse::Header<'b>],
    input: &'b [u8],
    /// The start of the empty line.
    end: usize,
}

/// One field line.
#[derive(Clone)]
pub struct Field<'b> {
    /// The name as it is spelled.
    pub name: &'b [u8],
    /// The value without white space around it.
    pub value: &'b [u8],
    /// The whole line in the input, CRLF included.
    pub line: Range<usize>,
}

impl<'b> Fields<'_, 'b> {
    /// The input that contains the lines.
    pub fn input(&self) -> &'b [u8] {
        self.input
    }

    /// The field lines in order.
    pub fn iter(&self) -> impl Iterator<Item = Field<'b>> {
        let start = |header: &httparse::Header| offset(self.input, header.name.as_bytes());
        self.headers.iter().enumerate().map(move |(i, header)| {
            let value = header.value.trim_ascii();
            work::spend(1 + header.value.len() - value.len());
            let line = start(header)..self.headers.get(i + 1).map_or(self.end, start);
            Field { name: header.name.as_bytes(), value, line }
        })
    }
}

/// The position in `whole` of its slice `part`.
fn offset(whole: &[u8], part: &[u8]) -> usize {
    part.as_ptr() as usize - whole.as_ptr() as usize
}

type Headers<'b> = [MaybeUninit<httparse::Header<'b>>; limits::FIELDS];

/// How far an incomplete head has been scanned. A head that arrives in parts costs at most a small
/// multiple of its length: each byte is checked once, and the head is parsed again only when a line
/// has been completed. Beyond [`limits::HEAD_REPARSES`] it is parsed only when it is complete.
#[derive(Clone, Copy, Debug, Default)]
pub struct ScanProgress {
    /// Bytes that have been checked.
    checked: usize,
    /// The first line has ended.
    has_line: bool,
    /// Bytes that the parser has read, over all its runs.
    parsed: usize,
}

/// Whether a head is parsed now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// The result may differ from the last one.
    Parse,
    /// The result would be the same, or the whole head is waited for because parts of it have been
    /// parsed too often.
    NeedMore,
}

impl ScanProgress {
    /// Notes that these bytes have been looked at, and tells whether to parse them.
    fn look(&mut self, head: &[u8]) -> Look {
        let unchecked = &head[self.checked.min(head.len())..];
        let must_parse = self.checked == 0
            || (unchecked.contains(&b'\n')
                && (self.parsed <= limits::HEAD_REPARSES * head.len() || self.is_whole(head)));
        work::spend(unchecked.len() + if must_parse { head.len() } else { 0 });
        if !must_parse {
            return Look::NeedMore;
        }
        self.parsed += head.len();
        Look::Parse
    }

    /// The unchecked bytes contain an empty line.
    fn is_whole(&self, head: &[u8]) -> bool {
        let from = self.checked.saturating_sub(3);
        head[from..].windows(3).any(|end| end == b"\n\r\n")
    }

    /// Checks a head whose end has not arrived: refuses it if it can never become well-formed.
    fn check(&mut self, head: &[u8]) -> Result<(), Reject> {
        let checked = self.checked.min(head.len());
        if !self.has_line {
            let end = head[checked..].iter().position(|byte| *byte == b'\n');
            self.has_line = end.is_some();
            let line = end.map_or(head, |end| &head[..checked + end]);
            if line.strip_suffix(b"\r").unwrap_or(line).len() > limits::REQUEST_LINE {
                return Err(Reject::UriTooLong);
            }
        }
        if head.len() >= limits::HEAD {
            return Err(Reject::HeadTooLarge);
        }
        // The byte before the first new one is checked with it, unless it ended a line.
        let from = match head[..checked] {
            [] | [.., b'\n'] => checked,
            _ => checked - 1,
        };
        // The LF of a CR at the very end may still arrive.
        let settled = head[from..].strip_suffix(b"\r").unwrap_or(&head[from..]);
        self.checked = head.len();
        if is_clean(settled) { Ok(()) } else { Err(Reject::Malformed) }
    }
}

/// Parses the request head at the front of `input` and passes it to `judge`.
///
/// `Ok(None)`: more bytes are needed. An error is reported as soon as it can be seen.
pub fn request<'b, T>(
    input: &'b [u8],
    progress: &mut ScanProgress,
    judge: impl FnOnce(RequestHead<'_, 'b>) -> Result<T, Reject>,
) -> Result<Option<T>, Reject> {
    // One empty line before the request line is tolerated (RFC 9112 §2.2); a second is not.
    let skip = match input {
        [b'\r'] => return Ok(None),
        [b'\r', b'\n', ..] => 2,
        _ => 0,
    };
    let head = &input[skip..];
    match head.first() {
        None => return Ok(None),
        Some(b'\r' | b'\n') => return Err(Reject::Malformed),
        Some(_) => {}
    }
    if progress.look(head) == Look::NeedMore {
        return progress.check(head).map(|()| None);
    }
    let mut headers: Headers<'b> = [const { MaybeUninit::uninit() }; limits::FIELDS];
    let mut parsed = httparse::Request::new(&mut []);
    match parsed.parse_with_uninit_headers(head, &mut headers) {
        Ok(httparse::Status::Partial) => progress.check(head).map(|()| None),
        Ok(httparse::Status::Complete(len)) => {
            let (Some(method), Some(target), Some(version)) =
                (parsed.method, parsed.path, parsed.version)
            else {
                return Err(Reject::Malformed);
            };
            if method.len() + target.len() + " HTTP/1.1 ".len() > limits::REQUEST_LINE {
                return Err(Reject::UriTooLong);
            }
            if len > limits::HEAD {
                return Err(Reject::HeadTooLarge);
            }
            if !is_clean(&head[..len]) {
                return Err(Reject::Malformed);
            }
            let len = skip + len;
            judge(RequestHead {
                input,
                method: method.as_bytes(),
                target: target.as_bytes(),
                http10: version == 0,
                fields: Fields { headers: parsed.headers, input, end: len - 2 },
                len,
            })
            .map(Some)
        }
        Err(fault) => Err(match (line(head), fault) {
            (line, _) if line.len() > limits::REQUEST_LINE => Reject::UriTooLong,
            (_, httparse::Error::TooManyHeaders) => Reject::TooManyFields,
            (line, httparse::Error::Version)
                if has_other_version(line, head.len() > line.len()) =>
            {
                // The line may continue after the version and be malformed after all.
                return if head.contains(&b'\n') {
                    Err(Reject::VersionNotSupported)
                } else {
                    Ok(None)
                };
            }
            _ => Reject::Malformed,
        }),
    }
}

/// Parses the response head at the front of `input` and passes it to `judge`.
///
/// `Ok(None)`: more bytes are needed.
pub fn response<'b, T>(
    input: &'b [u8],
    progress: &mut ScanProgress,
    judge: impl FnOnce(ResponseHead<'_, 'b>) -> Result<T, MalformedHead>,
) -> Result<Option<T>, MalformedHead> {
    if input.is_empty() {
        return Ok(None);
    }
    // httparse skips empty lines, but nothing may precede a status line.
    if input[0] != b'H' {
        return Err(MalformedHead);
    }
    if progress.look(input) == Look::NeedMore {
        return progress.check(input).map(|()| None).or(Err(MalformedHead));
    }
    let mut headers: Headers<'b> = [const { MaybeUninit::uninit() }; limits::FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    match config.parse_response_with_uninit_headers(&mut parsed, input, &mut headers) {
        Ok(httparse::Status::Partial) => {
            progress.check(input).map(|()| None).or(Err(MalformedHead))
        }
        Ok(httparse::Status::Complete(len)) => {
            let (Some(status), Some(version)) = (parsed.code, parsed.version) else {
                return Err(MalformedHead);
            };
            if len > limits::HEAD || !is_clean(&input[..len]) || !(100..=599).contains(&status) {
                return Err(MalformedHead);
            }
            let line = line(input).len();
            judge(ResponseHead {
                input,
                status,
                reason: "HTTP/1.1 200 ".len().min(line)..line,
                http10: version == 0,
                fields: Fields { headers: parsed.headers, input, end: len - 2 },
                len,
            })
            .map(Some)
        }
        Err(_) => Err(MalformedHead),
    }
}

/// The first line without its end, or the part of it that has arrived.
fn line(head: &[u8]) -> &[u8] {
    let end = head.iter().position(|byte| *byte == b'\n').unwrap_or(head.len());
    head[..end].strip_suffix(b"\r").unwrap_or(&head[..end])
}

/// Every CR is followed by LF, every LF is preceded by CR, and HTAB is the only other control byte.
/// There is no branch, so the compiler can vectorise the loop.
fn is_clean(head: &[u8]) -> bool {
    work::spend(head.len());
    let control = |byte: u8| {
        u8::from(byte < b' ')
            & u8::from(byte != b'\t')
            & u8::from(byte != b'\r')
            & u8::from(byte != b'\n')
            | u8::from(byte == 0x7f)
    };
    let (Some(first), Some(last)) = (head.first(), head.last()) else {
        return true;
    };
    let mut bad = u8::from(*first == b'\n') | u8::from(*last == b'\r') | control(*first);
    for (before, byte) in head.iter().zip(&head[1..]) {
        bad |= u8::from(*before == b'\r') ^ u8::from(*byte == b'\n') | control(*byte);
    }
    bad == 0
}

/// The line is `token SP target SP HTTP/d.d`, or the beginning of that, with a version other than
/// 1.0 and 1.1.
fn has_other_version(line: &[u8], is_whole: bool) -> bool {
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let token = !method.is_empty() && method.iter().all(|byte| super::field::is_token_byte(*byte));
    let visible = !target.is_empty() && target.iter().all(u8::is_ascii_graphic);
    let fits = |(byte, form): (&u8, &u8)| match form {
        b'd' => byte.is_ascii_digit(),
        form => byte == form,
    };
    let form = version.iter().zip(b"HTTP/d.d").all(fits);
    let length = if is_whole { version.len() == 8 } else { version.len() <= 8 };
    token && visible && form && length && !matches!(version, b"HTTP/1.0" | b"HTTP/1.1")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(input: &[u8]) -> Result<Option<usize>, Reject> {
        let whole = request(input, &mut ScanProgress::default(), |head| Ok(head.len));
        let mut progress = ScanProgress::default();
        // Miri takes minutes for a long head byte by byte.
        let step = if cfg!(miri) && input.len() > 256 { 197 } else { 1 };
        let cut = (1..input.len())
            .step_by(step)
            .chain([input.len()])
            .map(|n| request(&input[..n], &mut progress, |head| Ok(head.len)))
            .find(|result| !matches!(result, Ok(None)));
        if !matches!(whole, Ok(None)) {
            assert_eq!(cut, Some(whole), "dripping in: {}", input.escape_ascii());
        }
        whole
    }

    #[test]
    fn well_formed_heads_are_read_to_their_last_byte() {
        for input in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"POST /v1/responses HTTP/1.0\r\nA: b\r\nC:\td \r\nE:\r\n\r\n",
            b"GET / HTTP/1.1\r\nA: caf\xc3\xa9\r\n\r\n",
        ] {
            assert_eq!(outcome(input), Ok(Some(input.len())));
            assert_eq!(outcome(&[input, b"rest"].concat()), Ok(Some(input.len())));
        }
    }

    #[test]
    fn what_is_malformed_is_refused_before_the_head_is_whole() {
        for input in [
            &b"\n"[..],
            b"\r\n\r\n",
            b"\r\n\n",
            b"GET / HTTP/1.1\n",
            b"GET / HTTP/1.1\rX",
            b"GET / HTTP/1.1\r\nA: b\n",
            b"GET / HTTP/1.1\r\nA: b\r\n c\r\n",
            b"GET / HTTP/1.1\r\nA : b\r\n",
            b"GET / HTTP/1.1\r\n: b\r\n",
            b"GET / HTTP/1.1\r\nA\r\n",
            b"GET / HTTP/1.1\r\nA: \x01\r\n",
            b"GET / HTTP/1.1\r\nA: \0\r\n",
            b"GET / HTTP/1.1\r\nA: \x7f\r\n",
            b"GET / HTTP/1.1\r\nA\x80: b\r\n",
            b"GET / HTTP/1.1\r\n\tA: b\r\n",
            b"GET /\r\n",
            b"GET  / HTTP/1.1\r\n",
            b"GET / HTTP/1.1 \r\n",
            b" GET / HTTP/1.1\r\n",
            b"G\x01T / HTTP/1.1\r\n",
            b"\x16\x03\x01\x02\x00\x01",
        ] {
            assert_eq!(outcome(input), Err(Reject::Malformed), "{}", input.escape_ascii());
        }
        for input in [
            &b"GET / HTTP/1.2\r\n"[..],
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET / HTTP/0.9\r\n\r\n",
        ] {
            let got = request(input, &mut ScanProgress::default(), |head| Ok(head.len));
            assert_eq!(got, Err(Reject::VersionNotSupported), "{}", input.escape_ascii());
        }
    }

    #[test]
    fn a_head_that_arrives_in_parts_is_parsed_again_only_so_often() {
        let head = b"GET / HTTP/1.1\r\nA: b\r\n";
        let most = limits::HEAD_REPARSES * head.len();
        for (parsed, is_news) in [(most, true), (most + 1, false)] {
            let mut progress = ScanProgress { checked: 16, has_line: true, parsed };
            assert_eq!(progress.look(head) == Look::Parse, is_news);
            // A whole head is always parsed.
            let mut progress = ScanProgress { checked: 16, has_line: true, parsed };
            assert_eq!(progress.look(&[&head[..], b"\r\n"].concat()), Look::Parse);
        }
    }

    #[test]
    fn limits_hold_at_n_and_not_at_n_plus_1() {
        let line = |n: usize| [b"GET /", &vec![b'a'; n - 14][..], b" HTTP/1.1\r\n\r\n"].concat();
        assert!(matches!(outcome(&line(limits::REQUEST_LINE)), Ok(Some(_))));
        assert_eq!(outcome(&line(limits::REQUEST_LINE + 1)), Err(Reject::UriTooLong));
        assert_eq!(outcome(&vec![b'a'; limits::REQUEST_LINE + 1]), Err(Reject::UriTooLong));
        let fields =
            |n: usize| [b"GET / HTTP/1.1\r\n", &b"A: b\r\n".repeat(n)[..], b"\r\n"].concat();
        assert!(matches!(outcome(&fields(limits::FIELDS)), Ok(Some(_))));
        assert_eq!(outcome(&fields(limits::FIELDS + 1)), Err(Reject::TooManyFields));
        let head =
            |n: usize| [b"GET / HTTP/1.1\r\nA: ", &vec![b'a'; n - 23][..], b"\r\n\r\n"].concat();
        let whole =
            |input: &[u8]| request(input, &mut ScanProgress::default(), |head| Ok(head.len));
        assert_eq!(whole(&head(limits::HEAD)), Ok(Some(limits::HEAD)));
        assert_eq!(whole(&head(limits::HEAD + 1)), Err(Reject::HeadTooLarge));
        assert_eq!(whole(&head(limits::HEAD + 1)[..limits::HEAD]), Err(Reject::HeadTooLarge));
    }

    #[test]
    fn response_heads_are_held_to_the_same_rules() {
        let read = |input: &[u8]| {
            response(input, &mut ScanProgress::default(), |head| {
                Ok((head.status, input[head.reason].to_vec(), head.http10, head.len))
            })
        };
        assert_eq!(read(b"HTTP/1.1 200 OK\r\n\r\n"), Ok(Some((200, b"OK".to_vec(), false, 19))));
        assert_eq!(read(b"HTTP/1.0 404\r\n\r\n"), Ok(Some((404, vec![], true, 16))));
        assert_eq!(read(b"HTTP/1.1 200 \r\n\r\n"), Ok(Some((200, vec![], false, 17))));
        assert_eq!(
            read(b"HTTP/1.1 299 Caf\xe9\r\n\r\n"),
            Ok(Some((299, b"Caf\xe9".to_vec(), false, 21)))
        );
        assert_eq!(read(b"HTTP/1.1 200 OK\r\nA:"), Ok(None));
        for input in [
            &b"\r\nHTTP/1.1 200 OK\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\n\n",
            b"HTTP/1.1 200 O\x01K\r\n\r\n",
            b"HTTP/1.1 20 OK\r\n\r\n",
            b"HTTP/1.1 099 Low\r\n\r\n",
            b"HTTP/1.1 600 High\r\n\r\n",
            b"HTTP/1.1  200 OK\r\n\r\n",
            b"HTTP/2.0 200 OK\r\n\r\n",
            b"ICY 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nA: b\n\r\n",
            b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nA: \0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        ] {
            assert_eq!(read(input), Err(MalformedHead), "{}", input.escape_ascii());
        }
    }
}
