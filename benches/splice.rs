//! The key's part: copying the block and the bytes after it into one slice, and searching responses
//! for the key.

use std::hint::black_box;
use std::io::{self, IoSlice, Write};

use codex_responses_api_proxy::process::credential::{Credential, KeyForm, SearchPosition};
use codex_responses_api_proxy::process::key_ring::KeyRing;
use criterion::{BenchmarkId, Criterion, Throughput};

mod common;

/// A key with the length of a project's key.
const KEY: &[u8] =
    b"sk-proj-Qx7fK2mN9vB4cZ1aLw8eRt5yU3iO6pS0dHgJkXbVnMqWzTyRuEoPaIsDfGlCh2Kj8Zx4Cv6Bn1Mm3Qw5\
    Er7Ty9UuIoPpAaSsDdFfGgHhJjKkLlZzXxCcVvBbNn0Mq2We4Rt6Yu8Io1Pa3Sd5Fg7H\n";

/// Replaces the encryption of a record: the bytes are only read.
struct Sink(usize);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = black_box(bytes).len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn credential() -> Credential {
    let prefix = b"POST /v1/responses HTTP/1.1\r\nHost: api.openai.com\r\nAuthorization: Bearer ";
    let mut rest = KEY;
    match Credential::read(prefix, KeyForm::Word, |buffer| io::Read::read(&mut rest, buffer)) {
        Ok(credential) => credential,
        Err(error) => panic!("{error}"),
    }
}

fn splice(c: &mut Criterion) {
    let mut credential = credential();
    let fields = common::codex_head(1_500);
    let mut group = c.benchmark_group("splice");
    for body in [0, 2_048, 16_384] {
        let body = vec![b'j'; body];
        let after = [IoSlice::new(&fields), IoSlice::new(&body)];
        group.throughput(Throughput::Elements(1));
        group.bench_with_input(BenchmarkId::new("record", body.len()), &after, |b, after| {
            b.iter(|| {
                let mut sink = Sink(0);
                let taken = credential.splice_into(black_box(after), &mut sink).expect("taken");
                assert!(taken > 0 && taken < sink.0);
            });
        });
    }
    group.finish();

    let mut keys = KeyRing::fixed(credential);
    let mut group = c.benchmark_group("reflected");
    for size in [200, 16_384] {
        let mut state = 1_u64;
        let mut letter = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
                [(state >> 58) as usize]
        };
        let text: Vec<u8> = (0..size).map(|_| letter()).collect();
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_with_input(BenchmarkId::from_parameter(size), &text, |b, text| {
            let mut position = SearchPosition::default();
            b.iter(|| assert!(!keys.reflected(&mut position, black_box(text))));
        });
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    splice(&mut criterion);
    criterion.final_summary();
}
