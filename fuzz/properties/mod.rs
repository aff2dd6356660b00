//! What must hold for every input. The fuzz targets call these, and so does
//! `tests/properties/replay.rs` on stable Rust.
#![allow(dead_code)]

pub mod exchange;
pub mod strict;
pub mod token;
pub mod work;
pub mod x509;

use std::collections::HashSet;

use codex_responses_api_proxy::http1::chunked::ChunkScanner;
use codex_responses_api_proxy::http1::connect;
use codex_responses_api_proxy::http1::field::{FieldName, FramingFields};
use codex_responses_api_proxy::http1::framing::Framing;
use codex_responses_api_proxy::http1::head::{self, ScanProgress};
use codex_responses_api_proxy::http1::limits;
use codex_responses_api_proxy::http1::proxy::{ProxyUrl, is_exempt};
use codex_responses_api_proxy::http1::url::UpstreamUrl;
use codex_responses_api_proxy::process::credential::{
    Credential, KeyError, KeyForm, SearchPosition,
};
use codex_responses_api_proxy::process::key_ring::{Ended, KeyRing, LineForm, Terms};

pub use exchange::exchange;
use strict::{Field, Parsed};
pub use token::token_response;
pub use work::work;
pub use x509::{certificate, pem_file};

/// A property, by the name of its target.
pub type Property = fn(&[u8]);

/// Every property with its target's name.
pub const ALL: [(&str, Property); 12] = [
    ("request_head", request_head),
    ("response_head", response_head),
    ("chunked", chunked),
    ("framing", framing),
    ("upstream_url", upstream_url),
    ("proxy", proxy),
    ("key_intake", key_intake),
    ("exchange", exchange),
    ("work", work),
    ("pem_file", pem_file),
    ("certificate", certificate),
    ("token_response", token_response),
];

/// Reads up to seven distances between cuts from the first bytes of an input. Returns the ends of
/// the pieces, and the rest of the input, which is cut there.
fn cuts(data: &[u8]) -> (Vec<usize>, &[u8]) {
    let Some((count, rest)) = data.split_first() else {
        return (Vec::new(), data);
    };
    let (distances, rest) = rest.split_at(usize::from(count % 8).min(rest.len()));
    let mut at = 0;
    let mut ends = Vec::new();
    for distance in distances {
        at += usize::from(*distance);
        if at < rest.len() {
            ends.push(at);
        }
    }
    ends.push(rest.len());
    (ends, rest)
}

fn owned(fields: &head::Fields<'_, '_>) -> Vec<Field> {
    fields.iter().map(|field| (field.name.to_vec(), field.value.to_vec())).collect()
}

/// A request head gives the same result however it is cut, the same as an independent parser.
pub fn request_head(data: &[u8]) {
    let (ends, input) = cuts(data);
    let read = |input: &[u8], progress: &mut ScanProgress| {
        head::request(input, progress, |head| {
            let line = (head.method.to_vec(), head.target.to_vec(), head.http10);
            Ok((line, owned(&head.fields), head.len))
        })
    };
    let whole = read(input, &mut ScanProgress::default());
    let mut progress = ScanProgress::default();
    let parts = ends.iter().map(|end| read(&input[..*end], &mut progress)).find(|r| *r != Ok(None));
    match (&whole, parts) {
        (Ok(None), None) | (Err(_), Some(Err(_))) => {}
        (whole, Some(part)) => assert_eq!(*whole, part, "cut"),
        // A line that arrives in pieces is parsed when it is complete.
        (_, None) => {
            assert!(read(&[input, b"\n"].concat(), &mut progress).is_err(), "accepted in parts")
        }
    }
    let parsed = strict::head(input);
    match &whole {
        Ok(Some(((method, target, http10), fields, len))) => {
            let Parsed::Good { line, fields: read, len: end } = &parsed else {
                panic!("accepted, but it is {parsed:?}");
            };
            let version: &[u8] = if *http10 { b"HTTP/1.0" } else { b"HTTP/1.1" };
            assert_eq!(*line, [method, target, version].join(&b' '));
            assert_eq!((fields, len), (read, end));
            assert!(*len <= limits::HEAD + 2 && fields.len() <= limits::FIELDS);
            assert!(line.len() <= limits::REQUEST_LINE);
        }
        Ok(None) => assert!(!matches!(parsed, Parsed::Good { .. }), "still waiting"),
        // A well-formed head within bounds is not refused.
        Err(_) => {
            if let Parsed::Good { line, fields, len } = parsed {
                let sound = line == b"POST /v1/responses HTTP/1.1";
                let fits = fields.len() <= limits::FIELDS && len <= limits::HEAD;
                assert!(!(sound && fits), "refused without reason");
            }
        }
    }
}

/// The same for response heads.
pub fn response_head(data: &[u8]) {
    let (ends, input) = cuts(data);
    let read = |input: &[u8], progress: &mut ScanProgress| {
        head::response(input, progress, |head| {
            let reason = head.input[head.reason.clone()].to_vec();
            Ok((head.status, reason, head.http10, owned(&head.fields), head.len))
        })
    };
    let whole = read(input, &mut ScanProgress::default());
    let mut progress = ScanProgress::default();
    let parts = ends.iter().map(|end| read(&input[..*end], &mut progress)).find(|r| *r != Ok(None));
    match (&whole, parts) {
        (Ok(None), None) | (Err(_), Some(Err(_))) => {}
        (whole, Some(part)) => assert!(*whole == part, "cut"),
        (_, None) => {
            assert!(read(&[input, b"\n"].concat(), &mut progress).is_err(), "accepted in parts")
        }
    }
    if let Ok(Some((status, reason, http10, fields, len))) = whole {
        let Parsed::Good { line, fields: read, len: end } = strict::head(input) else {
            panic!("accepted, but it is malformed");
        };
        let start = format!("HTTP/1.{} {status}", u8::from(!http10));
        let rest = line.strip_prefix(start.as_bytes()).expect("this status line");
        assert_eq!(rest.strip_prefix(b" ").unwrap_or(rest), reason);
        assert!((100..=599).contains(&status));
        assert_eq!((fields, len), (read, end));
    }
}

/// A chunked body gives the same result however it is cut, the same as an independent decoder.
pub fn chunked(data: &[u8]) {
    let (ends, input) = cuts(data);
    let read = |ends: &[usize]| {
        let mut scanner = ChunkScanner::default();
        let (mut body, mut at, mut last) = (Vec::new(), 0, false);
        for end in ends {
            while at < *end && !last {
                let Ok(step) = scanner.step(&input[at..*end]) else {
                    return (body, None);
                };
                assert!(step.framing + step.data > 0 || step.end, "no progress");
                at += step.framing;
                body.extend_from_slice(&input[at..at + step.data]);
                at += step.data;
                last = step.end;
            }
        }
        (body, Some((at, last)))
    };
    let whole = read(&[input.len()]);
    assert_eq!(whole, read(&ends), "cut");
    assert_eq!(whole, read(&(1..=input.len()).collect::<Vec<_>>()), "byte by byte");
    let (body, end) = strict::chunked(input);
    match (whole.1, end) {
        (Some((at, true)), Some(end)) => assert_eq!((whole.0, at), (body, end)),
        (Some((_, false)), None) => assert!(body == whole.0),
        (None, None) => {}
        (got, want) => panic!("{got:?} and {want:?}"),
    }
}

/// Length fields have one meaning or are refused.
pub fn framing(data: &[u8]) {
    let Some((flags, rest)) = data.split_first() else {
        return;
    };
    let (http10, status) = (flags & 1 == 1, if flags & 2 == 2 { 204 } else { 200 });
    let mut lengths = FramingFields::default();
    let (mut numbers, mut codings) = (Vec::new(), Vec::new());
    for line in rest.split(|byte| *byte == b'\n').take(8) {
        let Some(at) = line.iter().position(|byte| *byte == b':') else {
            continue;
        };
        let (name, value) = (&line[..at], line[at + 1..].trim_ascii());
        match FieldName::of(name) {
            FieldName::ContentLength => {
                assert!(name.eq_ignore_ascii_case(b"content-length"));
                lengths.content_length(value);
                numbers.push(value);
            }
            FieldName::TransferEncoding => {
                assert!(name.eq_ignore_ascii_case(b"transfer-encoding"));
                lengths.transfer_encoding(value);
                codings.push(value);
            }
            _ => assert!(!name.eq_ignore_ascii_case(b"content-length")),
        }
    }
    let want = match (&numbers[..], &codings[..]) {
        ([], []) => Some(None),
        ([number], []) => strict::decimal(number).map(|n| Some(Framing::Length(n))),
        ([], [coding]) if coding.eq_ignore_ascii_case(b"chunked") && !http10 => {
            Some(Some(Framing::Chunked))
        }
        _ => None,
    };
    let request = Framing::of_request(&lengths, http10).ok();
    assert_eq!(request, want.map(|framing| framing.unwrap_or(Framing::Length(0))));
    let response = Framing::of_response(&lengths, http10, status).ok();
    let without = if status == 204 { Framing::None } else { Framing::UntilClose };
    assert_eq!(
        response,
        want.map(|framing| if status == 204 { without } else { framing.unwrap_or(without) })
    );
}

/// An accepted URL can be written into a request unchanged, and is parsed to the same URL again.
pub fn upstream_url(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(url) = UpstreamUrl::parse(text) else {
        return;
    };
    assert!(text.len() <= limits::URL);
    let (scheme, rest) = text.split_once("://").expect("a scheme");
    assert!(scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https"));
    assert!(!rest.contains('#') && url.port > 0);
    let authority_end = rest.find(['/', '?']).unwrap_or(rest.len());
    assert!(!rest[..authority_end].contains('@'));
    for part in [url.authority(), &url.path_and_query] {
        assert!(part.bytes().all(|byte| byte.is_ascii_graphic()), "a byte that splits a head");
    }
    assert!(
        url.path_and_query.starts_with('/') && url.path_and_query.ends_with(&rest[authority_end..])
    );
    let again = UpstreamUrl::parse(&format!(
        "{}://{}{}",
        scheme.to_ascii_lowercase(),
        url.authority(),
        url.path_and_query
    ))
    .expect("what was written can be read");
    assert_eq!((again.authority(), again.port), (url.authority(), url.port));
    assert_eq!(again.path_and_query, url.path_and_query);
    assert_eq!(again.is_loopback(), url.is_loopback());
}

/// An input has three lines: a proxy's URL, a NO_PROXY, and the proxy's response to CONNECT. An
/// accepted URL can be written into a head; a list exempts a host exactly if one of its entries
/// does; a response gives the same result however it is cut.
pub fn proxy(data: &[u8]) {
    let mut lines = data.splitn(3, |byte| *byte == b'\n');
    let (url, list) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    if let Ok(url) = ProxyUrl::parse(url) {
        let plain = format!("{}:{}", url.host, url.port);
        assert!(plain.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'@'));
        let again = ProxyUrl::parse(plain.as_bytes()).expect("what was written can be read");
        assert!(again.host == url.host && again.port == url.port && again.credentials().is_none());
        if let Some(credentials) = url.credentials() {
            let bytes: Vec<u8> = credentials.collect();
            assert!(bytes.contains(&b':') && !bytes.iter().any(u8::is_ascii_control));
        }
        let by_entry = list
            .split(|byte| b", \t".contains(byte))
            .any(|entry| entry != b"*" && is_exempt(entry, &url.host));
        assert_eq!(is_exempt(list, &url.host), by_entry || list == b"*");
        let named = [list, b",", url.host.to_string().as_bytes()].concat();
        assert!(is_exempt(&named, &url.host), "a host by its own name");
    }
    let (ends, answer) = cuts(lines.next().unwrap_or_default());
    let whole = connect::response(answer, &mut ScanProgress::default());
    let mut progress = ScanProgress::default();
    let part = ends
        .iter()
        .map(|end| connect::response(&answer[..*end], &mut progress))
        .find(|r| *r != Ok(None));
    match (whole, part) {
        (Ok(None), None) | (Err(_), Some(Err(_))) => {}
        (whole, Some(part)) => assert_eq!(whole, part, "cut"),
        (_, None) => {
            assert!(
                connect::response(&[answer, b"\n"].concat(), &mut progress).is_err(),
                "opened in parts"
            )
        }
    }
    if let Ok(Some(len)) = whole {
        assert!(answer[..len].ends_with(b"\r\n\r\n") && answer[b"HTTP/1.1 ".len()] == b'2');
    }
}

fn longest_key(form: KeyForm) -> usize {
    match form {
        KeyForm::Word => limits::KEY - "Bearer ".len(),
        KeyForm::Token68 => limits::TOKEN68,
    }
}

/// Whether the bytes of a key are those of this form.
fn fine_key(form: KeyForm) -> impl Fn(&[u8]) -> bool {
    let marks = if form == KeyForm::Word { "-_" } else { "-._~+/" };
    move |key| {
        let text = std::str::from_utf8(key).unwrap_or(" ");
        let word = if form == KeyForm::Token68 { text.trim_end_matches('=') } else { text };
        !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || marks.contains(c))
    }
}

/// With `--rotate` the key is the last whole line that is one, and each other line is refused once,
/// whatever read(2) does. The first line of `stdin` is a key.
fn key_lines(stdin: &[u8], ends: &[usize], form: KeyForm, is_fine: &dyn Fn(&[u8]) -> bool) {
    let (mut at, mut turns) = (0, ends.iter());
    let mut read = |buffer: &mut [u8]| {
        let end = turns.next().copied().unwrap_or(stdin.len()).clamp(at, stdin.len());
        let end = if end == at { stdin.len() } else { end };
        let n = (end - at).min(buffer.len());
        buffer[..n].copy_from_slice(&stdin[at..at + n]);
        at += n;
        Ok(n)
    };
    let terms = Terms { max_age: None, line: LineForm::Key };
    let mut keys = match KeyRing::rotating(b"PREFIX ", form, terms, &mut read) {
        Ok(keys) => keys,
        // Its line ends do not fit.
        Err(KeyError::TooLong(_)) => return,
        Err(error) => panic!("{error}"),
    };
    let mut refused = 0;
    loop {
        refused += keys.take().refused_lines;
        if keys.read(&mut read).expect("no error") == 0 {
            break;
        }
    }
    let is_cut = keys.end() == Ended::WithinLine;

    let mut lines: Vec<&[u8]> = stdin.split(|byte| *byte == b'\n').collect();
    let rest = lines.pop().unwrap_or_default();
    let room = longest_key(form) + 2;
    let key = |line: &&[u8]| {
        let kept = line.iter().rposition(|byte| *byte != b'\r').map_or(0, |last| last + 1);
        (line.len() < room && kept <= room - 2 && is_fine(&line[..kept]))
            .then(|| line[..kept].to_vec())
    };
    let want = lines.iter().rev().find_map(key).expect("the first line is a key");
    let bad = lines.iter().filter(|line| key(line).is_none()).count();
    assert_eq!(refused, bad as u64 + u64::from(rest.len() >= room), "lines that were refused");
    assert_eq!(is_cut, !rest.is_empty() && rest.len() < room);
    let mut out = Vec::new();
    keys.current().splice_into(&[], &mut out).expect("a Vec takes all");
    assert!(out == [b"PREFIX ", &want[..], b"\r\n"].concat(), "another key");
}

/// The input gives a key, its first line, or a clear error, whatever read(2) returns. The key is
/// written in one piece. A reflected key is found exactly where it is.
pub fn key_intake(data: &[u8]) {
    let (ends, input) = cuts(data);
    // One byte decides where the searched response begins.
    let split = input.first().map_or(0, |byte| usize::from(*byte)).min(input.len());
    let (stdin, answer) = input.split_at(split);
    let mut at = 0;
    let mut turns = ends.iter();
    let form = if input.len() % 2 == 0 { KeyForm::Word } else { KeyForm::Token68 };
    let credential = Credential::read(b"PREFIX ", form, |buffer| {
        if turns.len() % 3 == 2 {
            turns.next();
            return Err(std::io::ErrorKind::Interrupted.into());
        }
        let end =
            turns.next().copied().unwrap_or(stdin.len()).clamp(at + 1, stdin.len().max(at + 1));
        let piece = &stdin[at.min(stdin.len())..end.min(stdin.len())];
        let n = piece.len().min(buffer.len());
        buffer[..n].copy_from_slice(&piece[..n]);
        at += n;
        Ok(n)
    });
    let line = stdin.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let kept = line.iter().rposition(|byte| *byte != b'\r').map_or(0, |last| last + 1);
    let key = &line[..kept];
    let longest = longest_key(form);
    let text = std::str::from_utf8(key).unwrap_or(" ");
    let fine = fine_key(form)(key);
    let mut credential = match credential {
        Ok(credential) => credential,
        Err(KeyError::Empty) => return assert!(key.is_empty()),
        Err(KeyError::TooLong(_)) => return assert!(line.len() > longest),
        Err(KeyError::BadCharacter(..)) => return assert!(!fine),
        Err(error) => panic!("{error}"),
    };
    assert!(fine && key.len() <= longest);
    let mut out = Vec::new();
    let after = [std::io::IoSlice::new(b"A: b\r\n"), std::io::IoSlice::new(b"\r\n")];
    assert_eq!(credential.splice_into(&after, &mut out).expect("a Vec takes all"), 8);
    assert!(out == [b"PREFIX ", key, b"\r\nA: b\r\n\r\n"].concat(), "another record");

    if stdin.contains(&b'\n') {
        key_lines(input, &ends, form, &fine_key(form));
    }

    let long = text.split('.').rfind(|part| part.len() >= 32).map(str::as_bytes);
    let part = long.unwrap_or(key);
    let part = &part[..part.len().min(1024)];
    // The searched text; how many bytes of it are always found, and how many are never found.
    let (part, found, not_found) = match part.len() {
        ..16 => (&part[..0], 1, 0),
        half @ 16..31 => (&part[..half / 2], half / 2, half / 2 - 1),
        31..62 => (part, 23, 15),
        62.. => (part, 31, 19),
    };
    // Half of the responses repeat bytes of the key, so that the search finds some.
    let mut text = answer.to_vec();
    if let [first, ..] = answer
        && first % 2 == 0
    {
        let at = usize::from(*first) % answer.len();
        let from = usize::from(answer[answer.len() - 1]) % key.len();
        text.splice(at..at, key[from..].iter().copied());
    }
    let holds = |run: usize| {
        let windows: HashSet<&[u8]> = text.windows(run).collect();
        part.windows(run).any(|window| windows.contains(window))
    };
    let (must, must_not) = (holds(found), !holds(not_found + 1));
    assert!(credential.is_searched_for() != part.is_empty());
    let mut keys = KeyRing::fixed(credential);
    for ends in [vec![text.len()], ends.clone(), (1..=text.len()).collect()] {
        let (mut position, mut at, mut got) = (SearchPosition::default(), 0, false);
        for end in ends.into_iter().chain([text.len()]) {
            let end = end.clamp(at, text.len());
            got |= !got && keys.reflected(&mut position, &text[at..end]);
            at = end;
        }
        assert!(got || !must, "the search finds too little");
        assert!(!got || !must_not, "the search finds too much");
    }
}
