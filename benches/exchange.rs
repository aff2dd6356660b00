//! A whole exchange through the state machine, without a socket: a Codex request of 1.5 KB with 2
//! KiB of body, and a response of 400 events.

use std::hint::black_box;

use codex_responses_api_proxy::http1::exchange::{Exchange, RequestStep, ResponseStep};
use codex_responses_api_proxy::http1::gather::GatherList;
use codex_responses_api_proxy::http1::request::{Policy, RequestContext};
use criterion::{Criterion, Throughput};

mod common;

const EVENTS: usize = 400;

fn exchange(c: &mut Criterion) {
    let request = [common::codex_head(1_500), vec![b'j'; 2_048]].concat();
    let head = common::answer_head();
    let event = [b"c8\r\n".to_vec(), vec![b'e'; 200], b"\r\n".to_vec()].concat();
    let mut list = GatherList::default();
    let mut group = c.benchmark_group("exchange");
    group.throughput(Throughput::Elements(1));
    group.bench_function("400 events", |b| {
        b.iter(|| {
            let mut exchange = Exchange::new(Policy::default());
            list.clear();
            let (used, step) = exchange.receive_request(
                black_box(&request),
                &RequestContext::ready(true),
                &mut list,
            );
            assert_eq!((used, step), (request.len(), RequestStep::Forward));
            let mut answer = |bytes: &[u8]| {
                list.clear();
                let (used, step) =
                    exchange.receive_response(black_box(bytes), &mut list, &mut |_| false);
                assert_eq!((used, step), (bytes.len(), ResponseStep::Forward));
            };
            answer(&head);
            (0..EVENTS).for_each(|_| answer(&event));
            answer(b"0\r\n\r\n");
            assert!(exchange.is_upstream_reusable());
            assert_eq!(exchange.bytes_out, 200 * EVENTS as u64);
        });
    });
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    exchange(&mut criterion);
    criterion.final_summary();
}
