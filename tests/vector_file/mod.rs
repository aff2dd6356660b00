//! Reads the vectors. A mistake in one is a failed test that names file and line.

use std::fs;
use std::path::Path;

/// What is to come of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Refused { status: u16, code: String, keep: bool },
    Wait,
    Forward(Vec<u8>),
    Pass(Vec<u8>),
    Fault { status: u16, code: String },
    Reset(Vec<u8>),
}

/// How the upstream's stream ends behind a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Open,
    Fin,
    Cut,
}

#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    pub is_answer: bool,
    pub bytes: Vec<u8>,
    pub end: End,
    pub outcomes: Vec<Outcome>,
}

/// Every case of every file.
pub fn load() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "http"))
        .collect();
    files.sort();
    let mut cases = Vec::new();
    for path in files {
        let group = path.file_stem().unwrap().to_str().unwrap();
        parse(group, &fs::read_to_string(&path).unwrap(), &mut cases);
    }
    cases
}

fn parse(group: &str, text: &str, cases: &mut Vec<Case>) {
    let (mut template, mut is_answer, mut end, mut in_message) =
        (String::new(), false, End::Open, false);
    for (number, line) in text.lines().enumerate() {
        let wrong = |what: &str| -> ! { panic!("{group}.http:{}: {what}: {line}", number + 1) };
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if line.starts_with(['>', '<', '!']) {
            if !in_message {
                (template, is_answer, end, in_message) =
                    (String::new(), line.starts_with('<'), End::Open, true);
            }
            match line {
                "! fin" => end = End::Fin,
                "! cut" => end = End::Cut,
                ">" | "<" => template += "\\r\\n",
                _ => match line.split_once(' ') {
                    Some((">" | "<", text)) => template = template + text + "\\r\\n",
                    Some((">>" | "<<", text)) => template += text,
                    _ => wrong("not a line of a message"),
                },
            }
            continue;
        }
        in_message = false;
        let Some((front, outcomes)) = line.split_once(" => ") else { wrong("no outcome") };
        let (name, value) = front.split_once(" | ").unwrap_or((front, ""));
        if template.contains("{}") != front.contains(" | ") {
            wrong("a value without a place, or a place without a value");
        }
        let value = value.trim();
        cases.push(Case {
            name: format!("{group}/{}", name.trim()),
            is_answer,
            bytes: bytes(&template.replace("{}", value)).unwrap_or_else(|| wrong("bad escape")),
            end,
            outcomes: outcomes
                .split(" ; ")
                .map(|text| outcome(text, is_answer).unwrap_or_else(|| wrong("bad outcome")))
                .collect(),
        });
    }
}

fn outcome(text: &str, is_answer: bool) -> Option<Outcome> {
    let (word, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    Some(match (word, is_answer) {
        ("wait", false) => Outcome::Wait,
        ("forward", false) => Outcome::Forward(bytes(rest)?),
        ("pass", true) => Outcome::Pass(bytes(rest)?),
        ("reset", true) => Outcome::Reset(bytes(rest)?),
        (status, true) => Outcome::Fault { status: status.parse().ok()?, code: rest.to_owned() },
        (status, false) => {
            let (code, manner) = rest.split_once(' ')?;
            let keep = match manner {
                "keep" => true,
                "close" => false,
                _ => return None,
            };
            Outcome::Refused { status: status.parse().ok()?, code: code.to_owned(), keep }
        }
    })
}

/// The bytes that a text describes.
fn bytes(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        rest = &rest[character.len_utf8()..];
        if character == '\\' {
            let escape = rest.chars().next()?;
            rest = &rest[1..];
            out.push(match escape {
                'r' => b'\r',
                'n' => b'\n',
                't' => b'\t',
                's' => b' ',
                '0' => 0,
                '\\' => b'\\',
                'x' => {
                    let byte = u8::from_str_radix(rest.get(..2)?, 16).ok()?;
                    rest = &rest[2..];
                    byte
                }
                _ => return None,
            });
        } else if character == '{'
            && let Some((repeated, more)) = rest.split_once('}')
            && let Some((what, times)) = repeated.rsplit_once('*')
            && let Ok(times) = times.parse()
        {
            out.extend(bytes(what)?.repeat(times));
            rest = more;
        } else {
            out.extend(character.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
    Some(out)
}
