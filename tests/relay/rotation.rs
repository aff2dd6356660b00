//! Tests `--rotate`: each further line on stdin replaces the key, between two requests and without
//! a loss; and `--key-max-age`.

use std::io::{PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{ChildStdin, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use codex_responses_api_proxy::http1::limits;
use codex_responses_api_proxy::net::timeouts::KEY_PAUSE;

use super::key::terminal;
use super::lifecycle::Folder;
use super::pooling::Clock;
use super::support::relay::{Starter, descriptors, marker_key};
use super::support::skip::is_root;
use super::support::upstream::memory_file;
use super::support::{Client, End, Gate, Relay, Upstream, needs_root, ok, post, skipped, wait_for};

/// An upstream, and a relay with `--rotate` that goes to it.
fn rotating(args: &[&str]) -> (Upstream, Relay, ChildStdin) {
    let upstream = Upstream::answering(ok("fine"));
    let (relay, stdin) =
        Relay::to(&upstream.url()).args(["--rotate"]).args(args).start_with_stdin();
    (upstream, relay, stdin)
}

/// Sends a request and returns the key that the upstream saw.
fn key_in_use(upstream: &Upstream, port: u16) -> String {
    let response = Client::connect(port).send(post("", "{}")).response();
    assert_eq!(response.status, 200);
    let request = upstream.requests().pop().unwrap();
    let [key] = request.fields("authorization")[..] else { panic!("one Authorization") };
    key.strip_prefix("Bearer ").unwrap().to_owned()
}

#[track_caller]
fn assert_key(upstream: &Upstream, port: u16, key: &str) {
    // The key is not shown in a failure.
    assert!(key_in_use(upstream, port) == key, "another key is in use");
}

/// Waits until the relay has read all that was written.
fn is_read(stdin: &impl AsFd) {
    wait_for(|| {
        let mut left = 0;
        // SAFETY: the kernel writes one int.
        let told = unsafe { libc::ioctl(stdin.as_fd().as_raw_fd(), libc::FIONREAD, &mut left) };
        told == 0 && left == 0
    });
}

/// Writes a line and waits until it is the key.
fn replace(relay: &Relay, mut stdin: impl Write, key: &str) {
    stdin.write_all(format!("{key}\n").as_bytes()).unwrap();
    relay.line_with("requests carry key ");
}

/// The relay has written none of these keys.
#[track_caller]
fn none_told(relay: &Relay, keys: &[&str]) {
    let output = relay.output();
    for key in keys {
        for piece in key.as_bytes().windows(8) {
            assert!(!output.windows(8).any(|window| window == piece), "a part of a key was told");
        }
    }
}

#[test]
fn each_further_line_on_stdin_is_the_key_from_the_next_request_on() {
    let (upstream, relay, mut stdin) = rotating(&[]);
    assert!(relay.output_line("relay: ").contains("each further line on stdin replaces the key"));
    let first = relay.key.clone();
    assert_key(&upstream, relay.port, &first);
    let mut kept = relay.connect();
    assert_eq!(kept.send(post("", "{}")).response().status, 200);
    for generation in 2..=limits::KEY_SETS + 3 {
        let key = marker_key();
        writeln!(stdin, "{key}").unwrap();
        let line = relay.line_with("requests carry key ");
        assert!(line.ends_with(&format!("requests carry key {generation} now")), "{line}");
        assert_key(&upstream, relay.port, &key);
        // On a connection of before, too.
        assert_eq!(kept.send(post("", "{}")).response().status, 200);
        let seen = upstream.requests().pop().unwrap();
        assert!(seen.fields("authorization") == [format!("Bearer {key}")], "another key");
        none_told(&relay, &[&key]);
    }
}

#[test]
fn a_line_in_pieces_counts_when_its_end_has_come() {
    let (upstream, relay, mut stdin) = rotating(&[]);
    let (first, second) = (relay.key.clone(), marker_key());
    for piece in second.as_bytes().chunks(7) {
        stdin.write_all(piece).unwrap();
        is_read(&stdin);
        assert_key(&upstream, relay.port, &first);
    }
    replace(&relay, &stdin, "");
    assert_key(&upstream, relay.port, &second);
}

#[test]
fn of_lines_that_come_together_the_last_key_counts_with_either_line_end() {
    let (upstream, relay, mut stdin) = rotating(&[]);
    let keys: Vec<String> = (0..6).map(|_| marker_key()).collect();
    write!(stdin, "{}\n{}\n", keys[0], keys[1]).unwrap();
    relay.line_with("requests carry key ");
    assert_key(&upstream, relay.port, &keys[1]);
    // The beginning of the next line comes with it.
    write!(stdin, "{}\r\n{}", keys[2], &keys[3][..9]).unwrap();
    relay.line_with("requests carry key ");
    assert_key(&upstream, relay.port, &keys[2]);
    write!(stdin, "{}\r\n", &keys[3][9..]).unwrap();
    relay.line_with("requests carry key ");
    assert_key(&upstream, relay.port, &keys[3]);
    // A bad one among them changes nothing.
    write!(stdin, "{}\nno key\n{}\n", keys[4], keys[5]).unwrap();
    relay.line_with("requests carry key ");
    assert_key(&upstream, relay.port, &keys[5]);
}

#[test]
fn a_line_that_is_no_key_is_refused_and_told_without_a_byte_of_it() {
    let (upstream, relay, mut stdin) = rotating(&[]);
    let first = relay.key.clone();
    let long = marker_key().repeat(40)[..1018].to_owned();
    for (line, reason) in [
        ("", "it is empty"),
        ("\r", "it is empty"),
        (
            "a_key_with a_space",
            "may only contain ASCII letters, numbers, '-' or '_'; byte 11 is a space",
        ),
        ("Bearer its_value_comes_here", "it begins with \"Bearer \""),
        ("eyJhbGciOi.eyJpc3Mi.c2lnbmF0dXJl", "add --allow-token68"),
        ("a_key_with_\u{e4}_umlaut", "not ASCII"),
        (&long, "too large: at most 1017 bytes"),
    ] {
        writeln!(stdin, "{line}").unwrap();
        let told = relay.line_with("stdin: ");
        assert!(
            told.contains("warning: stdin: a line is refused and the key stays as it is"),
            "{told}"
        );
        assert!(told.contains(reason), "{told}");
        if line.len() > 8 {
            none_told(&relay, &[line]);
        }
        assert_key(&upstream, relay.port, &first);
    }
}

#[test]
fn the_longest_line_is_a_key_and_a_longer_one_is_skipped_to_its_end() {
    let (upstream, relay, mut stdin) = rotating(&[]);
    let longest = marker_key().repeat(40)[..1017].to_owned();
    write!(stdin, "{longest}\r\n").unwrap();
    relay.line_with("requests carry key 2");
    assert_key(&upstream, relay.port, &longest);
    // Told when it is known to be too long, whether its end has come or not.
    for length in [1018, 1019, 1020, 2_500, 300_000] {
        stdin.write_all(&vec![b'k'; length]).unwrap();
        is_read(&stdin);
        let key = marker_key();
        write!(stdin, "kkk\n{key}\n").unwrap();
        let told = relay.line_with("stdin: ");
        assert!(told.contains("too large"), "{told}");
        relay.line_with("requests carry key ");
        assert_key(&upstream, relay.port, &key);
    }
}

#[test]
fn the_end_of_stdin_keeps_the_last_key_and_drops_a_line_without_an_end() {
    for rest in ["", "sk-a-line-of-which-the-end-is-missing"] {
        let (upstream, relay, mut stdin) = rotating(&[]);
        let key = marker_key();
        write!(stdin, "{key}\n{rest}").unwrap();
        drop(stdin);
        relay.line_with("requests carry key 2");
        if !rest.is_empty() {
            relay.line_with("stdin: the last line has no end and is ignored");
            none_told(&relay, &[rest]);
        }
        relay.line_with("stdin has ended; the key stays as it is");
        assert_key(&upstream, relay.port, &key);
        // It does not spin.
        let busy = |relay: &Relay| {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", relay.pid())).unwrap();
            let fields: Vec<u64> =
                stat.rsplit_once(") ").unwrap().1.split(' ').flat_map(str::parse).collect();
            fields[10] + fields[11]
        };
        let before = busy(&relay);
        super::support::pace(std::time::Duration::from_millis(300));
        assert!(busy(&relay) - before < 10, "it is busy though nothing happens");
    }
}

#[test]
fn the_same_key_again_is_no_new_one() {
    let (upstream, relay, mut stdin) = rotating(&["--access-log"]);
    let (first, second) = (relay.key.clone(), marker_key());
    write!(stdin, "{first}\n{first}\n").unwrap();
    is_read(&stdin);
    replace_json(&relay, &stdin, &second, 2);
    assert_key(&upstream, relay.port, &second);
}

/// As [`replace`], where lines are JSON.
fn replace_json(relay: &Relay, mut stdin: impl Write, key: &str, generation: u64) {
    stdin.write_all(format!("{key}\n").as_bytes()).unwrap();
    let line = relay.line_with("\"event\":\"key_rotated\"");
    assert!(line.ends_with(&format!(",\"key_generation\":{generation}}}")), "{line}");
}

#[test]
fn the_access_log_tells_which_key_an_exchange_carried_and_what_came_of_lines() {
    let (upstream, relay, mut stdin) = rotating(&["--access-log", "--key-max-age=5000"]);
    let start = String::from_utf8(relay.output()).unwrap();
    assert!(start.contains(",\"rotation\":\"stdin\",\"key_max_age_s\":5000"), "{start}");
    for generation in 1..4 {
        key_in_use(&upstream, relay.port);
        let line = relay.line_with("\"route\":\"responses\"");
        assert!(line.contains(&format!(",\"key_generation\":{generation},")), "{line}");
        replace_json(&relay, &stdin, &marker_key(), generation + 1);
    }
    // What was not forwarded carried none.
    relay.connect().send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").response();
    assert!(!relay.line_with("\"route\":\"refused\"").contains("key_generation"));
    stdin.write_all(b"\n\nno key\n").unwrap();
    let line = relay.line_with("\"event\":\"key_refused\"");
    assert!(line.contains("3 lines are refused") && line.ends_with(",\"lines\":3}"), "{line}");
    drop(stdin);
    relay.line_with("\"event\":\"key_input_ended\"");
}

/// An upstream whose responses begin at once and end when the gate opens, and that sends what the
/// request's X-Say names in between.
fn streaming(says: impl Fn(&str) -> String + Send + Sync + 'static) -> (Upstream, Gate, Gate) {
    let (go, gate) = Gate::pair();
    let (begun, begins) = Gate::pair();
    let upstream = Upstream::tls(move |peer| {
        while let Some(request) = peer.request() {
            let say = request.fields("x-say").first().map_or(String::new(), |name| says(name));
            match request.fields("x-stream")[..] {
                [] => {
                    peer.write(ok("fine"));
                    continue;
                }
                ["silent"] => {
                    begun.signal();
                    peer.closed();
                    return;
                }
                _ => {}
            }
            if !peer
                .try_write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegin\r\n")
            {
                return;
            }
            gate.wait();
            let end = format!("{:x}\r\n{say}end\r\n0\r\n\r\n", say.len() + 3);
            if !peer.try_write(end) {
                return;
            }
        }
    });
    (upstream, go, begins)
}

fn begin_stream(port: u16, fields: &str) -> Client {
    let mut client = Client::connect(port);
    client.send(post(&format!("X-Stream: 1\r\n{fields}"), "{}"));
    client.head();
    assert_eq!(client.take(10), b"5\r\nbegin\r\n");
    client
}

#[test]
fn sixty_four_streams_run_through_rotations_untouched() {
    let (upstream, go, _begins) = streaming(|_| String::new());
    let (relay, stdin) = Relay::to(&upstream.url()).args(["--rotate"]).start_with_stdin();
    let mut streams: Vec<Client> = (0..64).map(|_| begin_stream(relay.port, "")).collect();
    for _ in 0..3 {
        let key = marker_key();
        replace(&relay, &stdin, &key);
        assert_key(&upstream, relay.port, &key);
    }
    for _ in 0..64 {
        go.signal();
    }
    for client in &mut streams {
        assert_eq!(client.take(13), b"3\r\nend\r\n0\r\n\r\n");
        assert_eq!(client.send(post("", "{}")).response().status, 200);
    }
}

#[test]
fn older_keys_are_looked_for_until_each_exchange_that_carried_them_has_ended() {
    let keys: Arc<Vec<String>> = Arc::new((0..3).map(|_| marker_key()).collect());
    let shared = keys.clone();
    let (upstream, go, begins) =
        streaming(move |name| name.parse().map_or(String::new(), |n: usize| shared[n].clone()));
    let relay = Relay::to(&upstream.url()).args(["--rotate"]).key(&keys[0]);
    let (relay, stdin) = relay.start_with_stdin();
    // One that lasts for each key, and one that says any of the three keys.
    let mut lasting = Vec::new();
    let mut streams = Vec::new();
    for n in 0..3 {
        if n > 0 {
            replace(&relay, &stdin, &keys[n]);
        }
        lasting.push(relay.connect());
        lasting[n].send(post("X-Stream: silent\r\n", "{}"));
        begins.wait();
        streams.extend([0, 1, 2].map(|n| begin_stream(relay.port, &format!("X-Say: {n}\r\n"))));
    }
    for _ in 0..9 {
        go.signal();
    }
    for mut client in streams {
        let (got, end) = client.rest();
        assert_eq!(end, End::Reset);
        let parts =
            |key: &String| key.as_bytes().windows(20).map(<[u8]>::to_vec).collect::<Vec<_>>();
        let holds = |key: &String| parts(key).iter().any(|part| got.windows(20).any(|w| w == part));
        assert!(!keys.iter().any(holds), "a key was let through");
    }
}

#[test]
fn a_client_that_holds_streams_does_not_keep_the_key_from_being_replaced() {
    let (upstream, go, begins) = streaming(|_| String::new());
    let args = ["--rotate", "--access-log"];
    let (relay, stdin) = Relay::to(&upstream.url()).args(args).start_with_stdin();
    // One place is for the key of today, and one is always free.
    let older = limits::KEY_SETS - 2;
    let mut streams = Vec::new();
    // Whose response has not begun.
    let mut waiting = relay.connect();
    waiting.send(post("X-Stream: silent\r\n", "{}"));
    begins.wait();
    for generation in 1..=older as u64 + 1 {
        streams.push(begin_stream(relay.port, ""));
        if generation <= older as u64 {
            replace_json(&relay, &stdin, &marker_key(), generation + 1);
        }
    }
    // n: all go on.
    let output = String::from_utf8(relay.output()).unwrap();
    assert!(!output.contains("\"end\":"), "an exchange has ended: {output}");
    // n + 1: the one that carries the oldest key ends, and says why.
    let key = marker_key();
    replace_json(&relay, &stdin, &key, older as u64 + 2);
    let response = waiting.response();
    assert_eq!((response.status, response.code()), (502, "key_replaced"));
    let line = relay.line_with("\"connection\":2,");
    assert!(line.contains(",\"key_generation\":1,"), "{line}");
    assert!(line.contains("\"end\":\"key_replaced\""), "{line}");
    let (rest, end) = streams.remove(0).rest();
    assert_eq!((rest.as_slice(), end), (&b""[..], End::Reset));
    assert_key(&upstream, relay.port, &key);
    for _ in 0..=older {
        go.signal();
    }
    for client in &mut streams {
        assert_eq!(client.take(13), b"3\r\nend\r\n0\r\n\r\n");
    }
}

#[test]
fn a_writer_that_floods_takes_no_time_from_clients() {
    let (upstream, relay, mut stdin) = rotating(&[]);
    let stop = Arc::new(AtomicBool::new(false));
    let (gives_back, given_back) = Gate::pair();
    let (stopped, begun) = (stop.clone(), Instant::now());
    let lines = ["no key at all\n", "\n", "\r\n", "sk-a\n", "sk-b\n"].repeat(1_000).concat();
    thread::spawn(move || {
        // Ends with the relay, too.
        while !stopped.load(Ordering::SeqCst) && stdin.write_all(lines.as_bytes()).is_ok() {}
        gives_back.pass(stdin);
    });
    relay.line_with("requests carry key ");
    let mut client = relay.connect();
    for _ in 0..200 {
        assert_eq!(client.send(post("", "{}")).response().status, 200);
    }
    stop.store(true, Ordering::SeqCst);
    let mut stdin = given_back.wait();
    let last = marker_key();
    writeln!(stdin, "{last}").unwrap();
    is_read(&stdin);
    wait_for(|| key_in_use(&upstream, relay.port) == last);
    // Each read is told of by two lines at most, and is 10 ms behind the last.
    let reads = begun.elapsed().as_millis() / KEY_PAUSE.as_millis() + 1;
    let told = String::from_utf8(relay.output()).unwrap().lines().count() as u128;
    assert!(told <= 2 * reads + 10, "{told} lines for {reads} reads");
}

#[test]
fn a_key_that_is_too_old_gets_503_until_a_fresh_one_comes_and_streams_go_on() {
    let (upstream, go, _begins) = streaming(|_| String::new());
    let args = ["--rotate", "--key-max-age", "1", "--access-log"];
    let (relay, stdin) = Relay::to(&upstream.url()).args(args).start_with_stdin();
    let mut client = relay.connect();
    // A machine that is busy may take longer than the key is used.
    let served = |client: &mut Client, key: &str| loop {
        writeln!(&stdin, "{key}").unwrap();
        is_read(&stdin);
        if client.send(post("", "{}")).response().status == 200 {
            break;
        }
    };
    let mut stream = loop {
        served(&mut client, &relay.key);
        let mut stream = relay.connect();
        stream.send(post("X-Stream: 1\r\n", "{}"));
        if stream.head().starts_with("HTTP/1.1 200 ") {
            break stream;
        }
    };
    assert_eq!(stream.take(10), b"5\r\nbegin\r\n");
    // It expires while the stream lasts.
    relay.line_with("\"event\":\"key_expired\"");
    wait_for(|| client_status(relay.port) == 503);
    let before = upstream.requests().len();
    for _ in 0..2 {
        let response = client.send(post("", "{}")).response();
        assert_eq!((response.status, response.code()), (503, "key_expired"));
        assert_eq!(response.fields("retry-after"), ["5"]);
    }
    let line = relay.line_with("\"error_code\":\"key_expired\"");
    assert!(!line.contains("key_generation"), "{line}");
    assert_eq!(upstream.requests().len(), before);
    go.signal();
    assert_eq!(stream.take(13), b"3\r\nend\r\n0\r\n\r\n");
    // The same one is as good as another, if it is read again.
    served(&mut client, &relay.key);
    relay.line_with("\"event\":\"key_expired\"");
    served(&mut client, &marker_key());
    relay.line_with("\"event\":\"key_rotated\"");
}

#[test]
fn a_key_ages_while_the_machine_sleeps_too() {
    let Some(clock) = Clock::new("CLOCK_BOOTTIME") else { return };
    let upstream = Upstream::answering(ok("fine"));
    let args = ["--rotate", "--key-max-age", "10000", "--access-log"];
    let relay = clock.of(Relay::to(&upstream.url()).args(args));
    let (relay, stdin) = relay.start_with_stdin();
    let mut client = relay.connect();
    let mut status = || client.send(post("", "{}")).response().status;
    // (slept in all, whether a line came just then, the status then).
    for (seconds, line, want) in [
        (0, false, 200),
        (9_000, false, 200),
        (10_000, false, 503),
        (36_000, false, 503),
        (36_000, true, 200),
        (45_000, false, 200),
        (46_000, false, 503),
    ] {
        clock.set_forward(seconds);
        if line {
            replace_json(&relay, &stdin, &marker_key(), 2);
        }
        assert_eq!(status(), want, "after {seconds} s");
    }
    // Told once each time, by the thread that writes the log.
    let told = || {
        let output = String::from_utf8(relay.output()).unwrap();
        output.matches("\"event\":\"key_expired\"").count()
    };
    wait_for(|| told() >= 2);
    assert_eq!(told(), 2);
}

fn client_status(port: u16) -> u16 {
    Client::connect(port).send(post("", "{}")).response().status
}

#[test]
fn a_file_is_read_to_its_end_at_start_and_closed() {
    let upstream = Upstream::answering(ok("fine"));
    let keys = [marker_key(), marker_key(), marker_key()];
    for (text, key, warning) in [
        (format!("{}\n", keys[0]), &keys[0], None),
        (keys[0].clone(), &keys[0], None),
        (format!("{}\n{}\r\n{}\n", keys[0], keys[1], keys[2]), &keys[2], None),
        (
            format!("{}\n{}\n{}", keys[0], keys[1], keys[2]),
            &keys[1],
            Some("the last line has no end"),
        ),
        (format!("{}\nno key\n", keys[0]), &keys[0], Some("a line is refused")),
        (format!("{}\n{}{}\n", keys[0], "x\n".repeat(9_000), keys[1]), &keys[1], None),
    ] {
        let file = std::fs::File::open(memory_file(text.as_bytes())).unwrap();
        let relay = Relay::to(&upstream.url()).args(["--rotate"]).start_on(file);
        if let Some(warning) = warning {
            assert!(relay.line_with("warning: stdin: ").contains(warning));
        }
        assert_key(&upstream, relay.port, key);
        if is_root() {
            let stdin = descriptors(relay.pid()).into_iter().find(|(fd, _)| *fd == 0).unwrap().1;
            assert!(
                stdin.to_str() == Some("/dev/null") || stdin.to_string_lossy().starts_with("pipe:")
            );
        } else {
            skipped("the descriptors of a process that is not dumpable are root's");
        }
        none_told(&relay, &[&keys[0], &keys[1], &keys[2]]);
    }
}

#[test]
fn a_pipe_with_a_name_may_get_one_writer_after_another() {
    let upstream = Upstream::answering(ok("fine"));
    let folder = Folder::new("named-pipe");
    let path = folder.file("keys");
    let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: the kernel reads a name.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    let write = |text: String| {
        let path = path.clone();
        thread::spawn(move || std::fs::write(path, text).unwrap())
    };
    let keys = [marker_key(), marker_key(), marker_key()];
    let writer = write(format!("{}\n", keys[0]));
    let stdin = std::fs::File::open(&path).unwrap();
    let relay = Relay::to(&upstream.url()).args(["--rotate"]).start_on(stdin);
    writer.join().unwrap();
    assert_key(&upstream, relay.port, &keys[0]);
    write(format!("{}\n", keys[1])).join().unwrap();
    relay.line_with("requests carry key 2");
    assert_key(&upstream, relay.port, &keys[1]);
    // A writer that dies within a line spoils no other's.
    write("sk-half-a-line".into()).join().unwrap();
    relay.line_with("the last line has no end and is ignored");
    write(format!("{}\n", keys[2])).join().unwrap();
    relay.line_with("requests carry key 3");
    assert_key(&upstream, relay.port, &keys[2]);
}

#[test]
fn a_socket_will_do_and_the_flags_of_what_is_shared_stay_as_they_are() {
    let is_blocking = |fd: &dyn AsRawFd| {
        // SAFETY: asks for flags.
        unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) & libc::O_NONBLOCK == 0 }
    };
    let upstream = Upstream::answering(ok("fine"));
    let starter = || Relay::to(&upstream.url()).args(["--rotate"]);
    let with =
        |starter: Starter, stdin: OwnedFd, shared: &dyn AsRawFd, mut writer: &dyn WriteTo| {
            let keys = [marker_key(), marker_key()];
            writer.write(&format!("{}\n", keys[0]));
            let relay = starter.start_on(Stdio::from(stdin));
            assert_key(&upstream, relay.port, &keys[0]);
            writer.write(&format!("{}\n", keys[1]));
            relay.line_with("requests carry key 2");
            assert_key(&upstream, relay.port, &keys[1]);
            assert!(is_blocking(shared), "O_NONBLOCK was set on a description that is shared");
            let _ = &mut writer;
        };
    let (ours, theirs) = UnixStream::pair().unwrap();
    with(starter(), theirs.try_clone().unwrap().into(), &theirs, &ours);
    let (reader, writer): (PipeReader, PipeWriter) = std::io::pipe().unwrap();
    with(starter(), reader.try_clone().unwrap().into(), &reader, &writer);
}

/// Whether the relay reads stdin through a description that does not wait.
fn has_nonblocking_stdin(relay: &Relay) -> bool {
    let info = std::fs::read_to_string(format!("/proc/{}/fdinfo/0", relay.pid())).unwrap();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
    i32::from_str_radix(flags, 8).unwrap() & libc::O_NONBLOCK != 0
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_pipe_is_opened_anew_and_one_that_its_user_may_not_open_will_do_too() {
    needs_root();
    let (_upstream, relay, _stdin) = rotating(&[]);
    assert!(has_nonblocking_stdin(&relay));
    // The pipe belongs to root, so /proc/self/fd/0 cannot be opened.
    let starter = Relay::bare().args(["--rotate"]).run_by(65_534);
    let (relay, mut stdin) = starter.start_with_stdin();
    assert!(!has_nonblocking_stdin(&relay));
    for generation in 1..4 {
        let key = marker_key();
        write!(stdin, "{}\nno key\n{}", marker_key(), &key[..9]).unwrap();
        relay.line_with(&format!("requests carry key {} now", 2 * generation));
        writeln!(stdin, "{}", &key[9..]).unwrap();
        relay.line_with(&format!("requests carry key {} now", 2 * generation + 1));
    }
    drop(stdin);
    relay.line_with("stdin has ended");
}

#[test]
fn a_pipe_in_which_another_process_has_set_o_nonblock_will_do_too() {
    for args in [&[][..], &["--rotate"]] {
        let upstream = Upstream::answering(ok("fine"));
        let (reader, mut writer) = std::io::pipe().unwrap();
        // SAFETY: sets a flag.
        unsafe { libc::fcntl(reader.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
        let key = marker_key();
        let mut starter = Relay::to(&upstream.url()).args(args).key(&key);
        let relay = starter.spawn_on(Stdio::from(reader), Stdio::piped()).0;
        // It waits for the key; only root sees that.
        wait_for(|| {
            let state = std::fs::read_to_string(format!("/proc/{}/wchan", relay.pid()));
            !is_root() || state.is_ok_and(|state| state.contains("poll"))
        });
        writeln!(writer, "{key}").unwrap();
        assert_key(&upstream, relay.listening().port, &key);
    }
}

#[test]
fn a_terminal_is_refused_because_it_would_show_the_keys() {
    let (_ours, theirs) = terminal();
    let mut starter = Relay::bare().args(["--rotate"]);
    let mut relay = starter.spawn_on(Stdio::from(theirs), Stdio::piped()).0;
    assert_eq!(relay.exit_code(), 2);
    let err = String::from_utf8(relay.output()).unwrap();
    assert!(err.contains("--rotate does not read from a terminal"), "{err}");
}

trait WriteTo {
    fn write(&self, text: &str);
}

impl WriteTo for UnixStream {
    fn write(&self, text: &str) {
        let mut stream = self;
        stream.write_all(text.as_bytes()).unwrap();
    }
}

impl WriteTo for PipeWriter {
    fn write(&self, text: &str) {
        let mut pipe = self;
        pipe.write_all(text.as_bytes()).unwrap();
    }
}

#[test]
fn without_the_flag_what_follows_the_first_line_is_ignored_and_told() {
    let upstream = Upstream::answering(ok("fine"));
    for (rest, is_told) in [("", false), ("\n", false), ("\r\n\n", false), ("second\n", true)] {
        let first = marker_key();
        let (relay, mut stdin) = {
            let mut starter = Relay::to(&upstream.url()).key(&first);
            let (relay, mut stdin) = starter.spawn_without_key(Stdio::piped());
            write!(stdin, "{first}\n{rest}").unwrap();
            (relay, stdin)
        };
        let relay = relay.listening();
        if is_told {
            let line = relay.line_with("warning: ");
            assert!(
                line.contains("the first line of its input, and the rest is ignored"),
                "{line}"
            );
        }
        stdin.write_all(format!("{}\n", marker_key()).as_bytes()).unwrap();
        assert_key(&upstream, relay.port, &first);
        assert_eq!(String::from_utf8(relay.output()).unwrap().contains("warning"), is_told);
    }
}

#[test]
fn what_does_not_go_with_it_is_wrong_use() {
    for (args, reason) in [
        (&["--rotate", "--key-file", "/dev/null"][..], "--rotate reads each key from stdin"),
        (&["--key-max-age", "5"], "--key-max-age needs --rotate"),
        (&["--rotate", "--key-max-age", "0"], "takes a whole number from 1 to 31536000"),
        (&["--rotate", "--key-max-age", "31536001"], "takes a whole number from 1 to 31536000"),
    ] {
        let (code, _, err) = Relay::bare().args(args).run(b"sk-a-key-that-goes-nowhere\n");
        assert_eq!(code, 2, "{err}");
        assert!(err.contains(reason), "{err}");
    }
}
