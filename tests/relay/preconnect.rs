//! Tests the preconnect: which clients make the relay begin an upstream connection ahead of a
//! request.

use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use codex_responses_api_proxy::net::timeouts::CONNECT;

use super::support::port::closed_port;
use super::support::{Client, DEADLINE, Gate, Relay, Upstream, comes, ok, post, wait_for};

/// An upstream that signals each connection once its handshake is done, and responds.
fn telling() -> (Upstream, Gate<usize>) {
    let (tell, told) = Gate::pair();
    let upstream = Upstream::tls(move |peer| {
        tell.pass(peer.number);
        while peer.request().is_some() {
            let number = peer.number.to_string();
            peer.write(ok(&number));
        }
    });
    (upstream, told)
}

fn ask(client: &mut Client) -> String {
    String::from_utf8(client.send(post("", "{}")).response().body).unwrap()
}

#[test]
fn the_handshake_is_done_before_the_client_has_said_anything() {
    let (upstream, told) = telling();
    let relay = Relay::to(&upstream.url()).start();
    let mut client = relay.connect();
    assert_eq!(told.wait(), 1);
    assert_eq!(ask(&mut client), "1");
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn at_most_one_connection_is_made_ahead_of_requests() {
    let (upstream, told) = telling();
    let relay = Relay::to(&upstream.url()).start();
    let mut clients: Vec<Client> = (0..20).map(|_| relay.connect()).collect();
    assert_eq!(told.wait(), 1);
    // The requests come one after the other, so one connection is enough.
    for client in &mut clients {
        assert_eq!(ask(client), "1");
    }
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn a_connect_and_a_request_in_one_batch_need_one_connection() {
    for _ in 0..5 {
        let upstream = Upstream::plain(|peer| {
            while peer.request().is_some() {
                let number = peer.number.to_string();
                peer.write(ok(&number));
            }
        });
        let relay = Relay::to(&upstream.url()).start();
        let mut first = relay.connect();
        assert_eq!(ask(&mut first), "1");
        // The relay waits in poll and finds both when it goes on.
        relay.stop();
        let mut second = relay.connect();
        first.send(post("", "{}"));
        relay.signal(libc::SIGCONT);
        assert_eq!(first.response().text(), "1");
        assert_eq!(ask(&mut second), "1");
        // Connections are accepted in order, so the test's own one has the number after the last.
        assert_eq!(ask(&mut Client::connect(upstream.port)), "2");
    }
}

#[test]
fn one_that_has_ended_is_made_again_for_a_client_and_not_before() {
    let (tell, told) = Gate::pair();
    let upstream = Upstream::tls(move |peer| {
        if peer.number == 1 {
            let _ = peer.stream().shutdown(Shutdown::Both);
            tell.pass(peer.number);
            return;
        }
        while peer.request().is_some() {
            peer.write(ok("fresh"));
        }
    });
    let relay = Relay::to(&upstream.url()).start();
    let mut first = relay.connect();
    assert_eq!(told.wait(), 1);
    // The relay has served another route meanwhile, and has had every occasion.
    let refused = first.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").response();
    assert_eq!(refused.status, 403);
    assert_eq!(upstream.connections(), 1);
    assert_eq!(ask(&mut first), "fresh");
    assert_eq!(upstream.connections(), 2);
}

#[test]
fn a_head_that_comes_during_the_handshake_takes_that_connection() {
    let (upstream, _told) = telling();
    // A link that is slow until it is told otherwise.
    let link = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://localhost:{}/v1/responses", link.local_addr().unwrap().port());
    let relay = Relay::to(&url).start();
    let mut client = relay.connect();
    let near = accepted(&link);
    client.send(post("", "{}"));
    carry(&near, &upstream);
    assert_eq!(client.response().status, 200);
    link.set_nonblocking(true).unwrap();
    assert!(link.accept().is_err(), "a second connection");
}

/// The next connection to a link; a link that none comes to must not hold a test up for ever.
fn accepted(link: &TcpListener) -> TcpStream {
    assert!(comes(link, libc::POLLIN, DEADLINE), "no connection comes");
    link.accept().unwrap().0
}

/// Carries what a link has held up to the upstream, and back, from now on.
fn carry(near: &TcpStream, upstream: &Upstream) {
    let far = TcpStream::connect(("127.0.0.1", upstream.port)).unwrap();
    for (mut from, mut to) in [
        (near.try_clone().unwrap(), far.try_clone().unwrap()),
        (far.try_clone().unwrap(), near.try_clone().unwrap()),
    ] {
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Both);
        });
    }
}

/// The relay has done everything that what came before brings about: it serves clients in order.
fn settle(other: &mut Client) {
    let refused = other.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").response();
    assert_eq!(refused.status, 403);
}

/// The client leaves, and whatever comes to the relay later comes behind that.
fn leave(mut client: Client) {
    client.finish_first();
}

/// A client whose request waits for an upstream connection.
fn waiting(relay: &Relay, other: &mut Client) -> Client {
    let mut client = relay.connect();
    client.send(post("", "{}"));
    // It may be accepted in the pass that serves the other, and is read in the next.
    settle(other);
    settle(other);
    client
}

#[test]
fn clients_that_leave_before_the_connection_stands_leave_it_to_the_next() {
    let (upstream, _told) = telling();
    let link = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://localhost:{}/v1/responses", link.local_addr().unwrap().port());
    let relay = Relay::to(&url).start();
    let mut other = relay.connect();
    for _ in 0..20 {
        leave(waiting(&relay, &mut other));
        settle(&mut other);
    }
    let near = accepted(&link);
    let mut client = waiting(&relay, &mut other);
    carry(&near, &upstream);
    assert_eq!(client.response().text(), "1");
    link.set_nonblocking(true).unwrap();
    assert!(link.accept().is_err(), "a second connection");
}

#[test]
fn of_the_connections_that_clients_leave_behind_one_is_kept() {
    const CLIENTS: usize = 5;
    let (upstream, _told) = telling();
    let link = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://localhost:{}/v1/responses", link.local_addr().unwrap().port());
    let relay = Relay::to(&url).start();
    let mut other = relay.connect();
    let clients: Vec<Client> = (0..CLIENTS).map(|_| waiting(&relay, &mut other)).collect();
    let links: Vec<TcpStream> = (0..CLIENTS).map(|_| accepted(&link)).collect();
    clients.into_iter().for_each(leave);
    settle(&mut other);
    let has_ended = |link: &&TcpStream| comes(*link, libc::POLLHUP, Duration::ZERO);
    wait_for(|| links.iter().filter(has_ended).count() >= CLIENTS - 1);
    let mut client = waiting(&relay, &mut other);
    let kept: Vec<&TcpStream> = links.iter().filter(|link| !has_ended(link)).collect();
    let [kept] = kept.as_slice() else { panic!("{} are kept", kept.len()) };
    carry(kept, &upstream);
    assert_eq!(client.response().text(), "1");
}

/// A preconnect without a client must not last for ever: one whose upstream never says a word is
/// given up in time, however many requests have waited for it.
#[test]
fn a_connection_that_clients_leave_is_given_up_in_time() {
    let link = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://localhost:{}/v1/responses", link.local_addr().unwrap().port());
    let relay = Relay::to(&url).start();
    let begun = Instant::now();
    let mut other = relay.connect();
    let first = accepted(&link);
    while !comes(&first, libc::POLLHUP | libc::POLLRDHUP, Duration::from_millis(500)) {
        assert!(begun.elapsed() < DEADLINE, "each departure gives it more time");
        leave(waiting(&relay, &mut other));
    }
    assert!(begun.elapsed() >= CONNECT, "given up after {:?}", begun.elapsed());
}

/// A client that has left is seen to before another one is accepted, whichever event came first:
/// the connection that the one leaves serves the other.
#[test]
fn a_departure_and_a_connect_in_one_batch_need_no_further_connection() {
    let (upstream, _told) = telling();
    for order in [["leaves", "connects"], ["connects", "leaves"]] {
        let link = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://localhost:{}/v1/responses", link.local_addr().unwrap().port());
        let relay = Relay::to(&url).start();
        let mut other = relay.connect();
        let near = accepted(&link);
        let mut leaving = Some(waiting(&relay, &mut other));
        // The relay waits in poll and finds both when it goes on.
        relay.stop();
        let mut next = None;
        for act in order {
            match act {
                "leaves" => leaving.take().into_iter().for_each(leave),
                _ => next = Some(relay.connect()),
            }
        }
        relay.signal(libc::SIGCONT);
        settle(&mut other);
        let is_kept = !comes(&near, libc::POLLHUP, Duration::ZERO);
        assert!(is_kept, "{order:?}: another connection was begun and this one dropped");
        let mut next = next.unwrap();
        next.send(post("", "{}"));
        carry(&near, &upstream);
        assert_eq!(next.response().status, 200);
        link.set_nonblocking(true).unwrap();
        assert!(link.accept().is_err(), "{order:?}: a second connection");
    }
}

#[test]
fn one_that_fails_is_no_one_s_error_until_somebody_asks() {
    let closed = closed_port();
    let mut relay = Relay::to(&format!("https://localhost:{}/v1/responses", closed.port)).start();
    let mut client = relay.connect();
    let refused = client.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").response();
    assert_eq!(refused.status, 403);
    let response = client.send(post("", "{}")).response();
    assert_eq!((response.status, response.code()), (502, "upstream_refused"));
    assert!(relay.is_running());
}

#[test]
fn a_client_who_may_not_use_the_relay_brings_nothing_about() {
    let (upstream, told) = telling();
    let other = "4242";
    let relay = Relay::to(&upstream.url()).args(["--allow-uid", other]).start();
    let mut client = relay.connect();
    assert_eq!(client.send(post("", "{}")).response().status, 403);
    assert_eq!(told.drain(), []);
    assert_eq!(upstream.connections(), 0);

    // Nor does one after the last request that will be forwarded.
    let (upstream, told) = telling();
    let relay = Relay::to(&upstream.url()).args(["--max-requests", "1"]).start();
    let mut client = relay.connect();
    assert_eq!(told.wait(), 1);
    let body = post("Connection: close\r\n", "{}");
    assert_eq!(client.send(body).response().status, 200);
    assert_eq!(relay.connect().send(post("", "{}")).response().status, 429);
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn a_pooled_connection_that_the_upstream_closes_is_not_made_again() {
    let (tell, told) = Gate::pair();
    let upstream = Upstream::tls(move |peer| {
        while peer.request().is_some() {
            peer.write(ok("fine"));
            peer.close();
            peer.closed();
            tell.signal();
        }
    });
    let relay = Relay::to(&upstream.url()).start();
    let mut client = relay.connect();
    assert_eq!(ask(&mut client), "fine");
    // The relay has seen that end and ended its own side.
    told.wait();
    let refused = client.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").response();
    assert_eq!((refused.status, upstream.connections()), (403, 1));
}
