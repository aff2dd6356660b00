//! What the loop's thread asks of the allocator for each request once it is warm, counted in this
//! process: the loop runs on a thread of its own, between a client and an upstream on others.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;

use codex_responses_api_proxy::cli::{self, Command};
use codex_responses_api_proxy::connector;
use codex_responses_api_proxy::connector::wire::ConnectorConfig;
use codex_responses_api_proxy::http1::request::Policy;
use codex_responses_api_proxy::net::event_loop::{EventLoop, LoopSetup};
use codex_responses_api_proxy::net::report::Form;
use codex_responses_api_proxy::net::settings::Settings;
use codex_responses_api_proxy::net::tls::{Recording, RootStore, TlsConnector};
use codex_responses_api_proxy::process::confine::Sandbox;
use codex_responses_api_proxy::process::credential::{Credential, KeyForm};
use codex_responses_api_proxy::process::key_ring::KeyRing;
use codex_responses_api_proxy::process::signals::{SessionOrigin, Signals};
use codex_responses_api_proxy::process::upstream_users::Reach;

#[path = "../benches/common/mod.rs"]
mod common;
#[allow(dead_code, unused_imports)]
mod support;

use support::{Client, Upstream, certs};

struct Counting;

thread_local! {
    static WATCHED: Cell<bool> = const { Cell::new(false) };
}
static COUNT: AtomicUsize = AtomicUsize::new(0);
/// Bytes asked for by each of the first calls since the count was set to zero.
static SIZES: [AtomicUsize; 32] = [const { AtomicUsize::new(0) }; 32];

fn note(size: usize) {
    if WATCHED.get() {
        let n = COUNT.fetch_add(1, SeqCst);
        if let Some(place) = SIZES.get(n) {
            place.store(size, SeqCst);
        }
    }
}

// SAFETY: everything is done by the system's allocator; counting touches no memory of its own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: passed on as it came.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: passed on as it came.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: passed on as it came.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: passed on as it came.
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The loop on a thread whose allocations count; returns its port.
fn start(upstream: &Upstream) -> u16 {
    let url = upstream.url();
    let Ok(Command::Run(config)) = cli::parse(["--upstream-url", &url].map(Into::into), |_| None)
    else {
        panic!("flags");
    };
    let mut roots = RootStore::built_in(&config.upstream.host);
    roots.add(certs().ca_file().as_ref()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let for_connector = ConnectorConfig {
        host: config.upstream.host.clone(),
        port: config.upstream.port,
        user: None,
        reach: Reach::Anywhere,
    };
    let Ok(connector) = connector::fork(false).unwrap().configure(&for_connector) else {
        panic!("no connector")
    };
    let link = connector.link();
    assert!(connector::report(&link).is_ok(), "no connector");
    thread::spawn(move || {
        let mut key = &b"sk-a-key-that-is-used-in-this-test-alone\n"[..];
        let read = |buffer: &mut [u8]| std::io::Read::read(&mut key, buffer);
        let event_loop = EventLoop::new(LoopSetup {
            listeners: vec![listener],
            notifier: Default::default(),
            signals: Signals::take_over(SessionOrigin::Own).unwrap(),
            server_info: None,
            keys: Credential::read(
                b"POST / HTTP/1.1\r\nAuthorization: Bearer ",
                KeyForm::Word,
                read,
            )
            .map(KeyRing::fixed)
            .unwrap_or_else(|_| panic!("the key")),
            key_input: None,
            tls: TlsConnector::new(roots, Recording::Off).ok().map(|(connector, _)| connector),
            link,
            proxy: None,
            upstream_users: None,
            policy: Policy::default(),
            settings: Settings { max_connections: 8, ..config.settings },
            form: Form::Text,
            allowed_users: None,
            client_token: None,
            sandbox: Sandbox::off(),
        });
        WATCHED.set(true);
        event_loop.unwrap().run()
    });
    port
}

#[test]
fn a_request_allocates_only_what_rustls_does() {
    const REQUESTS: usize = 1_000;
    let head = String::from_utf8(common::answer_head()).unwrap();
    let head = head.replace("Transfer-Encoding: chunked", "Content-Length: 1024");
    let upstream = Upstream::answering(head + &"a".repeat(1_024));
    let mut client = Client::connect(start(&upstream));
    let request = [common::codex_head(1_500), vec![b'j'; 2_048]].concat();
    let mut ask = || assert_eq!(client.send(&request).response().status, 200);
    (0..100).for_each(|_| ask());
    COUNT.store(0, SeqCst);
    (0..REQUESTS).for_each(|_| ask());
    let count = COUNT.load(SeqCst);
    let sizes: Vec<usize> = SIZES.iter().map(|size| size.load(SeqCst)).collect();
    println!("{} allocations for a request", count as f64 / REQUESTS as f64);
    // One for the record that is sealed, one for the plaintext of the record that is opened.
    assert!(count <= 2 * REQUESTS, "{count} for {REQUESTS} requests; sizes {sizes:?}");
}
