//! What is forwarded and what is refused.

use super::support::{Relay, Upstream, ok, post};

#[test]
fn post_v1_responses_is_forwarded() {
    let upstream = Upstream::answering(ok("hello"));
    let relay = Relay::to(&upstream.url()).start();
    let mut client = relay.connect();
    let answer = client.send(post("X-A: b\r\n", "{}")).response();
    assert_eq!((answer.status, answer.text()), (200, "hello"));
    let requests = upstream.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(
        requests[0].head_without_key(&relay.key),
        format!(
            "POST /v1/responses HTTP/1.1\r\nHost: localhost:{}\r\nX-A: b\r\nContent-Length: 2\r\n\r\n",
            upstream.port
        )
    );
    assert_eq!(requests[0].body, b"{}");
}
