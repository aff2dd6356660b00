//! End to end: the real program between a client and a TLS upstream in this process, over loopback.
//! Measures the cost of all three on one machine; `benches/peers` compares the relay's own share.

use std::io::Read;

use criterion::{Criterion, Throughput};

#[allow(dead_code, unused_imports)]
#[path = "../tests/support/mod.rs"]
mod support;

use support::{Relay, Upstream, ok, post};

const STREAM: usize = 64 << 20;

fn relay(c: &mut Criterion) {
    let upstream = Upstream::answering(ok(&"a".repeat(1_024)));
    let relay = Relay::to(&upstream.url()).start();
    let mut client = relay.connect();
    let request = post("", &"j".repeat(2_048));
    let mut group = c.benchmark_group("relay");
    group.throughput(Throughput::Elements(1));
    group.bench_function("request", |b| {
        b.iter(|| {
            let answer = client.send(&request).response();
            assert_eq!((answer.status, answer.body.len()), (200, 1_024));
        });
    });

    let upstream = Upstream::tls(|peer| {
        let piece = vec![b'd'; 1 << 20];
        while peer.request().is_some() {
            peer.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {STREAM}\r\n\r\n"));
            (0..STREAM >> 20).for_each(|_| peer.write(&piece));
        }
    });
    let relay = Relay::to(&upstream.url()).start();
    let mut client = relay.connect();
    let mut buffer = vec![0; 1 << 18];
    group.sample_size(10).throughput(Throughput::Bytes(STREAM as u64));
    group.bench_function("64 MiB answer", |b| {
        b.iter(|| {
            assert!(client.send(&request).head().starts_with("HTTP/1.1 200 OK\r\n"));
            let mut left = STREAM - std::mem::take(&mut client.buffer).len();
            while left > 0 {
                let n = client.stream.read(&mut buffer).expect("the answer");
                assert!(n > 0, "the answer was cut off");
                left -= n;
            }
        });
    });
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    relay(&mut criterion);
    criterion.final_summary();
}
