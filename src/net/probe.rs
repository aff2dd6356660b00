//! `--probe`: checks whether a relay responds on a port of 127.0.0.1. The probe sends one request
//! that no relay forwards. It recognises the local response by its status code, its JSON form and
//! its `error.code`.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Instant;

use super::limits::PROBE_RESPONSE;
use super::timeouts::PROBE;
use crate::http1::local_response::Reject;

/// The request of the probe. Every relay refuses this path, whatever its flags, and the access log
/// has a name for it. A refusal does not count towards `--max-requests`.
const REQUEST: &[u8] = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";

/// The local responses of a relay to that request. A relay without a free connection slot is alive:
/// a supervisor that restarted it would cut off its exchanges.
const REFUSALS: [Reject; 4] = [
    Reject::RouteNotAllowed,
    Reject::UserNotAllowed,
    Reject::ClientToken,
    Reject::TooManyConnections,
];

/// The probe has found no relay on the port.
#[derive(Debug)]
pub struct ProbeError {
    port: u16,
    fault: ProbeFault,
}

#[derive(Debug)]
enum ProbeFault {
    /// The connection could not be made, or has failed.
    Connection(io::Error),
    /// No complete response came in time.
    Silent,
    /// The response is that of another program.
    NotARelay,
}

impl From<io::Error> for ProbeFault {
    fn from(error: io::Error) -> ProbeFault {
        match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => ProbeFault::Silent,
            _ => ProbeFault::Connection(error),
        }
    }
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no relay responds on 127.0.0.1:{}: ", self.port)?;
        match &self.fault {
            ProbeFault::Connection(error) => write!(f, "{error}"),
            ProbeFault::Silent => write!(f, "no complete response within {} s", PROBE.as_secs()),
            ProbeFault::NotARelay => f.write_str("the response is another program's"),
        }
    }
}

/// Sends one request to this port of 127.0.0.1 and waits up to [`PROBE`] for a response of a relay.
/// Fails without a connection, without a complete response in time, and on any other response.
pub fn probe(port: u16) -> Result<(), ProbeError> {
    ask(port).map_err(|fault| ProbeError { port, fault })
}

fn ask(port: u16) -> Result<(), ProbeFault> {
    let end = Instant::now() + PROBE;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream = TcpStream::connect_timeout(&address, PROBE)?;
    // The request fits into the send buffer of a new connection, so the write does not block.
    (&stream).write_all(REQUEST)?;
    let mut response = Vec::new();
    let mut limited = (&stream).take(PROBE_RESPONSE);
    let mut part = [0; 1024];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ProbeFault::Silent);
        }
        stream.set_read_timeout(Some(left))?;
        match limited.read(&mut part).map_err(ProbeFault::from) {
            Ok(0) => break,
            Ok(read) => response.extend_from_slice(&part[..read]),
            Err(ProbeFault::Connection(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            // The relay may reset a refused connection after its response.
            Err(ProbeFault::Connection(_)) if !response.is_empty() => break,
            Err(fault) => return Err(fault),
        }
    }
    if is_refusal(&response) { Ok(()) } else { Err(ProbeFault::NotARelay) }
}

/// The response is one of [`REFUSALS`]. Only the parts that every version of this program shares
/// are compared: the status code, the form of the body and the `error.code`, but not the message.
fn is_refusal(response: &[u8]) -> bool {
    let Ok(text) = core::str::from_utf8(response) else {
        return false;
    };
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    REFUSALS.iter().any(|refusal| {
        let refusal = refusal.response();
        let status = head.strip_prefix("HTTP/1.1 ").unwrap_or_default();
        let is_status = status.starts_with(&refusal.status_line[..4]);
        let code = body
            .strip_prefix("{\"error\":{\"message\":\"")
            .and_then(|rest| rest.strip_suffix("\"}}\n"))
            .and_then(|rest| rest.split_once("\",\"type\":\"proxy_error\",\"code\":\""));
        is_status && code.is_some_and(|(_, code)| code == refusal.code)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &str = "{\"error\":{\"message\":\"Any.\",\"type\":\"proxy_error\",\"code\":\"route_not_allowed\"}}\n";

    fn with(status: &str, body: &str) -> Vec<u8> {
        format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\n\r\n{body}").into()
    }

    /// The outcome of a probe of a server that sends this and ends the connection.
    fn outcome(response: &[u8]) -> Result<(), ProbeFault> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                stream.read_exact(&mut [0; REQUEST.len()]).unwrap();
                stream.write_all(response).unwrap();
            });
            ask(port)
        })
    }

    #[test]
    fn a_response_may_be_as_long_as_the_bound_and_no_longer() {
        let of_length = |len: u64| {
            let filler = len as usize - with("403 Forbidden", BODY).len();
            with("403 Forbidden", &BODY.replace("Any.", &("Any.".to_owned() + &"x".repeat(filler))))
        };
        assert!(outcome(&of_length(PROBE_RESPONSE)).is_ok());
        let too_long = outcome(&of_length(PROBE_RESPONSE + 1));
        assert!(matches!(too_long, Err(ProbeFault::NotARelay)), "{too_long:?}");
    }

    #[test]
    fn a_server_that_says_nothing_is_waited_for_as_long_as_a_probe_may_take() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let start = Instant::now();
        let silent = ask(listener.local_addr().unwrap().port());
        assert!(matches!(silent, Err(ProbeFault::Silent)), "{silent:?}");
        assert!(start.elapsed() >= PROBE);
    }

    #[test]
    fn a_refusal_is_known_by_status_form_and_code() {
        assert!(is_refusal(&with("403 Forbidden", BODY)));
        assert!(is_refusal(&with("403 Other", BODY)));
        let busy = BODY.replace("route_not_allowed", "too_many_connections");
        assert!(is_refusal(&with("503 Service Unavailable", &busy)));
        for (status, body) in [
            ("503 Service Unavailable", BODY.to_owned()),
            ("200 OK", BODY.into()),
            ("403 Forbidden", BODY.replace("route_not_allowed", "other")),
            ("403 Forbidden", BODY.replace("proxy_error", "invalid_request_error")),
            ("403 Forbidden", BODY[..BODY.len() - 1].into()),
            ("403 Forbidden", format!(" {BODY}")),
            ("403 Forbidden", String::new()),
        ] {
            assert!(!is_refusal(&with(status, &body)), "{status} {body}");
        }
        assert!(!is_refusal(b""));
        assert!(!is_refusal(b"\xff"));
        assert!(!is_refusal(&with("403 Forbidden", BODY)[5..]));
    }
}
