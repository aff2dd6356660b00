//! Chunked bodies: finding the data in chunks of one byte and of many.

use std::hint::black_box;

use codex_responses_api_proxy::http1::chunked::ChunkScanner;
use criterion::{BenchmarkId, Criterion, Throughput};

mod common;

fn chunked(c: &mut Criterion) {
    let mut group = c.benchmark_group("chunked");
    for size in [1, 16, 256, 4_096, 65_536] {
        let body = common::chunked(size, 262_144 / size);
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_with_input(BenchmarkId::from_parameter(size), &body, |b, body| {
            b.iter(|| {
                let mut scanner = ChunkScanner::default();
                let (mut at, mut data) = (0, 0);
                loop {
                    let step = scanner.step(&black_box(body)[at..]).expect("a sound body");
                    at += step.framing + step.data;
                    data += step.data;
                    if step.end {
                        break;
                    }
                }
                assert_eq!((data, at), (262_144, body.len()));
            });
        });
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    chunked(&mut criterion);
    criterion.final_summary();
}
