//! An independent parser, simple and strict. It shares no code with the relay.

/// Name and value, without white space around the value.
pub type Field = (Vec<u8>, Vec<u8>);

#[derive(Debug)]
pub enum Parsed {
    /// A well-formed head: its start line, its fields, and its length in bytes.
    Good {
        line: Vec<u8>,
        fields: Vec<Field>,
        len: usize,
    },
    Partial,
    Bad,
}

/// Parses a head, which one empty line may precede.
pub fn head(input: &[u8]) -> Parsed {
    let skip = if input.starts_with(b"\r\n") { 2 } else { 0 };
    let mut at = skip;
    let mut lines: Vec<&[u8]> = Vec::new();
    loop {
        let Some(length) = input[at..].iter().position(|byte| *byte == b'\n') else {
            return Parsed::Partial;
        };
        let Some(line) = input[at..at + length].strip_suffix(b"\r") else {
            return Parsed::Bad;
        };
        at += length + 1;
        if line.iter().any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f) {
            return Parsed::Bad;
        }
        if line.is_empty() {
            break;
        }
        lines.push(line);
    }
    let Some((first, rest)) = lines.split_first() else {
        return Parsed::Bad;
    };
    let mut fields = Vec::new();
    for line in rest {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            return Parsed::Bad;
        };
        let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
        if colon == 0 || !line[..colon].iter().all(token) {
            return Parsed::Bad;
        }
        let value = &line[colon + 1..];
        let space = |byte: &u8| *byte == b' ' || *byte == b'\t';
        let start = value.iter().position(|byte| !space(byte)).unwrap_or(value.len());
        let end = value.iter().rposition(|byte| !space(byte)).map_or(start, |last| last + 1);
        fields.push((line[..colon].to_vec(), value[start..end].to_vec()));
    }
    Parsed::Good { line: first.to_vec(), fields, len: at }
}

/// Parses 1 to 20 digits and nothing else, below 2^64.
pub fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 20 {
        return None;
    }
    text.iter().try_fold(0u64, |n, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        n.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// Decodes a chunked body: its data, and its length in bytes if it is complete and well-formed.
pub fn chunked(input: &[u8]) -> (Vec<u8>, Option<usize>) {
    let mut body = Vec::new();
    let mut at = 0;
    loop {
        let Some(length) = input[at..].windows(2).position(|pair| pair == b"\r\n") else {
            return (body, None);
        };
        let line = &input[at..at + length];
        at += length + 2;
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let extension = &line[digits..];
        let begins = extension.iter().find(|byte| !b" \t".contains(byte));
        let odd = |byte: &u8| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f;
        if digits == 0
            || digits > 16
            || extension.len() > 256
            || extension.iter().any(odd)
            || (!extension.is_empty() && begins != Some(&b';'))
        {
            return (body, None);
        }
        let size = line[..digits].iter().fold(0u64, |size, digit| {
            size << 4 | u64::from((*digit as char).to_digit(16).unwrap_or(0))
        });
        if size == 0 {
            break;
        }
        let take = usize::try_from(size).unwrap_or(usize::MAX).min(input.len() - at);
        body.extend_from_slice(&input[at..at + take]);
        at += take;
        if (take as u64) < size || !input[at..].starts_with(b"\r\n") {
            return (body, None);
        }
        at += 2;
    }
    // The trailer section is fields without a start line.
    let section = [b"X\r\n", &input[at..]].concat();
    match head(&section) {
        Parsed::Good { fields, len, .. } if fields.len() <= 128 && len - 3 <= 65_536 => {
            (body, Some(at + len - 3))
        }
        _ => (body, None),
    }
}

/// The certificates of a PEM file: the number of each one's first line, and its lines. `None` if a
/// section is malformed.
pub fn pem(text: &[u8]) -> Option<Vec<(usize, Vec<u8>)>> {
    let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    let is_marker = |line: &[u8]| {
        let line = line.trim_ascii_end();
        line.starts_with(b"-----BEGIN ") || line.starts_with(b"-----END ")
    };
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(begin) = (at..lines.len()).find(|n| is_marker(lines[*n])) {
        let label = lines[begin].trim_ascii_end();
        let label = label.strip_prefix(b"-----BEGIN ")?.strip_suffix(b"-----")?;
        let end = (begin + 1..lines.len()).find(|n| is_marker(lines[*n]))?;
        if lines[end].trim_ascii_end() != [&b"-----END "[..], label, b"-----"].concat() {
            return None;
        }
        if label == b"CERTIFICATE" {
            let base64 = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=".contains(byte);
            if !lines[begin + 1..end].iter().all(|line| line.trim_ascii_end().iter().all(base64)) {
                return None;
            }
            found.push((begin + 1, lines[begin..=end].concat()));
        }
        at = end + 1;
    }
    Some(found)
}

/// Tag, content and rest of the DER element at the front.
fn der(input: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, first) = (*input.first()?, usize::from(*input.get(1)?));
    let digits = first.saturating_sub(128);
    if first == 128 || digits > 2 {
        return None;
    }
    let long = input.get(2..2 + digits)?;
    let len = long.iter().fold(0, |len, byte| len * 256 + usize::from(*byte));
    let len = if digits == 0 { first } else { len };
    let shortest = if len < 128 { 0 } else { 1 + usize::from(len > 255) };
    let content = input.get(2 + digits..2 + digits + len)?;
    (digits == shortest).then_some((tag, content, &input[2 + digits + len..]))
}

/// The parts of a certificate that `--check` shows: the issuer, and year, month and day of the
/// expiry.
pub fn certificate(input: &[u8]) -> Option<(Vec<u8>, (u64, u64, u64))> {
    let of = |tag: u8, input| der(input).filter(|(got, ..)| *got == tag);
    let (_, whole, _) = of(0x30, input)?;
    let (_, mut rest, _) = of(0x30, whole)?;
    if rest.first() == Some(&0xa0) {
        rest = der(rest)?.2;
    }
    let (_, _, rest) = of(0x02, rest)?;
    let (_, _, rest) = of(0x30, rest)?;
    let (_, mut sets, rest) = of(0x30, rest)?;
    let (_, validity, _) = of(0x30, rest)?;
    let mut names = [None, None];
    while !sets.is_empty() {
        let (_, mut set, next) = of(0x31, sets)?;
        sets = next;
        while !set.is_empty() {
            let (_, pair, next) = of(0x30, set)?;
            set = next;
            let (_, kind, value) = of(0x06, pair)?;
            let (_, text, _) = der(value)?;
            match kind {
                b"\x55\x04\x03" => names[0] = Some(text),
                b"\x55\x04\x0a" => names[1] = Some(text),
                _ => {}
            }
        }
    }
    let (_, _, rest) = time(validity)?;
    let (year, day, _) = time(rest)?;
    let name = names[0].or(names[1]).unwrap_or_default();
    Some((name.to_vec(), (year, day.0, day.1)))
}

/// Year, month and day of the time at the front, and the rest.
fn time(input: &[u8]) -> Option<(u64, (u64, u64), &[u8])> {
    let (tag, text, rest) = der(input)?;
    let digits = text.strip_suffix(b"Z")?;
    let short = match (tag, digits.len()) {
        (0x17, 12) => true,
        (0x18, 14) => false,
        _ => return None,
    };
    let number = decimal(digits)?;
    let pair = |n: u32| number / 100u64.pow(n) % 100;
    let year = number / 10_000_000_000;
    let year = match year {
        _ if !short => year,
        50.. => 1900 + year,
        _ => 2000 + year,
    };
    let fine = (1..13).contains(&pair(4)) && (1..32).contains(&pair(3));
    let fine = fine && pair(2) < 24 && pair(1) < 60 && pair(0) < 60;
    fine.then_some((year, (pair(4), pair(3)), rest))
}
