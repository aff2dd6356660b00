//! The upstream's response head: whether it is acceptable, and the head that is sent to the client.

use super::field::{self, ConnectionOptions, FieldName, FramingFields};
use super::forward::{self, forwarded_fields};
use super::framing::{Coding, Framing};
use super::gather::GatherList;
use super::head::{Field, MalformedHead, ResponseHead};
use super::limits;
use super::logged_fields::LoggedFields;
use super::work;

/// The contents of a well-formed response head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// 100 to 599.
    pub status: u16,
    /// How the body ends.
    pub framing: Framing,
    /// The length of the head.
    pub len: usize,
    /// The upstream will not use the connection again.
    pub close: bool,
    /// The body is compressed, or written in a character set in which the key has other bytes.
    pub is_encoded: bool,
    /// The fields that the access log may repeat.
    pub logged: LoggedFields,
}

/// How a response is written for this client.
#[derive(Clone, Copy, Debug)]
pub struct ResponseContext {
    /// The client speaks HTTP/1.0: no chunks, no interim responses.
    pub http10: bool,
    /// The connection ends after this response.
    pub close: bool,
}

/// Decides about a head and writes it for the client. Interim (1xx) heads get no framing fields. An
/// HTTP/1.0 client gets no interim head.
pub fn judge(
    head: &ResponseHead<'_, '_>,
    context: ResponseContext,
    out: &mut GatherList,
) -> Result<Response, MalformedHead> {
    let mut lengths = FramingFields::default();
    let mut connection = ConnectionOptions::default();
    let mut keep_alive = false;
    let mut is_encoded = false;
    let mut logged = LoggedFields::default();
    let mut names = [FieldName::Other; limits::FIELDS];
    for (Field { name, value, .. }, known) in head.fields.iter().zip(&mut names) {
        *known = FieldName::of(name);
        match *known {
            FieldName::ContentLength => lengths.content_length(value),
            FieldName::TransferEncoding => lengths.transfer_encoding(value),
            FieldName::Connection => {
                connection.note(value).or(Err(MalformedHead))?;
                keep_alive |= value.eq_ignore_ascii_case(b"keep-alive");
            }
            FieldName::ContentEncoding => is_encoded |= is_coded(value),
            FieldName::ContentType => is_encoded |= has_other_bytes(value),
            FieldName::Other => logged.note(name, value),
            // No other field decides on the response.
            _ => {}
        }
    }
    let framing =
        Framing::of_response(&lengths, head.http10, head.status).or(Err(MalformedHead))?;
    let close = connection.close || (head.http10 && !keep_alive);
    // A response without a body need not be searched.
    is_encoded &= head.status >= 200 && !matches!(framing, Framing::None | Framing::Length(0));
    let status = head.status;
    let response = Response { status, framing, len: head.len, close, is_encoded, logged };
    let interim = head.status < 200;
    if interim && context.http10 {
        return Ok(response);
    }
    out.text(b"HTTP/1.1 ");
    out.decimal(u64::from(head.status));
    out.text(b" ");
    out.input(head.input, head.reason.clone());
    out.text(b"\r\n");
    let mut has_date = false;
    forwarded_fields(&head.fields, &names, &connection, out, |name, _| {
        has_date |= name == FieldName::Date;
        forward::is_for_client(name)
    });
    // RFC 9110 §6.6.1: a recipient adds a Date to a response without one.
    if !has_date {
        out.date();
    }
    if !interim {
        let length = match framing {
            Framing::Length(length) => Some(length),
            // The length that the body of a 200 would have; a 204 has none (RFC 9110 §8.6).
            Framing::None if head.status == 304 => lengths.length,
            _ => None,
        };
        if let Some(length) = length {
            out.text(b"Content-Length: ");
            out.decimal(length);
            out.text(b"\r\n");
        } else if Coding::of(framing, context.http10) == Coding::Chunked {
            out.text(b"Transfer-Encoding: chunked\r\n");
        }
        if context.close {
            out.text(b"Connection: close\r\n");
        }
    }
    out.text(b"\r\n");
    Ok(response)
}

/// A value of Content-Encoding names a coding other than `identity`.
fn is_coded(value: &[u8]) -> bool {
    field::options(value).any(|coding| !coding.eq_ignore_ascii_case(b"identity"))
}

/// Beginnings of the names of character sets in which letters and digits differ from ASCII.
const OTHER_BYTES: [&str; 20] = [
    "utf-16",
    "utf16",
    "utf_16",
    "utf-32",
    "utf32",
    "utf_32",
    "utf-7",
    "utf7",
    "ucs",
    "unicode",
    "iso-10646",
    "csunicode",
    "csucs",
    "csutf",
    "ebcdic",
    "utf-ebcdic",
    "ibm",
    "cp037",
    "scsu",
    "bocu",
];

/// A value of Content-Type names such a character set.
fn has_other_bytes(value: &[u8]) -> bool {
    value.split(|byte| *byte == b';').skip(1).any(|parameter| {
        work::spend(parameter.len());
        let Some(equals) = parameter.iter().position(|byte| *byte == b'=') else {
            return false;
        };
        let (name, set) = (parameter[..equals].trim_ascii(), parameter[equals + 1..].trim_ascii());
        // `charset*` (RFC 8187) is not decoded but treated as such a character set.
        if name.get(..8).is_some_and(|name| name.eq_ignore_ascii_case(b"charset*")) {
            return true;
        }
        if set.eq_ignore_ascii_case(b"utf-8") {
            return false;
        }
        let set = set.strip_prefix(b"\"").unwrap_or(set).trim_ascii_start();
        let begins = |known: &&str| {
            set.get(..known.len()).is_some_and(|set| set.eq_ignore_ascii_case(known.as_bytes()))
        };
        name.eq_ignore_ascii_case(b"charset")
            // A name with a backslash is not decoded but treated as such a character set.
            && (set.contains(&b'\\') || OTHER_BYTES.iter().any(begins))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::head::{self, ScanProgress};

    fn read(input: &str, http10: bool, close: bool) -> (Result<Response, MalformedHead>, String) {
        let mut list = GatherList::default();
        let response = head::response(input.as_bytes(), &mut ScanProgress::default(), |head| {
            judge(&head, ResponseContext { http10, close }, &mut list)
        });
        let sent: Vec<u8> = list.slices(input.as_bytes()).flatten().copied().collect();
        (response.map(|r| r.expect("a whole head")), String::from_utf8(sent).expect("ASCII"))
    }

    #[test]
    fn status_reason_and_fields_pass_and_hop_by_hop_fields_do_not() {
        let (response, sent) = read(
            "HTTP/1.1 429 Slow down\r\nServer: up\r\nConnection: x-up\r\nX-Up: 1\r\nKeep-Alive: 9\r\n\
             Set-Cookie: a\r\nset-cookie: b\r\nTrailer: X\r\nContent-Length: 02\r\n\r\n",
            false,
            false,
        );
        assert_eq!(response.unwrap().framing, Framing::Length(2));
        assert_eq!(
            sent,
            "HTTP/1.1 429 Slow down\r\nServer: up\r\nSet-Cookie: a\r\nset-cookie: b\r\n\
             Content-Length: 2\r\n\r\n"
        );
    }

    #[test]
    fn bodies_of_unknown_length_are_chunked_for_1_1_and_close_delimited_for_1_0() {
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let until_close = "HTTP/1.0 200 OK\r\n\r\n";
        for input in [chunked, until_close] {
            let (_, sent) = read(input, false, false);
            assert_eq!(sent, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            let (_, sent) = read(input, true, true);
            assert_eq!(sent, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
        }
    }

    #[test]
    fn statuses_without_a_body_promise_none() {
        let (_, sent) = read("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", false, false);
        assert_eq!(sent, "HTTP/1.1 204 No Content\r\n\r\n");
        let (_, sent) =
            read("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", false, false);
        assert_eq!(sent, "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n");
        let (_, sent) =
            read("HTTP/1.1 103 Early Hints\r\nLink: x\r\nContent-Length: 5\r\n\r\n", false, true);
        assert_eq!(sent, "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n");
        let (_, sent) = read("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", true, true);
        assert_eq!(sent, "");
    }

    #[test]
    fn an_upstream_that_will_close_is_known() {
        let close = |input| read(input, false, false).0.unwrap().close;
        assert!(close("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"));
        assert!(close("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n"));
        assert!(!close("HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 0\r\n\r\n"));
        assert!(!close("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"));
    }

    #[test]
    fn a_body_that_cannot_be_searched_is_known() {
        let is_encoded = |status: &str, fields: &str| {
            let input = format!("HTTP/1.1 {status} X\r\n{fields}\r\n\r\n");
            read(&input, false, false).0.unwrap().is_encoded
        };
        for fields in [
            "Content-Encoding: gzip",
            "content-encoding: identity, BR",
            "Content-Encoding: identity\r\nContent-Encoding: zstd",
            "Content-Encoding: identity;q=1",
            "IM: gzip",
            "Content-Type: a/b; charset=UTF-16BE",
            "Content-Type: a/b;x=y; Charset = \"utf-32\"",
            "Content-Type: a/b; charset=\"utf\\-16\"",
            "Content-Type: a/b; charset=utf-8; charset=ucs-2",
            "Content-Type: a/b; charset=IBM1047",
            "Content-Type: a/b; charset=\" utf-16\"",
            "Content-Type: a/b; Charset*=UTF-8''utf-16",
            "Content-Type: a/b; charset*0=utf-; charset*1=16",
        ] {
            assert!(is_encoded("200", fields), "{fields}");
            assert!(is_encoded("500", fields), "{fields}");
            assert!(!is_encoded("204", fields) && !is_encoded("304", fields), "{fields}");
            assert!(!is_encoded("103", fields), "{fields}");
            assert!(!is_encoded("200", &format!("{fields}\r\nContent-Length: 0")), "{fields}");
        }
        for fields in [
            "Content-Encoding:",
            "Content-Encoding: , ,",
            "Content-Encoding: Identity,identity",
            "Content_Encoding: gzip",
            "Content-Type: text/event-stream",
            "Content-Type: a/b; charset=utf-8",
            "Content-Type: a/b; charset=",
            "Content-Type: a/b; charset",
            "Content-Type: charset=utf-16",
            "Content-Type: a/b; xcharset=utf-16",
            "Content-Type: a/b; xcharset*=utf-16",
            "Content-Type: ;",
        ] {
            assert!(!is_encoded("200", fields), "{fields}");
        }
    }
}
