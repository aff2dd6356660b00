//! Token responses, compared with a reader of JSON that shares nothing with the relay's: it builds a
//! tree, with every escape undone.

use codex_responses_api_proxy::http1::limits::TOKEN68;
use codex_responses_api_proxy::oidc::Step;
use codex_responses_api_proxy::oidc::limits::{DEPTH, LIFETIME, RESPONSE_BODY, WORD};
use codex_responses_api_proxy::oidc::notice::{NOTICE, Notice};
use codex_responses_api_proxy::oidc::receive::{BUFFER, Received, Reception, ResponseFault};
use codex_responses_api_proxy::oidc::token_response::{ErrorWord, token};

use super::cuts;

/// A response is the same however it is cut. A body is a token, a lifetime and an error word as an
/// independent reader finds them, or it is refused. A notice is written in one way.
pub fn token_response(data: &[u8]) {
    if let Ok(notice) = Notice::decode(&data[..data.len().min(NOTICE)]) {
        assert_eq!(notice.encode(), data[..NOTICE]);
    }
    body(data);
    let (mut ends, input) = cuts(data);
    let whole = receive(input, &[input.len()]);
    let mut cut = receive(input, &ends);
    if whole == Err(ResponseFault::Malformed) && cut == Ok(None) {
        // A fault in a line of a head that is cut may be seen as late as at the end of the line.
        let finished = [input, b"\r\n\r\n"].concat();
        ends.push(finished.len());
        cut = receive(&finished, &ends);
    }
    assert_eq!(cut, whole, "cut");
    if let Ok(Some((status, received))) = whole {
        assert!((200..600).contains(&status) && received.len() <= RESPONSE_BODY);
        body(&received);
    }
}

/// The status and the body, or the fault; `None` if more is needed.
fn receive(input: &[u8], ends: &[usize]) -> Result<Option<(u16, Vec<u8>)>, ResponseFault> {
    let mut buffer = vec![0; BUFFER];
    let mut reception = Reception::default();
    let mut start = 0;
    let mut got = None;
    for end in ends {
        got = reception.receive(&input[start..*end], &mut buffer)?;
        start = *end;
    }
    Ok(got.map(|Received { status, len }| (status, buffer[..len].to_vec())))
}

fn body(text: &[u8]) {
    let members = strict(text);
    for step in [Step::IdToken, Step::AccessToken] {
        let mut out = vec![0; TOKEN68];
        let got = token(step, text, &mut out).ok();
        let got = got.map(|token| (out[..token.len].to_vec(), token.lifetime));
        assert_eq!(got, members.as_ref().and_then(|members| wanted(step, members)));
    }
    let word = ErrorWord::of_body(text, [b"", b""]).map(|word| word.to_string());
    let want = members.as_ref().and_then(|members| match find(members, "error")? {
        Json::Text(word, Spelling::Plain) => Some(word.clone()),
        Json::Object(inner) => match find(&unambiguous(inner)?, "code")? {
            Json::Text(word, Spelling::Plain) => Some(word.clone()),
            _ => None,
        },
        _ => None,
    });
    let is_plain = |word: &String| {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        word.starts_with(|c: char| c.is_ascii_lowercase())
            && word.chars().all(fits)
            && word.len() <= WORD
    };
    assert_eq!(word, want.filter(is_plain));
}

fn wanted(step: Step, members: &Members) -> Option<(Vec<u8>, u64)> {
    let text = |name| match find(members, name)? {
        Json::Text(text, spelling) => Some((text.as_str(), *spelling)),
        _ => None,
    };
    let token = |name| {
        let (token, _) = text(name)?;
        let word = token.trim_end_matches('=');
        let fits = |c: char| c.is_ascii_alphanumeric() || "-._~+/".contains(c);
        let fine = !word.is_empty() && word.chars().all(fits) && token.len() <= TOKEN68;
        fine.then(|| token.as_bytes().to_vec())
    };
    if step == Step::IdToken {
        return Some((token("value")?, 0));
    }
    let issued = text("issued_token_type")?;
    let (kind, spelling) = text("token_type")?;
    let fine = issued == ("urn:ietf:params:oauth:token-type:access_token", Spelling::Plain)
        && kind.eq_ignore_ascii_case("bearer")
        && spelling == Spelling::Plain;
    let Json::Number(number) = find(members, "expires_in")? else { return None };
    let seconds = if number.bytes().all(|byte| byte.is_ascii_digit()) {
        number.parse::<u128>().unwrap_or(u128::MAX)
    } else {
        0
    };
    (fine && seconds > 0).then_some(())?;
    Some((token("access_token")?, seconds.min(LIFETIME.into()) as u64))
}

/// Whether a string is written with escapes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Spelling {
    Plain,
    Escaped,
}

#[derive(Clone, Debug, PartialEq)]
enum Json {
    /// A string. One whose escapes stand for no character is not a text.
    Text(String, Spelling),
    Number(String),
    Object(Members),
    Other,
}

type Members = Vec<(Json, Json)>;

fn find<'a>(members: &'a Members, name: &str) -> Option<&'a Json> {
    let is = |key: &Json| *key == Json::Text(name.into(), Spelling::Plain);
    members.iter().find(|(key, _)| is(key)).map(|(_, value)| value)
}

/// The members, if each name is written plainly and those that count occur once.
fn unambiguous(members: &Members) -> Option<Members> {
    const NAMES: [&str; 7] =
        ["value", "access_token", "issued_token_type", "token_type", "expires_in", "error", "code"];
    let plain = |key: &Json| matches!(key, Json::Text(_, Spelling::Plain));
    let count = |name: &str| {
        let key = Json::Text(name.into(), Spelling::Plain);
        members.iter().filter(|(other, _)| *other == key).count()
    };
    let fine =
        members.iter().all(|(key, _)| plain(key)) && NAMES.iter().all(|name| count(name) <= 1);
    fine.then(|| members.clone())
}

/// The members of the one object that the text is.
fn strict(text: &[u8]) -> Option<Members> {
    let text: Vec<char> = std::str::from_utf8(text).ok()?.chars().collect();
    let mut parser = Parser { text: &text, at: 0 };
    parser.space();
    let value = parser.value(1)?;
    parser.space();
    match value {
        Json::Object(members) if parser.at == text.len() => unambiguous(&members),
        _ => None,
    }
}

struct Parser<'a> {
    text: &'a [char],
    at: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<char> {
        self.text.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        self.at += 1;
        self.text.get(self.at - 1).copied()
    }

    fn space(&mut self) {
        while self.peek().is_some_and(|c| " \t\r\n".contains(c)) {
            self.at += 1;
        }
    }

    fn value(&mut self, depth: usize) -> Option<Json> {
        if depth > DEPTH && matches!(self.peek(), Some('[' | '{')) {
            return None;
        }
        match self.peek()? {
            '"' => self.string(),
            '[' => {
                self.list(']', |parser| parser.value(depth + 1).map(|_| ()))?;
                Some(Json::Other)
            }
            '{' => {
                let mut members = Vec::new();
                self.list('}', |parser| {
                    let key = parser.string()?;
                    parser.space();
                    (parser.next()? == ':').then_some(())?;
                    parser.space();
                    members.push((key, parser.value(depth + 1)?));
                    Some(())
                })?;
                // An inner object with an escaped name is no object that is read.
                let plain = |(key, _): &(Json, Json)| matches!(key, Json::Text(_, Spelling::Plain));
                members.iter().all(plain).then_some(Json::Object(members))
            }
            'n' | 't' | 'f' => ["null", "true", "false"].iter().find_map(|word| {
                let rest = &self.text[self.at..];
                let is =
                    rest.len() >= word.len() && rest.iter().zip(word.chars()).all(|(a, b)| *a == b);
                is.then(|| {
                    self.at += word.len();
                    Json::Other
                })
            }),
            _ => self.number(),
        }
    }

    fn list(&mut self, end: char, mut one: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.at += 1;
        self.space();
        if self.peek()? == end {
            self.at += 1;
            return Some(());
        }
        loop {
            one(self)?;
            self.space();
            match self.next()? {
                ',' => self.space(),
                c => return (c == end).then_some(()),
            }
        }
    }

    fn string(&mut self) -> Option<Json> {
        (self.next()? == '"').then_some(())?;
        let (mut units, mut spelling) = (Vec::new(), Spelling::Plain);
        loop {
            let mut both = [0; 2];
            match self.next()? {
                '"' => break,
                '\\' => {
                    spelling = Spelling::Escaped;
                    units.push(match self.next()? {
                        'b' => 8,
                        'f' => 12,
                        'n' => 10,
                        'r' => 13,
                        't' => 9,
                        c @ ('"' | '\\' | '/') => c as u16,
                        'u' => {
                            let digits: String = (0..4).map_while(|_| self.next()).collect();
                            let hex = digits.chars().all(|c| c.is_ascii_hexdigit());
                            (hex && digits.len() == 4).then_some(())?;
                            u16::from_str_radix(&digits, 16).ok()?
                        }
                        _ => return None,
                    });
                }
                c if c < ' ' => return None,
                c => units.extend_from_slice(c.encode_utf16(&mut both)),
            }
        }
        Some(match String::from_utf16(&units) {
            Ok(text) => Json::Text(text, spelling),
            Err(_) => Json::Other,
        })
    }

    fn number(&mut self) -> Option<Json> {
        let start = self.at;
        let digits = |parser: &mut Self| {
            let before = parser.at;
            while parser.peek().is_some_and(|c| c.is_ascii_digit()) {
                parser.at += 1;
            }
            parser.at - before
        };
        self.at += usize::from(self.peek() == Some('-'));
        if self.peek() == Some('0') {
            self.at += 1
        } else {
            (digits(self) > 0).then_some(())?
        }
        if self.peek() == Some('.') {
            self.at += 1;
            (digits(self) > 0).then_some(())?;
        }
        if matches!(self.peek(), Some('e' | 'E')) {
            self.at += 1;
            self.at += usize::from(matches!(self.peek(), Some('+' | '-')));
            (digits(self) > 0).then_some(())?;
        }
        Some(Json::Number(self.text[start..self.at].iter().collect()))
    }
}
