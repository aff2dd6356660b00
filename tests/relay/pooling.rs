//! Which upstream connections are used again, and by whom.

use std::sync::mpsc::channel;

use super::places::{AGENT, OTHER, allowing, connect_as};
use super::support::{Client, DEADLINE, Peer, Relay, Upstream, needs_root, ok, post};

/// An upstream that takes the body of an early answered request for the next request, and answers
/// that one when a further one has come.
fn desynchronised(peer: &mut Peer) {
    while let Some(head) = peer.head() {
        if head.contains("X-Early: 1\r\n") {
            peer.write(ok("early"));
            if peer.head().is_some() && peer.head().is_some() {
                peer.take("{}".len());
                peer.write(ok("smuggled"));
            }
        } else {
            peer.take("{}".len());
            peer.write(ok("fine"));
        }
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_pooled_connection_serves_only_the_user_who_used_it_before() {
    needs_root();
    let upstream = Upstream::plain(desynchronised);
    let relay = Relay::to(&upstream.url()).args(allowing(&[AGENT, OTHER])).start();
    for _ in 0..8 {
        let smuggled = "POST /v1/files HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let mut attacker = connect_as(OTHER, relay.port);
        let early = attacker.send(post("X-Early: 1\r\n", smuggled)).response();
        assert_eq!(early.text(), "early");
        let mut victim = connect_as(AGENT, relay.port);
        for _ in 0..2 {
            assert_eq!(victim.send(post("", "{}")).response().text(), "fine");
        }
        // Had it kept the connection, the attacker would now get what was meant for the victim.
        let own = attacker.send(post("", "{}")).response();
        assert_eq!(own.text(), "smuggled");
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_user_uses_connections_again_and_so_does_anybody_one_that_was_never_used() {
    needs_root();
    let upstream = Upstream::plain(|peer| {
        while peer.request().is_some() {
            let number = peer.number.to_string();
            peer.write(ok(&number));
        }
    });
    let relay = Relay::to(&upstream.url()).args(allowing(&[AGENT, OTHER])).start();
    let ask = |client: &mut Client| client.send(post("", "{}")).response().text().to_owned();
    // Made for the first one who connects, used by the other.
    let mut agent = connect_as(AGENT, relay.port);
    let mut other = connect_as(OTHER, relay.port);
    assert_eq!(ask(&mut other), "1");
    assert_eq!(ask(&mut agent), "2");
    for _ in 0..3 {
        assert_eq!((ask(&mut other), ask(&mut agent)), ("1".into(), "2".into()));
    }
    assert_eq!(ask(&mut connect_as(AGENT, relay.port)), "2");
    assert_eq!(ask(&mut connect_as(OTHER, relay.port)), "1");
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn one_allowed_user_alone_shares_connections_as_ever() {
    needs_root();
    let upstream = Upstream::answering(ok("fine"));
    let relay = Relay::to(&upstream.url()).args(allowing(&[AGENT, AGENT])).start();
    for _ in 0..4 {
        let mut client = connect_as(AGENT, relay.port);
        assert_eq!(client.send(post("", "{}")).response().text(), "fine");
    }
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn a_connection_whose_response_began_before_the_request_had_gone_is_not_used_again() {
    let (tell, begun) = channel();
    let upstream = Upstream::plain(move |peer| {
        while let Some(head) = peer.head() {
            let number = peer.number.to_string();
            if head.contains("X-Early: 1\r\n") {
                // The final response begins; the rest of the body has not come yet.
                peer.write("HTTP/1.1 200 OK\r\nContent-");
                tell.send(()).unwrap();
                peer.take(4);
                peer.write("Length: 1\r\n\r\n");
                peer.write(number);
            } else {
                peer.take(2);
                peer.write(ok(&number));
            }
        }
    });
    let relay = Relay::to(&upstream.url()).start();
    let mut client = relay.connect();
    client.send(post("X-Early: 1\r\n", "1234").trim_end_matches("34"));
    begun.recv_timeout(DEADLINE).unwrap();
    // The relay has seen that: bytes on loopback are there at once, and this comes after them.
    let mut another = relay.connect();
    another.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").response();
    assert_eq!(client.send("34").response().text(), "1");
    assert_ne!(client.send(post("", "{}")).response().text(), "1");
}
