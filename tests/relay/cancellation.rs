//! Tests how the relay handles a request whose client leaves.

use std::io::Read;
use std::time::{Duration, Instant};

use super::support::{Client, End, Gate, Peer, Relay, Upstream, ok, post, reset_now};

/// At once, on a busy machine too: an exchange that is not cancelled goes on without end.
const SOON: Duration = Duration::from_secs(5);

const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

/// How a client leaves.
#[derive(Clone, Copy, Debug)]
enum Leaves {
    Closes,
    ShutsDown,
    Resets,
}

const EACH_WAY: [Leaves; 3] = [Leaves::Closes, Leaves::ShutsDown, Leaves::Resets];

/// With a shutdown alone the client still listens: it is returned.
fn leave(mut client: Client, leaves: Leaves) -> Option<Client> {
    match leaves {
        Leaves::Closes => {
            client.finish_first();
            None
        }
        Leaves::Resets => {
            reset_now(&client.stream);
            None
        }
        Leaves::ShutsDown => {
            client.finish_first();
            Some(client)
        }
    }
}

/// The client leaves, and if it still listens it is told nothing but the end.
fn leave_and_hear_the_end(client: Client, leaves: Leaves) {
    if let Some(mut client) = leave(client, leaves) {
        let (got, end) = client.rest();
        assert!(got.is_empty() && end != End::Open);
    }
}

#[test]
fn a_request_of_a_client_that_is_known_to_have_left_is_not_sent() {
    for upstream in [Upstream::plain(respond), Upstream::tls(respond)] {
        let relay = Relay::to(&upstream.url()).start();
        let mut before = 0;
        for leaves in EACH_WAY {
            // With an idle upstream connection to send on, and with none.
            for n in 0..5 {
                let mut client = relay.connect();
                assert_eq!(client.send(post("", "{}")).response().status, 200);
                before += 1;
                relay.stop();
                client.send(post("", &format!("{leaves:?} {n}")));
                let kept = leave(client, leaves);
                relay.signal(libc::SIGCONT);
                if let Some(mut kept) = kept {
                    kept.expect_end(End::Reset);
                }
            }
        }
        // The relay handles events in order: when this response is here, the requests above are over.
        assert_eq!(relay.connect().send(post("", "{}")).response().status, 200);
        let bodies = upstream.requests().into_iter().map(|request| request.body);
        let (served, left): (Vec<_>, Vec<_>) = bodies.partition(|body| body == b"{}");
        let left: Vec<_> = left.into_iter().map(String::from_utf8).collect();
        assert_eq!((left, served.len()), (Vec::new(), before + 1));
    }
}

#[test]
fn a_refusal_reaches_a_client_that_has_shut_down_its_side() {
    let relay = Relay::bare().start();
    let mut client = relay.connect();
    relay.stop();
    client.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").finish();
    relay.signal(libc::SIGCONT);
    assert_eq!(client.response().code(), "route_not_allowed");
}

fn respond(peer: &mut Peer) {
    while peer.request().is_some() {
        peer.write(ok("fine"));
    }
}

/// At which point the client leaves.
#[derive(Clone, Copy, Debug)]
enum Point {
    Waiting,
    Streaming,
    Uploading,
}

#[test]
fn a_client_that_leaves_cancels_the_upstream_exchange_at_once() {
    for point in [Point::Waiting, Point::Streaming, Point::Uploading] {
        let [(begin, begun), (cancel, cancelled)] = [Gate::pair(), Gate::pair()];
        let upstream = Upstream::tls(move |peer| {
            match point {
                Point::Uploading => drop((peer.head().unwrap(), peer.take(5))),
                Point::Waiting | Point::Streaming => drop(peer.request().unwrap()),
            }
            if let Point::Streaming = point {
                peer.write(format!("{CHUNKED}5\r\nhello\r\n"));
            }
            begin.signal();
            peer.closed();
            cancel.signal();
        });
        let relay = Relay::to(&upstream.url()).start();
        for leaves in EACH_WAY {
            let mut client = relay.connect();
            match point {
                Point::Uploading => client.send(
                    "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nfirst",
                ),
                Point::Waiting | Point::Streaming => client.send(post("", "{}")),
            };
            begun.wait();
            if let Point::Streaming = point {
                client.head();
                assert_eq!(client.take(10), b"5\r\nhello\r\n");
            }
            let start = Instant::now();
            leave_and_hear_the_end(client, leaves);
            cancelled.wait();
            assert!(start.elapsed() < SOON, "{point:?}, {leaves:?}");
        }
    }
}

#[test]
fn of_two_clients_that_leave_while_the_upstream_is_being_connected_one_ends_that() {
    for leaves in EACH_WAY {
        let [(begin, begun), (cancel, cancelled)] = [Gate::pair(), Gate::pair()];
        // It accepts and never speaks TLS.
        let upstream = Upstream::plain(move |peer| {
            let mut hello = [0; 16];
            assert!(peer.read(&mut hello).is_ok_and(|n| n > 0));
            begin.signal();
            peer.closed();
            cancel.signal();
        });
        let relay = Relay::to(&format!("https://localhost:{}/", upstream.port)).start();
        let clients = ["first", "second"].map(|_| {
            let mut client = relay.connect();
            client.send(post("", "{}"));
            begun.wait();
            client
        });
        // The first one's connection is kept for the next request.
        let start = Instant::now();
        clients.into_iter().for_each(|client| leave_and_hear_the_end(client, leaves));
        cancelled.wait();
        assert!(start.elapsed() < SOON, "{leaves:?}");
        let second = cancelled.wait_within(Duration::from_millis(100));
        assert_eq!(second, None, "{leaves:?}: none is kept");
    }
}

#[test]
fn a_client_that_leaves_while_it_reads_slowly_cancels_too() {
    let [(begin, begun), (cancel, cancelled)] = [Gate::pair(), Gate::pair()];
    let upstream = Upstream::tls(move |peer| {
        peer.request().unwrap();
        peer.write("HTTP/1.1 200 OK\r\n\r\n");
        begin.signal();
        // Without end: only the relay's leaving stops it.
        while peer.try_write([b'x'; 16_384]) {}
        cancel.signal();
    });
    let relay = Relay::to(&upstream.url()).start();
    for leaves in [Leaves::Closes, Leaves::Resets] {
        let mut client = relay.connect();
        client.send(post("", "{}")).head();
        begun.wait();
        let start = Instant::now();
        leave_and_hear_the_end(client, leaves);
        cancelled.wait();
        assert!(start.elapsed() < SOON, "{leaves:?}");
    }
}
