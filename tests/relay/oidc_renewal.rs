//! Tests how `--github-oidc` renews the key, and what happens when it cannot.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::log::pipe;
use super::oidc::{Endpoint, Tokens, api, endpoints, number_of, relay};
use super::oidc_processes::Processes;
use super::pooling::Clock;
use super::support::relay::{emulated, ends, random_hex};
use super::support::{Client, Gate, Relay, Response, Upstream, post, wait_for};

fn response(relay: &Relay) -> Response {
    relay.connect().send(post("", "{}")).response()
}

/// Waits until requests carry this token or a later one.
#[track_caller]
fn wait_for_token(relay: &Relay, number: usize) {
    wait_for(|| response(relay).text().parse::<usize>().is_ok_and(|now| now >= number));
}

const UNAVAILABLE: &str = "renewal_unavailable";

#[test]
fn a_token_of_two_seconds_is_renewed_after_one_while_requests_go_on() {
    let tokens = Tokens::new();
    let (github, provider) = endpoints(&tokens, 2);
    let api = api(&tokens);
    let begun = Instant::now();
    let relay = relay(&tokens, &github, &provider, &api).args(["--access-log"]).start();
    let mut last = 1;
    let mut client = relay.connect();
    while last < 4 {
        let response = client.send(post("", "{}")).response();
        if response.status == 503 {
            // On a machine that is busy for a second, the next token may be late.
            assert!(response.text().contains(UNAVAILABLE), "{}", response.text());
            continue;
        }
        let number: usize = response.text().parse().unwrap();
        assert!(number >= last, "{last} was followed by {number}");
        last = number;
    }
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(2700), "renewed early: {took:?}");
    relay.line_with("\"event\":\"key_rotated\"");
}

#[test]
fn streams_under_way_are_untouched_by_a_renewal() {
    const STREAMS: usize = 64;
    let tokens = Tokens::new();
    let (github, provider) = endpoints(&tokens, 8);
    // Each response has two parts, and the second comes after the renewal.
    let (renewed, go_on) = Gate::pair();
    let go_on = Arc::new(go_on);
    let (begun, waiting) = Gate::pair();
    let of_api = tokens.clone();
    let api = Upstream::tls(move |peer| {
        while let Some(request) = peer.request() {
            let number = number_of(&of_api, &request.head);
            peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n");
            begun.signal();
            if number == 1 {
                go_on.wait();
            }
            peer.write(format!("1\r\n{number}\r\n0\r\n\r\n"));
        }
    });
    let relay = relay(&tokens, &github, &provider, &api).start();
    let port = relay.port;
    thread::scope(|scope| {
        let streams: Vec<_> = (0..STREAMS)
            .map(|_| {
                scope.spawn(move || {
                    Client::connect(port).send(post("", "{}")).response().text().to_owned()
                })
            })
            .collect();
        (0..STREAMS).for_each(|_| waiting.wait());
        // A request with the second token, while the others go on.
        wait_for(|| {
            provider.seen().len() >= 2 && {
                let text = response(&relay).text().to_owned();
                text != "first1"
            }
        });
        (0..STREAMS + 10_000).for_each(|_| renewed.signal());
        let texts: Vec<String> = streams.into_iter().map(|s| s.join().unwrap()).collect();
        // A stream that begins late, on a busy machine, carries the second token.
        assert!(
            texts.iter().all(|text| ["first1", "first2"].contains(&text.as_str())),
            "{texts:?}"
        );
        assert!(texts.contains(&"first1".to_owned()));
    });
}

#[test]
fn an_endpoint_that_fails_for_a_while_is_asked_again() {
    let tokens = Tokens::new();
    let (id, access) = (tokens.clone(), tokens.clone());
    let github = Endpoint::answering(move |_| id.id_response());
    let given = AtomicUsize::new(0);
    // The second and third request fail in two ways, the fourth is granted.
    let provider = Endpoint::new(move |number, peer| match number {
        2 => {
            let body = "{\"error\":\"temporarily_unavailable\"}";
            let length = body.len();
            peer.write(format!("HTTP/1.1 503 No\r\nContent-Length: {length}\r\n\r\n{body}"));
        }
        3 => peer.cut(),
        _ => {
            let given = given.fetch_add(1, Ordering::SeqCst) + 1;
            peer.try_write(access.access_response(given, 6));
        }
    });
    let api = api(&tokens);
    let relay = relay(&tokens, &github, &provider, &api).start();
    let line = relay.line_with("warning: the key was not renewed: ");
    let want =
        "step 2, the access token: HTTP status 503, temporarily_unavailable; next attempt in ";
    assert!(line.contains(want), "{line}");
    let line = relay.line_with("warning: the key was not renewed: ");
    assert!(line.contains("the connection ended within the response; next attempt"), "{line}");
    wait_for_token(&relay, 2);
    assert!(provider.seen().len() >= 4);
}

#[test]
fn a_refusal_is_final_and_requests_get_503_once_the_token_has_expired() {
    let tokens = Tokens::new();
    for status in [400, 401, 403] {
        let id = tokens.clone();
        let github = Endpoint::answering(move |number| match number {
            1 => id.id_response(),
            _ => format!("HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n"),
        });
        let (_, provider) = endpoints(&tokens, 8);
        let api = api(&tokens);
        let relay = relay(&tokens, &github, &provider, &api).start();
        let feeder = (!emulated()).then(|| Processes::of(relay.pid()).feeder);
        let line = relay.line_with("warning: the key was not renewed: ");
        let want = format!("step 1, GitHub's ID token: HTTP status {status}; ");
        assert!(line.contains(&want) && line.contains("no more attempts"), "{line}");
        assert_eq!(response(&relay).text(), "1", "the token has not expired");
        assert!(feeder.is_none_or(ends));
        if status != 401 {
            continue;
        }
        wait_for(|| response(&relay).status == 503);
        let refused = response(&relay);
        assert!(refused.text().contains(UNAVAILABLE), "{}", refused.text());
        assert!(refused.head.contains("\r\nRetry-After: "), "{}", refused.head);
        assert_eq!(github.seen().len(), 2, "it was asked again");
    }
}

#[test]
fn when_the_feeder_is_killed_the_relay_serves_until_the_token_expires_and_says_so() {
    if emulated() {
        return;
    }
    let Some(clock) = Clock::new("CLOCK_BOOTTIME") else {
        return;
    };
    let tokens = Tokens::new();
    let (github, provider) = endpoints(&tokens, 3600);
    let api = api(&tokens);
    let relay = clock.of(relay(&tokens, &github, &provider, &api)).start();
    let feeder = Processes::of(relay.pid()).feeder;
    // SAFETY: no memory is involved; the feeder has not ended.
    unsafe { libc::kill(feeder as i32, libc::SIGKILL) };
    assert!(ends(feeder));
    relay.line_with("the feeder has ended");
    clock.set_forward(3590);
    assert_eq!(response(&relay).text(), "1");
    // Under load: exchanges that have begun go on, and later ones are refused.
    let stop = AtomicUsize::new(0);
    thread::scope(|scope| {
        let load = || {
            let mut client = Client::connect(relay.port);
            let mut refused = 0;
            while stop.load(Ordering::SeqCst) == 0 || refused == 0 {
                let response = client.send(post("", "{}")).response();
                match response.status {
                    200 => assert_eq!((refused, response.text()), (0, "1")),
                    503 => {
                        assert!(response.text().contains(UNAVAILABLE));
                        refused += 1;
                    }
                    status => panic!("{status}"),
                }
            }
        };
        let loads: Vec<_> = (0..8).map(|_| scope.spawn(load)).collect();
        wait_for(|| api.requests().len() > 100);
        clock.set_forward(3600);
        relay.line_with("expired");
        stop.store(1, Ordering::SeqCst);
        loads.into_iter().for_each(|load| load.join().unwrap());
    });
    assert_eq!(response(&relay).status, 503);
}

#[test]
fn the_loss_of_a_connector_of_the_feeder_is_final_and_requests_get_503_once_the_token_has_expired()
{
    if emulated() {
        return;
    }
    let tokens = Tokens::new();
    for which in 0..2 {
        let (github, provider) = endpoints(&tokens, 4);
        let api = api(&tokens);
        let relay = relay(&tokens, &github, &provider, &api).start();
        let processes = Processes::of(relay.pid());
        let connector = processes.feeders_connectors[which];
        // SAFETY: no memory is involved; the connector has not ended.
        unsafe { libc::kill(connector as i32, libc::SIGKILL) };
        let line = relay.line_with("warning: the key was not renewed: ");
        let want = "no connection (connector_failed); a connector of the feeder has ended; no more";
        assert!(line.contains(&format!("step {}, ", which + 1)), "{line}");
        assert!(line.contains(want), "{line}");
        relay.line_with("the feeder has ended");
        assert!(ends(processes.feeder));
        wait_for(|| response(&relay).status == 503);
        assert!(response(&relay).text().contains(UNAVAILABLE));
    }
}

#[test]
fn a_token_that_comes_after_the_last_one_has_expired_is_used() {
    let tokens = Tokens::new();
    let (id, access) = (tokens.clone(), tokens.clone());
    let github = Endpoint::answering(move |_| id.id_response());
    let (tell, may_succeed) = Gate::pair();
    let provider = Endpoint::new(move |number, peer| {
        if number == 1 {
            peer.write(access.access_response(1, 2));
        } else {
            may_succeed.wait();
            peer.try_write(access.access_response(2, 600));
        }
    });
    let api = api(&tokens);
    let relay = relay(&tokens, &github, &provider, &api).start();
    wait_for(|| response(&relay).status == 503);
    tell.signal();
    wait_for_token(&relay, 2);
}

#[test]
fn a_machine_that_sleeps_during_an_exchange_has_used_up_that_time() {
    let Some(clock) = Clock::new("CLOCK_BOOTTIME") else {
        return;
    };
    let tokens = Tokens::new();
    let (github, _) = endpoints(&tokens, 3600);
    let (awake, has_slept) = Gate::pair();
    let access = tokens.clone();
    let provider = Endpoint::new(move |number, peer| {
        if number == 1 {
            has_slept.wait();
        }
        peer.try_write(access.access_response(number, 3600));
    });
    let api = api(&tokens);
    let mut relay = clock.of(relay(&tokens, &github, &provider, &api)).spawn(Stdio::piped());
    assert_eq!(provider.wait(), 1);
    clock.set_forward(3000);
    awake.signal();
    relay = relay.listening();
    // 600 s are left, so the token is renewed at once, and not after 2400 s.
    assert_eq!(provider.wait(), 2);
    wait_for_token(&relay, 2);
}

#[test]
fn a_stderr_that_is_not_read_holds_up_no_renewal() {
    let (reader, writer) = pipe();
    // A description of its own: the relay's must wait, as one from a shell does.
    let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let mut options = File::options();
    let mut filler = options.write(true).custom_flags(libc::O_NONBLOCK).open(path).unwrap();
    renews_with_a_full_stderr(&reader, writer, || while filler.write(b"x").is_ok() {});
}

/// Such as journald's.
#[test]
fn a_socket_as_stderr_that_is_not_read_holds_up_no_renewal() {
    let (reader, writer) = UnixStream::pair().unwrap();
    let filler = writer.try_clone().unwrap();
    let bytes = [b'x'; 1024];
    renews_with_a_full_stderr(&reader.into(), writer.into(), || {
        let (fd, flags) = (filler.as_raw_fd(), libc::MSG_DONTWAIT);
        // SAFETY: the pointer and the length are those of `bytes`.
        while unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) } > 0 {}
    });
}

#[test]
fn a_file_as_stderr_gets_the_report() {
    let tokens = Tokens::new();
    let id = tokens.clone();
    let github = Endpoint::answering(move |number| match number {
        1 => id.id_response(),
        _ => "HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n".to_owned(),
    });
    let (_, provider) = endpoints(&tokens, 2);
    let api = api(&tokens);
    let path = std::env::temp_dir().join(random_hex());
    let file = File::options().create_new(true).read(true).append(true).open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let stderr = Stdio::from(file.try_clone().unwrap());
    let _relay = relay(&tokens, &github, &provider, &api).spawn(stderr);
    wait_for(|| {
        let mut text = [0; 4096];
        let len = file.read_at(&mut text, 0).unwrap();
        String::from_utf8_lossy(&text[..len]).contains("HTTP status 403; GitHub or the token")
    });
}

/// Fills this stderr once the relay serves, and lets a renewal fail, which is reported.
fn renews_with_a_full_stderr(reader: &OwnedFd, stderr: OwnedFd, mut fill: impl FnMut()) {
    let tokens = Tokens::new();
    let (github, _) = endpoints(&tokens, 4);
    let access = tokens.clone();
    let provider = Endpoint::new(move |number, peer| {
        peer.try_write(match number {
            2 => "HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n".to_owned(),
            _ => access.access_response(number, 4),
        });
    });
    let api = api(&tokens);
    let starter = relay(&tokens, &github, &provider, &api).args(["--access-log"]);
    let _relay = starter.spawn(Stdio::from(stderr));
    let mut line = String::new();
    BufReader::with_capacity(1, File::from(reader.try_clone().unwrap()))
        .read_line(&mut line)
        .unwrap();
    assert!(line.contains("\"event\":\"start\""), "{line}");
    fill();
    while provider.wait() < 3 {}
}
