//! The key's way in: from a pipe, a file, a terminal; and what is said when there is none.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, Command, Stdio};

use codex_responses_api_proxy::http1::limits;

use super::support::relay::{end_of, marker_key, program};
use super::support::{Relay, Upstream, ok, post, read_until};

/// Bytes of a key, at most: with `Bearer ` they make 1024.
const LONGEST: usize = 1017;

/// Starts a relay with exactly these bytes on stdin and asks what key the upstream sees.
fn arrives(stdin: &[&[u8]], key: &str) {
    let upstream = Upstream::answering(ok("fine"));
    let (mut relay, mut pipe) =
        Relay::to(&upstream.url()).key(key).spawn_without_key(Stdio::piped());
    for piece in stdin {
        pipe.write_all(piece).unwrap();
    }
    drop(pipe);
    let line = relay.line_with("listening");
    relay.port = line.rsplit_once(':').unwrap().1.parse().unwrap();
    assert_eq!(relay.connect().send(post("", "{}")).response().status, 200);
    upstream.requests()[0].head_without_key(key);
}

#[test]
fn the_key_is_the_first_line_without_its_line_end() {
    for (before, after) in
        [("", ""), ("", "\n"), ("", "\r\n"), ("", "\nsecond line\n"), ("", "\r\r\n")]
    {
        let key = marker_key();
        arrives(&[before.as_bytes(), key.as_bytes(), after.as_bytes()], &key);
    }
}

#[test]
fn the_key_may_come_byte_by_byte() {
    let key = marker_key();
    let bytes: Vec<&[u8]> = key.as_bytes().chunks(1).collect();
    arrives(&bytes, &key);
}

#[test]
fn the_longest_key_works_and_one_byte_more_is_refused() {
    let key = "k".repeat(LONGEST);
    arrives(&[key.as_bytes(), b"\r\n"], &key);
    refused(&[b'k'; LONGEST + 1], "too large");
    refused(&[b'k'; 1 << 20], "too large");
}

/// Starts it with these bytes: exit code 1, this message, and nothing of what was read.
fn refused(stdin: &[u8], want: &str) {
    let (code, out, err) = Relay::bare().run(stdin);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.starts_with("codex-responses-api-proxy: error: "), "{err}");
    assert!(err.contains(want) && err.lines().count() == 1, "{err}");
    if stdin.len() > 8 {
        assert!(!err.as_bytes().windows(8).any(|window| window == &stdin[..8]));
    }
}

#[test]
fn no_key_is_told_with_what_to_type() {
    for stdin in [&b""[..], b"\n", b"\r\n", b"\nsk-second-line\n"] {
        refused(stdin, "printenv OPENAI_API_KEY | env -u OPENAI_API_KEY codex-responses-api-proxy");
    }
}

#[test]
fn a_character_that_no_key_has_is_refused() {
    for stdin in
        [&b"sk key-with-space"[..], b"sk.key-with-dot", b"sk\0key", b"sk\xc3\xa9", b" sk", b"sk "]
    {
        refused(stdin, "ASCII letters, numbers, '-' or '_'");
    }
}

/// A JWT of this length: a header and claims like those of every other, and a signature of its own.
fn jwt(len: usize) -> String {
    let claims = len - JWT_HEADER.len() - 2 - marker_key().len();
    let signature = marker_key();
    format!("{JWT_HEADER}.{}.{signature}", "eyJhdWQi".repeat(len)[..claims].to_owned())
}

const JWT_HEADER: &str = "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9";

/// Starts a relay with `--allow-token68` and this key, the longest URL and the longest field for the
/// key if so asked, and looks at what the upstream sees.
fn arrives_as_token68(key: &str, long: bool) {
    let upstream = Upstream::answering(ok("fine"));
    let (mut url, mut field) = (upstream.url(), "Authorization: Bearer ".to_owned());
    if long {
        url += &"/x".repeat(limits::URL)[..limits::URL - url.len()];
        field = "f".repeat(limits::AUTH_HEADER - 4) + ": ";
    }
    let args = ["--allow-token68", "--auth-header", &format!("{field}{{}}")];
    let relay = Relay::to(&url).args(args).key(key).start();
    let sent = post(&format!("X-A: {}\r\n", "a".repeat(60_000)), "{}");
    assert_eq!(relay.connect().send(sent).response().status, 200);
    let request = &upstream.requests()[0];
    let line = format!("\r\n{field}{key}\r\nX-A: aaa");
    assert!(request.head.matches(&line).count() == 1, "the key, whole");
    assert!(request.head.ends_with("aaa\r\nContent-Length: 2\r\n\r\n") && request.body == b"{}");
}

#[test]
fn a_token68_arrives_as_it_is_where_it_is_allowed() {
    for key in ["ya29.A-b_c~d+e/f==", "a=", &jwt(2_000)] {
        arrives_as_token68(key, false);
    }
}

#[test]
fn the_longest_token68_works_beside_the_longest_url_and_one_byte_more_is_refused() {
    arrives_as_token68(&jwt(limits::TOKEN68), true);
    let (code, _, err) =
        Relay::bare().args(["--allow-token68"]).run(jwt(limits::TOKEN68 + 1).as_bytes());
    assert_eq!(code, 1);
    assert!(err.contains("too large: at most 8192 bytes") && err.lines().count() == 1, "{err}");
}

#[test]
fn a_key_that_needs_the_flag_is_told_so_and_what_is_no_token68_is_refused_with_it() {
    for key in ["a.b", "a~b", "a+b", "a/b", "a=", &jwt(500)] {
        refused(key.as_bytes(), "add --allow-token68");
    }
    refused(&[b'k'; LONGEST + 1], "add --allow-token68");
    for key in ["=", "a=b", "a b", "a:b", "a,b", "a\\b", "a\u{e9}"] {
        let (code, _, err) = Relay::bare().args(["--allow-token68"]).run(key.as_bytes());
        assert_eq!((code, err.lines().count()), (1, 1), "{err}");
        assert!(err.contains("API key may only contain"), "{err}");
    }
}

#[test]
fn a_jwt_that_is_reflected_is_cut_off_and_another_of_its_issuer_is_not() {
    let key = jwt(600);
    let (claims, signature) = key.rsplit_once('.').unwrap();
    for (text, whole) in [
        (format!("{claims}.0123456789abcdef0123456789abcdef"), true),
        (signature[..15].to_owned(), true),
        (signature[..23].to_owned(), false),
        (signature[35..].to_owned(), false),
        (signature[43..].to_owned(), true),
        (key.clone(), false),
    ] {
        let answer = format!("HTTP/1.1 200 OK\r\nX: {text}\r\nContent-Length: 0\r\n\r\n");
        let upstream = Upstream::answering(answer);
        let relay = Relay::to(&upstream.url()).args(["--allow-token68"]).key(&key).start();
        let answer = relay.connect().send(post("", "{}")).response();
        match whole {
            true => assert!(answer.status == 200 && answer.fields("x") == [&text], "withheld"),
            false => assert_eq!((answer.status, answer.code()), (502, "credential_reflected")),
        }
    }
}

#[test]
fn a_closed_stdin_reads_as_empty_and_one_that_cannot_be_read_has_its_own_message() {
    let run = |command: &mut Command| {
        let output = command.env_clear().stdout(Stdio::piped()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let mut command = program();
    // SAFETY: close(2) is safe to call between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::close(0);
            Ok(())
        })
    };
    let (code, err) = run(&mut command);
    assert_eq!(code, Some(1));
    assert!(err.contains("API key must be provided via stdin"), "{err}");
    let (code, err) = run(program().stdin(File::open("/").unwrap()));
    assert_eq!(code, Some(1));
    assert!(err.contains("cannot read the API key from stdin: Is a directory"), "{err}");
}

/// A terminal: our side and the relay's.
pub fn terminal() -> (File, File) {
    let (mut ours, mut theirs) = (0, 0);
    let null = std::ptr::null_mut::<u8>();
    let name = null.cast();
    // SAFETY: two descriptors are written into variables of ours; the rest may be null.
    let made = unsafe { libc::openpty(&mut ours, &mut theirs, name, null.cast(), null.cast()) };
    assert_eq!(made, 0);
    // SAFETY: both are new and nobody else has them.
    unsafe {
        libc::fcntl(ours, libc::F_SETFD, libc::FD_CLOEXEC);
        libc::fcntl(theirs, libc::F_SETFD, libc::FD_CLOEXEC);
        (File::from_raw_fd(ours), File::from_raw_fd(theirs))
    }
}

pub fn has_echo(terminal: &File) -> bool {
    // SAFETY: plain memory for libc to fill.
    let mut state: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: fills a struct of ours.
    let read = unsafe { libc::tcgetattr(terminal.as_raw_fd(), &mut state) };
    assert_eq!(read, 0);
    state.c_lflag & libc::ECHO != 0
}

/// Starts it at a terminal and waits until it asks: it, its stderr, our side and its own.
pub fn asked(command: &mut Command) -> (Child, ChildStderr, File, File) {
    let (ours, theirs) = terminal();
    let mut child = command
        .env_clear()
        .stdin(theirs.try_clone().unwrap())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let prompt = read_until(&mut stderr, ": ").expect("it asks");
    assert_eq!(prompt, b"API key (not shown as you type): ");
    assert!(!has_echo(&theirs), "it asks before echo is off");
    (child, stderr, ours, theirs)
}

/// The line of the prompt ends when echo is back.
pub fn echo_is_back(terminal: &File, stderr: &mut ChildStderr) {
    assert_eq!(read_until(stderr, "\n").expect("the end of the line"), b"\n");
    assert!(has_echo(terminal), "echo stays off");
}

#[test]
fn at_a_terminal_the_key_is_asked_for_without_echo_which_comes_back_whatever_happens() {
    enum Then {
        Type(String),
        Signal(i32),
        HangUp,
    }
    for (then, code) in [
        (Then::Type(marker_key() + "\n"), None),
        // The terminal itself cuts this line, which must not pass for the key.
        (Then::Type(jwt(5_000) + "\n"), Some(1)),
        (Then::Type("bad key\n".into()), Some(1)),
        (Then::Type("\n".into()), Some(1)),
        (Then::Signal(libc::SIGINT), None),
        (Then::Signal(libc::SIGTERM), None),
        (Then::HangUp, Some(1)),
    ] {
        // Shown when it fails, and never the key.
        println!(
            "{}",
            match &then {
                Then::Type(text) => format!("{} bytes are typed", text.len()),
                Then::Signal(signal) => format!("signal {signal}"),
                Then::HangUp => "end of file".into(),
            }
        );
        let mut command = program();
        command.arg("--allow-token68");
        // SAFETY: a plain system call between fork and exec.
        unsafe {
            // Where these tests run in the background of a shell, it is ignored.
            command.pre_exec(|| {
                libc::signal(libc::SIGINT, libc::SIG_DFL);
                Ok(())
            });
        }
        let (mut child, mut stderr, mut ours, theirs) = asked(&mut command);
        match &then {
            Then::Type(text) => ours.write_all(text.as_bytes()).unwrap(),
            // SAFETY: the child has not been waited for, so the pid is its own.
            Then::Signal(signal) => unsafe {
                libc::kill(child.id() as i32, *signal);
            },
            // End of file, as Ctrl-D makes it.
            Then::HangUp => ours.write_all(b"\x04").unwrap(),
        }
        echo_is_back(&theirs, &mut stderr);
        if let Then::Type(text) = &then
            && code.is_none()
        {
            // It listens; nothing of the key was echoed.
            let seen = read_until(&mut stderr, "capabilities").expect("it listens");
            let _ = child.kill();
            let key = text.trim_end().as_bytes();
            assert!(!seen.windows(key.len()).any(|window| window == key));
        }
        let status = end_of(&mut child);
        if let Some(code) = code {
            assert_eq!(status.code(), Some(code));
        }
    }
}
