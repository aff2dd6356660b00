//! Searches the memory of a process for a secret, as an attacker with root would.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

/// The shortest piece of the secret that counts as found, in bytes.
pub const PIECE: usize = 12;
const PAGE: u64 = 4096;
const BLOCK: u64 = 1 << 16;

/// A place that contains the secret or a piece of it.
#[derive(Debug)]
pub struct Hit {
    /// The mapping as `/proc/PID/maps` names it, or `environ` or `cmdline`.
    pub place: String,
    /// The address in the process.
    pub address: u64,
    /// The length of the piece in bytes.
    pub length: usize,
    /// `plain` or `base64`.
    pub form: &'static str,
    /// The place is part of a file that is mapped for reading only.
    pub is_of_file: bool,
}

/// The result of a scan.
#[derive(Debug, Default)]
pub struct Scan {
    pub hits: Vec<Hit>,
    /// The number of bytes read.
    pub bytes: u64,
    /// The number of bytes that the kernel did not let the scan read.
    pub refused: u64,
}

/// The content of blocks without a hit, by address. A scan skips a block that has not changed.
#[derive(Default)]
pub struct Clean(HashMap<u64, Vec<u8>>);

/// The texts to search for, indexed by each word of four bytes in them. The scan looks only at
/// words at multiples of four: every piece of [`PIECE`] bytes contains one.
pub struct Needles {
    texts: Vec<(&'static str, Vec<u8>)>,
    words: HashMap<[u8; 4], Vec<(usize, usize)>>,
    /// Whether some word begins with these two bytes, by their number.
    starts: Vec<bool>,
}

impl Needles {
    /// Searches for the secret itself, and for its base64 at each of the three alignments.
    pub fn new(secret: &[u8]) -> Needles {
        let mut texts = vec![("plain", secret.to_vec())];
        texts.extend((0..3).map(|shift| ("base64", base64(secret, shift))));
        let mut words: HashMap<[u8; 4], Vec<(usize, usize)>> = HashMap::new();
        let mut starts = vec![false; 1 << 16];
        for (index, (_, text)) in texts.iter().enumerate() {
            for (at, word) in text.windows(4).enumerate() {
                let word = [word[0], word[1], word[2], word[3]];
                words.entry(word).or_default().push((index, at));
                starts[usize::from(u16::from_le_bytes([word[0], word[1]]))] = true;
            }
        }
        Needles { texts, words, starts }
    }

    /// Calls `found` once for each run of [`PIECE`] bytes or more of a text, with its start, its
    /// length and its form.
    pub fn find(&self, bytes: &[u8], mut found: impl FnMut(usize, usize, &'static str)) {
        let mut behind = 0;
        for (index, word) in bytes.as_chunks::<4>().0.iter().enumerate() {
            let at = index * 4;
            if !self.starts[usize::from(u16::from_le_bytes([word[0], word[1]]))] || at < behind {
                continue;
            }
            for (text, offset) in self.words.get(word).into_iter().flatten() {
                let (form, text) = &self.texts[*text];
                let back = (0..=*offset.min(&at))
                    .take_while(|n| bytes[at - n] == text[offset - n])
                    .count()
                    - 1;
                let start = at - back;
                let pairs = bytes[start..].iter().zip(&text[offset - back..]);
                let length = pairs.take_while(|(x, y)| x == y).count();
                if length >= PIECE {
                    behind = start + length;
                    found(start, length, form);
                    break;
                }
            }
        }
    }
}

/// The base64 characters of the secret after `shift` unknown bytes, without the characters at both
/// ends that depend on other bytes too.
fn base64(secret: &[u8], shift: usize) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes = [&vec![0; shift], secret].concat();
    let characters = bytes.len() * 8 / 6;
    let first = (shift * 8).div_ceil(6);
    let bit = |at: usize| bytes[at / 8] >> (7 - at % 8) & 1;
    (first..characters)
        .map(|n| DIGITS[(0..6).fold(0, |digit, i| digit << 1 | usize::from(bit(n * 6 + i)))])
        .collect()
}

/// Searches every readable mapping of a process, its arguments and its environment.
#[allow(dead_code, reason = "not every crate that has this file scans once")]
pub fn scan(pid: u32, needles: &Needles) -> io::Result<Scan> {
    scan_again(pid, needles, &mut Clean::default())
}

/// As [`scan`], but skips the blocks of `clean`, which must be from earlier scans of this process.
pub fn scan_again(pid: u32, needles: &Needles, clean: &mut Clean) -> io::Result<Scan> {
    let mut scan = Scan::default();
    for name in ["cmdline", "environ"] {
        let bytes = fs::read(format!("/proc/{pid}/{name}"))?;
        needles.find(&bytes, |at, length, form| {
            let (place, address) = (name.into(), at as u64);
            scan.hits.push(Hit { place, address, length, form, is_of_file: false });
        });
    }
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let mut block = vec![0; BLOCK as usize];
    for line in fs::read_to_string(format!("/proc/{pid}/maps"))?.lines() {
        let mut words = line.split_whitespace();
        let (Some(span), Some(rights)) = (words.next(), words.next()) else {
            continue;
        };
        let Some((start, end)) = span.split_once('-') else {
            continue;
        };
        let number = |text| u64::from_str_radix(text, 16).map_err(io::Error::other);
        let (mut at, end) = (number(start)?, number(end)?);
        if !rights.starts_with('r') || line.ends_with("[vvar]") || line.ends_with("[vsyscall]") {
            continue;
        }
        while at < end {
            let want = (end - at).min(BLOCK) as usize;
            let got = match memory.read_at(&mut block[..want], at) {
                Ok(got) if got > 0 => got,
                _ => {
                    scan.refused += PAGE;
                    at += PAGE;
                    continue;
                }
            };
            scan.bytes += got as u64;
            // Blocks overlap by a page, so a piece across two blocks is found in the second.
            let overlap = if got == want && at + (got as u64) < end { PAGE } else { 0 };
            let block_at = at;
            at += got as u64 - overlap;
            if clean.0.get(&block_at).is_some_and(|before| *before == block[..got]) {
                continue;
            }
            let known = scan.hits.len();
            needles.find(&block[..got], |offset, length, form| {
                let place = words.clone().nth(3).unwrap_or("anonymous memory").to_owned();
                let address = block_at + offset as u64;
                // A deleted or shared file may be memory (memfd) and not a file on a disk.
                let is_of_file = !rights.contains('w')
                    && rights.ends_with('p')
                    && place.starts_with('/')
                    && !line.ends_with("(deleted)");
                scan.hits.push(Hit { place, address, length, form, is_of_file });
            });
            if scan.hits.len() == known {
                clean.0.insert(block_at, block[..got].to_vec());
            }
        }
    }
    Ok(scan)
}
