//! The members of one JSON object, found in place. hifijson reads tokens, strings and numbers as RFC
//! 8259 defines them; no value is copied.

use core::ops::Range;

use hifijson::str::LexWrite as _;
use hifijson::token::Lex as _;
use hifijson::{Expect, Read as _, SliceLexer, escape, num, num::Lex as _};

use super::limits::DEPTH;

/// The text is not one JSON object in UTF-8, or a member's name is written with an escape or occurs
/// twice, or it is nested too deeply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAnObject;

impl From<Expect> for NotAnObject {
    fn from(_: Expect) -> NotAnObject {
        NotAnObject
    }
}

impl From<hifijson::str::Error> for NotAnObject {
    fn from(_: hifijson::str::Error) -> NotAnObject {
        NotAnObject
    }
}

impl From<num::Error> for NotAnObject {
    fn from(_: num::Error) -> NotAnObject {
        NotAnObject
    }
}

/// A value, as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// A string, without its quotation marks.
    Text(&'a [u8]),
    /// A number.
    Number(&'a [u8]),
    /// An object.
    Object(&'a [u8]),
    /// Anything else.
    Other,
}

/// The members of these names. A name must be written without escapes: a name that can be written
/// in two ways could be read in two ways.
pub fn members<'a, const N: usize>(
    text: &'a [u8],
    names: [&str; N],
) -> Result<[Option<Value<'a>>; N], NotAnObject> {
    if core::str::from_utf8(text).is_err() {
        return Err(NotAnObject);
    }
    let mut found = [const { None }; N];
    let mut lexer = SliceLexer::new(text);
    lexer.exactly_one(SliceLexer::ws_peek, |next, lexer| match next {
        b'{' => object(lexer, 1, &mut |name, value| match names
            .iter()
            .position(|known| known.as_bytes() == name)
        {
            Some(at) if found[at].is_some() => Err(NotAnObject),
            Some(at) => {
                found[at] = Some(value);
                Ok(())
            }
            None => Ok(()),
        }),
        _ => Err(NotAnObject),
    })?;
    Ok(found)
}

/// Passes each member of the object at whose `{` the lexer is.
fn object<'a>(
    lexer: &mut SliceLexer<'a>,
    depth: usize,
    member: &mut dyn FnMut(&'a [u8], Value<'a>) -> Result<(), NotAnObject>,
) -> Result<(), NotAnObject> {
    lexer.discarded().seq(b'}', SliceLexer::ws_peek, |next, lexer| {
        lexer.expect(|_| Some(next), b'"').ok_or(NotAnObject)?;
        let mut name: &[u8] = &[];
        lexer.str_bytes(&mut name)?;
        if name.contains(&b'\\') {
            return Err(NotAnObject);
        }
        lexer.expect(SliceLexer::ws_peek, b':').ok_or(NotAnObject)?;
        let next = lexer.ws_peek().ok_or(NotAnObject)?;
        let value = value(next, lexer, depth)?;
        member(name, value)
    })
}

/// Reads the value that begins with `next`.
fn value<'a>(next: u8, lexer: &mut SliceLexer<'a>, depth: usize) -> Result<Value<'a>, NotAnObject> {
    let start = lexer.as_slice();
    let taken = |lexer: &SliceLexer<'a>| &start[..start.len() - lexer.as_slice().len()];
    match next {
        b'"' => {
            let mut text: &[u8] = &[];
            lexer.discarded().str_bytes(&mut text)?;
            Ok(Value::Text(text))
        }
        b'0'..=b'9' | b'-' => {
            lexer.num_ignore().validate()?;
            Ok(Value::Number(taken(lexer)))
        }
        b'[' | b'{' if depth == DEPTH => Err(NotAnObject),
        b'[' => {
            lexer.discarded().seq(b']', SliceLexer::ws_peek, |next, lexer| {
                value(next, lexer, depth + 1).map(|_| ())
            })?;
            Ok(Value::Other)
        }
        b'{' => {
            object(lexer, depth + 1, &mut |_, _| Ok(()))?;
            Ok(Value::Object(taken(lexer)))
        }
        _ => lexer.null_or_bool().map(|_| Value::Other).ok_or(NotAnObject),
    }
}

/// Writes the characters of a JSON string into `out`. `None` if they do not fit, or an escape
/// denotes no character.
pub fn unescape(text: &[u8], out: &mut [u8]) -> Option<Range<usize>> {
    use escape::Lex as _;
    let mut len = 0;
    let mut put = |bytes: &[u8]| {
        out.get_mut(len..len + bytes.len())?.copy_from_slice(bytes);
        len += bytes.len();
        Some(())
    };
    let mut lexer = SliceLexer::new(text);
    loop {
        let rest = lexer.as_slice();
        lexer.skip_until(|byte| byte == b'\\');
        put(&rest[..rest.len() - lexer.as_slice().len()])?;
        if lexer.take_next().is_none() {
            return Some(0..len);
        }
        let kind = lexer.take_next()?;
        let character = lexer.escape(kind).ok()?;
        put(character.encode_utf8(&mut [0; 4]).as_bytes())?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_found_in_any_order_and_others_are_passed_over() {
        let text =
            br#" { "b" : -1.5e3 , "x":[{"a":"no"},[[]],null,true,""], "a":"y\"z", "c":{"a":1} } "#;
        let [a, b, c, d] = members(text, ["a", "b", "c", "d"]).unwrap();
        assert_eq!(a, Some(Value::Text(br#"y\"z"#)));
        assert_eq!(b, Some(Value::Number(b"-1.5e3")));
        assert_eq!(c, Some(Value::Object(br#"{"a":1}"#)));
        assert_eq!(d, None);
    }

    #[test]
    fn what_is_no_object_or_is_ambiguous_is_refused() {
        let deep = format!("{{\"x\":{}{}}}", "[".repeat(DEPTH), "]".repeat(DEPTH));
        for text in [
            "",
            "[]",
            "\"a\"",
            "1",
            "null",
            "{",
            "{}x",
            "{} {}",
            "{\"a\":1,}",
            "{,}",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\" 1}",
            "{a:1}",
            "{\"a\":01}",
            "{\"a\":+1}",
            "{\"a\":1.}",
            "{\"a\":nul}",
            "{\"a\":\"\n\"}",
            "{\"a\":\"\\x\"}",
            "{\"a\":\"\\u12\"}",
            "{\"a\":\"b}",
            "{\"a\":NaN}",
            "{\"a\":1,\"a\":2}",
            "{\"\\u0061\":1}",
            "\u{feff}{}",
            "{\"a\":'b'}",
            "{}/**/",
            &deep,
        ] {
            assert_eq!(members(text.as_bytes(), ["a"]), Err(NotAnObject), "{text}");
        }
        assert_eq!(members(b"{\"a\":\"\xff\"}", ["a"]), Err(NotAnObject));
    }

    #[test]
    fn nesting_is_bounded() {
        let text = |n: usize| format!("{{\"x\":{}{}}}", "[".repeat(n), "]".repeat(n));
        assert!(members(text(DEPTH - 1).as_bytes(), ["a"]).is_ok());
        assert!(members(text(DEPTH).as_bytes(), ["a"]).is_err());
        let text = |n: usize| format!("{}1{}", "{\"a\":".repeat(n), "}".repeat(n));
        assert!(members(text(DEPTH).as_bytes(), ["a"]).is_ok());
        assert!(members(text(DEPTH + 1).as_bytes(), ["a"]).is_err());
    }

    #[test]
    fn escapes_are_undone_in_the_callers_memory() {
        for (text, want) in [
            ("", Some("")),
            ("ey.J-_", Some("ey.J-_")),
            (r"a\/b\u002Bc\u003d", Some("a/b+c=")),
            (r#"\"\\\b\f\n\r\t"#, Some("\"\\\u{8}\u{c}\n\r\t")),
            (r"\ud83d\ude00\u00e9", Some("\u{1f600}\u{e9}")),
            (r"\ud83d", None),
            (r"\ude00", None),
        ] {
            let mut out = [0; 16];
            let got = unescape(text.as_bytes(), &mut out);
            let got = got.map(|range| core::str::from_utf8(&out[range]).unwrap().to_owned());
            assert_eq!(got.as_deref(), want, "{text}");
        }
        assert_eq!(unescape(b"abc", &mut [0; 3]), Some(0..3));
        assert_eq!(unescape(b"abcd", &mut [0; 3]), None);
        assert_eq!(unescape(br"abc\n", &mut [0; 3]), None);
    }
}
