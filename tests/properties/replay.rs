//! The fuzz targets' properties on stable Rust: every seed, every input that ever failed, and some
//! thousand mutations of them, always the same ones.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use super::inputs as properties;

/// Mutations of each seed.
const MUTATIONS: usize = 60;

fn inputs(folder: &str, target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(folder).join(target);
    let mut files: Vec<_> = fs::read_dir(folder)
        .map(|entries| entries.map(|entry| entry.unwrap().path()).collect())
        .unwrap_or_default();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// Xorshift, so that a failure comes again.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }
}

fn mutated(seed: &[u8], seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    const WORDS: [&[u8]; 14] = [
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b":",
        b"Content-Length: 1\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Authorization: x\r\n",
        b"Connection: host\r\n",
        b"API-Key: x\r\n",
        b"eyJhbGciOiJIUzI1NiJ9.",
        b"0\r\n\r\n",
        b";",
    ];
    let mut bytes = seed.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        match random.below(5) {
            0 => drop(bytes.splice(at..at, WORDS[random.below(WORDS.len())].iter().copied())),
            1 if at < bytes.len() => bytes[at] = random.below(256) as u8,
            2 if at < bytes.len() => drop(bytes.remove(at)),
            3 => bytes.truncate(at),
            _ => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len());
                bytes.splice(at..at, other[from..].iter().copied());
            }
        }
    }
    bytes
}

#[test]
fn every_seed_and_every_regression_holds() {
    for (target, property) in properties::ALL {
        let seeds = inputs("seeds", target);
        assert!(seeds.len() >= 5, "{target} has {} seeds", seeds.len());
        for input in seeds.iter().chain(&inputs("regressions", target)) {
            let held = catch_unwind(AssertUnwindSafe(|| property(input)));
            assert!(held.is_ok(), "{target}: {}", input.escape_ascii());
        }
    }
}

#[test]
fn mutations_of_the_seeds_hold() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for (target, property) in properties::ALL {
        let seeds = inputs("seeds", target);
        for seed in &seeds {
            for _ in 0..MUTATIONS {
                let input = mutated(seed, &seeds, &mut random);
                let held = catch_unwind(AssertUnwindSafe(|| property(&input)));
                assert!(held.is_ok(), "{target}: {}", input.escape_ascii());
            }
        }
    }
}

#[test]
fn each_field_that_ends_here_is_in_a_seed() {
    let seeds = inputs("seeds", "exchange");
    let has = |seed: &Vec<u8>, name: &str| {
        let mut lines = seed.split(|byte| *byte == b'\n');
        let line = format!("{name}:");
        lines.any(|text| {
            text.get(..line.len()).is_some_and(|start| start.eq_ignore_ascii_case(line.as_bytes()))
        })
    };
    for name in properties::exchange::HOP_BY_HOP.iter().chain(&properties::exchange::WITHHELD) {
        assert!(seeds.iter().any(|seed| has(seed, name)), "no seed of exchange has {name}");
    }
}
