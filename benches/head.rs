//! Heads: the cost of parsing, checking and rewriting a request of the Codex CLI.

use std::hint::black_box;

use codex_responses_api_proxy::http1::gather::GatherList;
use codex_responses_api_proxy::http1::head::{self, ScanProgress};
use codex_responses_api_proxy::http1::request::{self, Policy, RequestContext};
use criterion::{Criterion, Throughput};

mod common;

fn heads(c: &mut Criterion) {
    let head = common::codex_head(1_500);
    let mut group = c.benchmark_group("head");
    group.throughput(Throughput::Bytes(head.len() as u64));
    group.bench_function("read", |b| {
        b.iter(|| {
            let read =
                head::request(black_box(&head), &mut ScanProgress::default(), |head| Ok(head.len));
            assert_eq!(read, Ok(Some(head.len())));
        });
    });
    let mut list = GatherList::default();
    group.bench_function("read and write again", |b| {
        b.iter(|| {
            list.clear();
            let judged = head::request(black_box(&head), &mut ScanProgress::default(), |head| {
                request::judge(&head, Policy::default(), &RequestContext::ready(true), &mut list)
            });
            assert!(judged.is_ok_and(|r| r.is_some_and(|r| r.verdict.is_ok())));
            assert!(list.has_credential());
        });
    });
    let answer = common::answer_head();
    group.throughput(Throughput::Bytes(answer.len() as u64));
    group.bench_function("read an answer's", |b| {
        b.iter(|| {
            let read = head::response(black_box(&answer), &mut ScanProgress::default(), |head| {
                Ok(head.status)
            });
            assert!(read.is_ok_and(|status| status == Some(200)));
        });
    });
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    heads(&mut criterion);
    criterion.final_summary();
}
