//! A parser of its own, as plain and strict as can be: nothing of it is shared with the relay.

/// Name and value, white space around the value gone.
pub type Field = (Vec<u8>, Vec<u8>);

#[derive(Debug)]
pub enum Parsed {
    /// A sound head: its start line, its fields, the bytes it takes.
    Good {
        line: Vec<u8>,
        fields: Vec<Field>,
        len: usize,
    },
    Partial,
    Bad,
}

/// Reads a head; one empty line may stand before it.
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

/// Digits alone, at most 20 of them, below 2^64.
pub fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 20 {
        return None;
    }
    text.iter().try_fold(0u64, |n, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        n.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// Decodes a chunked body: its data, and the bytes it takes if it is whole and sound.
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
