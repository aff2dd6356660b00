//! Tests how upstream connections end: with close_notify, and without a port in TIME_WAIT.

use std::fs;
use std::io::Read;

use super::support::{Client, Gate, Peer, Relay, Upstream, ok, post, wait_for};

/// Sockets that wait in TIME_WAIT for what may still come from this port. It may have belonged to
/// somebody else a moment ago: only those that come on top count.
fn waiting(upstream: &Upstream) -> usize {
    let end = format!(":{:04X}", upstream.port);
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row.len() > 3 && row[2].ends_with(&end) && row[3] == "06").count()
}

/// The relay has read all that this client has sent.
fn has_read(relay: &Relay, client: &Client) -> bool {
    let ends = [relay.port, client.stream.local_addr().unwrap().port()];
    let [local, remote] = ends.map(|port| format!(":{port:04X}"));
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let mut rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let row = rows.find(|row| row[1].ends_with(&local) && row[2].ends_with(&remote)).unwrap();
    row[4].ends_with(":00000000")
}

/// How a read ended, from the upstream's side.
fn end(peer: &mut Peer) -> String {
    let mut rest = [0; 4096];
    loop {
        match peer.read(&mut rest) {
            Ok(0) => return "orderly".into(),
            Ok(_) => {}
            Err(error) => return error.kind().to_string(),
        }
    }
}

/// An upstream that reads a request, says this and tells how the connection ended.
fn telling(tls: bool, says: &'static str) -> (Upstream, Gate<String>) {
    let (upstream, _, told) = telling_of_both(tls, says);
    (upstream, told)
}

/// The same; before that, it tells that the connection is usable.
fn telling_of_both(tls: bool, says: &'static str) -> (Upstream, Gate, Gate<String>) {
    let (begin, begun) = Gate::pair();
    let (tell, told) = Gate::pair();
    let script = move |peer: &mut Peer| {
        begin.signal();
        if peer.request().is_some() {
            peer.write(says);
        }
        let end = end(peer);
        tell.pass(end);
    };
    (if tls { Upstream::tls(script) } else { Upstream::plain(script) }, begun, told)
}

/// The head of a response and the first bytes of its body.
const BEGUN: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha";

#[test]
fn a_cancelled_exchange_leaves_no_port_in_time_wait() {
    for tls in [false, true] {
        let (upstream, told) = telling(tls, BEGUN);
        let before = waiting(&upstream);
        let relay = Relay::to(&upstream.url()).start();
        for _ in 0..20 {
            let mut client = relay.connect();
            client.send(post("", "{}"));
            client.head();
            assert_eq!(client.take(2), b"ha");
            drop(client);
            // Before the reset comes close_notify, so TLS knows that this is no attack.
            let want = if tls { "orderly" } else { "connection reset" };
            assert_eq!(told.wait(), want);
        }
        assert!(waiting(&upstream) <= before, "tls: {tls}");
    }
}

#[test]
fn a_client_that_leaves_while_its_connection_is_being_made_leaves_no_port_in_time_wait() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let upstream = Upstream::on(listener, None, |peer| drop(end(peer)));
    let before = waiting(&upstream);
    let relay = Relay::to(&format!("https://localhost:{port}/")).start();
    let clients = [(); 3].map(|()| {
        let mut client = relay.connect();
        client.send(post("", "{}"));
        // Once it has been read it waits for the connection.
        wait_for(|| has_read(&relay, &client));
        client
    });
    // One of their connections is kept.
    drop(clients);
    // Each was in the middle of a handshake that its upstream did not take part in.
    assert_eq!(relay.connect().send("GET / HTTP/1.1\r\n\r\n").response().status, 400);
    wait_for(|| waiting(&upstream) <= before);
}

#[test]
fn a_response_before_the_end_of_the_request_leaves_no_port_in_time_wait() {
    let (tell, told) = Gate::pair();
    let upstream = Upstream::plain(move |peer| {
        peer.head();
        peer.write("HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno");
        let end = end(peer);
        tell.pass(end);
    });
    let before = waiting(&upstream);
    let relay = Relay::to(&upstream.url()).start();
    for _ in 0..5 {
        let mut client = relay.connect();
        client.send("POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{");
        assert_eq!(client.response().status, 413);
        assert_eq!(told.wait(), "connection reset");
    }
    assert!(waiting(&upstream) <= before);
}

#[test]
fn a_timeout_of_the_upstream_leaves_no_port_in_time_wait() {
    let (upstream, told) = telling(true, "");
    let before = waiting(&upstream);
    let relay = Relay::to(&upstream.url()).args(["--upstream-timeout", "1"]).start();
    let response = relay.connect().send(post("", "{}")).response();
    assert_eq!(response.code(), "upstream_timeout");
    assert_eq!(told.wait(), "orderly");
    assert!(waiting(&upstream) <= before);
}

#[test]
fn close_notify_is_sent_when_the_relay_ends() {
    // One connection is idle, one has an exchange on it, one is unowned.
    for signals in [&[libc::SIGTERM][..], &[libc::SIGTERM, libc::SIGINT]] {
        let (upstream, begun, told) = telling_of_both(true, BEGUN);
        let mut relay = Relay::to(&upstream.url()).start();
        let mut client = relay.connect();
        client.send(post("", "{}"));
        client.head();
        let _other = relay.connect();
        (0..2).for_each(|_| begun.wait());
        for signal in signals {
            relay.signal(*signal);
        }
        relay.wait();
        for _ in 0..2 {
            assert_eq!(told.wait(), "orderly", "{signals:?}");
        }
    }
    let (upstream, told) = telling(true, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nha");
    let mut relay = Relay::to(&upstream.url()).start();
    assert_eq!(relay.connect().send(post("", "{}")).response().status, 200);
    relay.signal(libc::SIGTERM);
    relay.wait();
    assert_eq!(told.wait(), "orderly");
}

#[test]
fn close_notify_answers_the_upstreams() {
    let (tell, told) = Gate::pair();
    let upstream = Upstream::tls(move |peer| {
        peer.request();
        peer.write(ok("fine"));
        peer.close();
        let end = end(peer);
        tell.pass(end);
    });
    let relay = Relay::to(&upstream.url()).start();
    assert_eq!(relay.connect().send(post("", "{}")).response().status, 200);
    assert_eq!(told.wait(), "orderly");
}
