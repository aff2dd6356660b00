//! Tests that TCP urgent data is treated like any other data.

use std::net::TcpStream;
use std::os::fd::AsRawFd;

use super::support::{Gate, Relay, Upstream, ok, post};

/// Sends one byte as TCP urgent data.
fn send_urgent(stream: &TcpStream, byte: u8) {
    // SAFETY: the kernel reads one byte that outlives the call.
    let sent = unsafe {
        libc::send(stream.as_raw_fd(), std::ptr::from_ref(&byte).cast(), 1, libc::MSG_OOB)
    };
    assert_eq!(sent, 1);
}

#[test]
fn urgent_data_of_a_client_is_data_like_any_other() {
    let upstream = Upstream::answering(ok("fine"));
    let relay = Relay::to(&upstream.url()).args(["--client-timeout", "3"]).start();
    for at in 1..post("", "hello").len() {
        let mut client = relay.connect();
        let request = post("", "hello");
        let (before, rest) = request.as_bytes().split_at(at);
        // All of it is there when the relay looks.
        relay.stop();
        client.send(before);
        send_urgent(&client.stream, rest[0]);
        client.send(&rest[1..]);
        relay.signal(libc::SIGCONT);
        assert_eq!(client.response().status, 200, "urgent byte {at}");
        assert_eq!(upstream.requests().last().unwrap().body, b"hello");
    }
}

#[test]
fn urgent_data_of_an_upstream_is_data_like_any_other() {
    let (tell, told) = Gate::pair();
    let (go, may_go) = Gate::pair();
    let upstream = Upstream::plain(move |peer| {
        while peer.request().is_some() {
            tell.signal();
            may_go.wait();
            peer.write("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nh");
            send_urgent(peer.stream(), b'e');
            peer.write("llo");
            tell.signal();
        }
    });
    let relay = Relay::to(&upstream.url()).start();
    let mut client = relay.connect();
    for _ in 0..2 {
        client.send(post("", "{}"));
        told.wait();
        // All of it is there when the relay looks.
        relay.stop();
        go.signal();
        told.wait();
        relay.signal(libc::SIGCONT);
        assert_eq!(client.response().text(), "hello");
    }
}
