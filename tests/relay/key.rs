//! Tests how the relay reads the key from a pipe, a file or a terminal, and the messages if there
//! is none.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, Command, Stdio};

use codex_responses_api_proxy::http1::limits;

use super::support::relay::{
    descriptors, emulated, end_of, inherit, marker_key, program, random_hex,
};
use super::support::{Relay, Upstream, needs_root, ok, post, read_until, skipped};

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

/// Starts a relay with `--allow-token68` and this key, the longest URL and the longest field for
/// the key if so asked, and looks at what the upstream sees.
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
    assert!(request.head.ends_with("\r\nContent-Length: 2\r\n\r\n") && request.body == b"{}");
    assert!(request.head.contains("aaa\r\n"));
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
        let response = format!("HTTP/1.1 200 OK\r\nX: {text}\r\nContent-Length: 0\r\n\r\n");
        let upstream = Upstream::answering(response);
        let relay = Relay::to(&upstream.url()).args(["--allow-token68"]).key(&key).start();
        let response = relay.connect().send(post("", "{}")).response();
        match whole {
            true => assert!(response.status == 200 && response.fields("x") == [&text], "withheld"),
            false => assert_eq!((response.status, response.code()), (502, "credential_reflected")),
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
    // SAFETY: both descriptors are new, and nothing else owns them.
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

/// A folder of its own, gone at the end.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new() -> Folder {
        let path = std::env::temp_dir().join(format!("key-{}", random_hex()));
        std::fs::create_dir(&path).unwrap();
        Folder(path)
    }

    /// A file of this mode that holds this.
    fn file(&self, name: &str, mode: u32, content: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What descriptor 0 of the relay is.
fn stdin_of(relay: &Relay) -> String {
    let link = std::fs::read_link(format!("/proc/{}/fd/0", relay.pid())).unwrap();
    link.to_str().unwrap().to_owned()
}

/// Starts it with these arguments, and nothing on stdin but what must not be read.
fn with_key_file(upstream: &Upstream, key: &str, args: &[&str]) -> Relay {
    let other = "sk-not-this-one-0123456789";
    let mut starter = Relay::to(&upstream.url()).args(args).key(other);
    let (mut relay, mut stdin) = starter.spawn_without_key(Stdio::piped());
    let _ = writeln!(stdin, "{other}");
    relay.key = key.to_owned();
    let line = relay.line_with("listening");
    relay.port = line.rsplit_once(':').unwrap().1.parse().unwrap();
    relay.line_with("protections: ");
    relay
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_key_file_is_read_in_place_of_stdin_through_links_and_pipes_and_closed() {
    needs_root();
    let (folder, key) = (Folder::new(), marker_key());
    let file = folder.file("key", 0o600, &format!("{key}\n"));
    let link = folder.0.join("link").to_str().unwrap().to_owned();
    std::os::unix::fs::symlink("key", &link).unwrap();
    let pipe = folder.0.join("pipe").to_str().unwrap().to_owned();
    let name = std::ffi::CString::new(pipe.clone()).unwrap();
    // SAFETY: the kernel reads a string that outlives the call.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    for path in [&file, &link, &pipe] {
        let writer = (path == &pipe).then(|| {
            let (pipe, key) = (pipe.clone(), key.clone());
            std::thread::spawn(move || std::fs::write(pipe, key).unwrap())
        });
        let upstream = Upstream::answering(ok("fine"));
        let relay = with_key_file(&upstream, &key, &["--key-file", path]);
        assert_eq!(relay.connect().send(post("", "{}")).response().status, 200);
        upstream.requests()[0].head_without_key(&key);
        if let Some(writer) = writer {
            writer.join().unwrap();
        }
        if emulated() {
            return;
        }
        assert_eq!(stdin_of(&relay), "/dev/null");
        for (_, target) in descriptors(relay.pid()) {
            assert!(!target.starts_with(&folder.0), "the key's file is still open");
        }
    }
}

#[test]
fn a_key_file_may_be_a_descriptor_as_a_shell_makes_it() {
    let key = marker_key();
    let (read, mut write) = std::io::pipe().unwrap();
    writeln!(write, "{key}").unwrap();
    drop(write);
    let upstream = Upstream::answering(ok("fine"));
    let path = format!("/dev/fd/{}", read.as_raw_fd());
    let starter = Relay::to(&upstream.url()).args(["--key-file", &path]);
    let mut starter = starter.command(|command| inherit(command, read.as_raw_fd()));
    let (mut relay, _stdin) = starter.spawn_without_key(Stdio::piped());
    let line = relay.line_with("listening");
    relay.port = line.rsplit_once(':').unwrap().1.parse().unwrap();
    relay.key = key.clone();
    assert_eq!(relay.connect().send(post("", "{}")).response().status, 200);
    upstream.requests()[0].head_without_key(&key);
}

#[test]
fn a_key_file_that_others_can_read_is_warned_about() {
    let (folder, key) = (Folder::new(), marker_key());
    for (mode, want) in [(0o644, "every local user"), (0o640, "its group"), (0o400, "")] {
        let file = folder.file(&format!("key-{mode:o}"), mode, &key);
        let upstream = Upstream::answering(ok("fine"));
        let relay = with_key_file(&upstream, &key, &["--key-file", &file]);
        if want.is_empty() {
            assert_eq!(relay.connect().send(post("", "{}")).response().status, 200);
            let output = String::from_utf8(relay.output()).unwrap();
            assert!(!output.contains("can be read"), "{output}");
        } else {
            let line = relay.line_with("can be read by");
            assert!(line.contains(want) && line.contains("chmod"), "{line}");
        }
    }
    let file = folder.file("key", 0o604, &key);
    let (code, _, err) =
        Relay::bare().args(["--require-hardening", "--key-file", &file]).run(b"sk-on-stdin\n");
    assert!(code != 0 && err.contains("a key file that not everybody can read"), "{err}");
}

/// Gives a user the permission to read a file, as systemd does with a credential (acl(5)).
fn let_read(path: &str, uid: u32) {
    let entry = |tag: u16, permissions: u16, id: u32| {
        [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    let (none, version) = (u32::MAX, 2u32.to_le_bytes().to_vec());
    let entries = [
        entry(0x01, 4, none),
        entry(0x02, 4, uid),
        entry(0x04, 0, none),
        entry(0x10, 4, none),
        entry(0x20, 0, none),
    ];
    let list = [version, entries.concat()].concat();
    let path = std::ffi::CString::new(path).unwrap();
    let name = c"system.posix_acl_access";
    // SAFETY: the kernel reads two strings and so many bytes, which outlive the call.
    let set = unsafe {
        libc::setxattr(path.as_ptr(), name.as_ptr(), list.as_ptr().cast(), list.len(), 0)
    };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_key_file_of_another_user_is_warned_about_and_a_credential_of_systemds_is_not() {
    needs_root();
    const RELAY: u32 = 65_532;
    const AGENT: u32 = 65_533;
    let (folder, key) = (Folder::new(), marker_key());
    std::fs::set_permissions(&folder.0, std::fs::Permissions::from_mode(0o755)).unwrap();
    let [theirs, own, credential, list] =
        ["theirs", "own", "credential", "list"].map(|name| folder.file(name, 0o400, &key));
    for (file, owner) in [(&theirs, AGENT), (&own, RELAY)] {
        std::os::unix::fs::chown(file, Some(owner), None).unwrap();
    }
    let_read(&credential, RELAY);
    let_read(&list, AGENT);
    // Whether the user is changed by the relay or by the one who starts it.
    let user = ["--user", "65532:65532"];
    for (file, args, readers) in [
        (&theirs, &[][..], Some("user 65533")),
        (&list, &[], Some("user 65533")),
        (&credential, &[], Some("user 65532")),
        (&own, &user, None),
        (&credential, &user, None),
        (&list, &user, Some("user 65533")),
    ] {
        let args = [args, &["--key-file", file]].concat();
        let mut relay = with_key_file(&Upstream::answering(ok("fine")), &key, &args);
        relay.signal(libc::SIGTERM);
        assert_eq!(relay.exit_code(), 0);
        let output = String::from_utf8(relay.output()).unwrap();
        let want = readers.map(|readers| format!("{file} can be read by {readers}"));
        assert_eq!(output.contains("can be read by"), want.is_some(), "{file}: {output}");
        assert!(want.is_none_or(|want| output.contains(&want)), "{file}: {output}");
    }
    let starter = Relay::bare().run_by(RELAY).key(&key).args(["--key-file", &credential]);
    let mut relay = starter.start();
    relay.signal(libc::SIGTERM);
    assert_eq!(relay.exit_code(), 0);
    let output = String::from_utf8(relay.output()).unwrap();
    assert!(!output.contains("can be read by"), "{output}");
    for file in [&theirs, &list] {
        let strict = ["--require-hardening", "--key-file", file];
        let (code, _, err) = Relay::bare().args(strict).run(b"sk-on-stdin\n");
        assert_eq!(code, 14, "{err}");
        assert!(err.contains("a key file that user 65533 cannot read"), "{err}");
    }
}

#[test]
fn what_is_no_key_file_is_refused_with_the_reason() {
    let folder = Folder::new();
    let missing = folder.0.join("missing").to_str().unwrap().to_owned();
    let empty = folder.file("empty", 0o600, "");
    for (path, want) in [
        (folder.0.to_str().unwrap(), "is neither a file nor a pipe"),
        ("/dev/zero", "is neither a file nor a pipe"),
        (&missing, "cannot be read"),
        (&empty, "API key must be provided"),
    ] {
        let (code, _, err) = Relay::bare().args(["--key-file", path]).run(b"sk-on-stdin\n");
        assert_eq!((code, err.lines().count()), (1, 1), "{err}");
        assert!(err.contains(want), "{err}");
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_file_on_stdin_is_not_open_any_more_once_the_key_is_read_and_a_pipe_is() {
    needs_root();
    if emulated() {
        return;
    }
    let (folder, key) = (Folder::new(), marker_key());
    let file = File::open(folder.file("key", 0o600, &key)).unwrap();
    let mut child = program().stdin(file).stderr(Stdio::piped()).spawn().unwrap();
    read_until(child.stderr.as_mut().unwrap(), "protections").expect("it starts");
    let target = std::fs::read_link(format!("/proc/{}/fd/0", child.id()));
    let _ = child.kill();
    end_of(&mut child);
    assert_eq!(target.unwrap().to_str(), Some("/dev/null"));
    let relay = Relay::bare().start();
    assert!(stdin_of(&relay).starts_with("pipe:"));
}

#[test]
fn a_key_that_also_stands_in_the_environment_is_wiped_there_and_reported() {
    let key = marker_key();
    let starter = Relay::bare().key(&key);
    let starter = starter.env("OPENAI_API_KEY", &key).env("X_NOTE", &format!("Bearer {key}"));
    let relay = starter.env("KEPT", "this").start();
    let lines = [(); 2].map(|()| relay.line_with("environment"));
    for name in ["OPENAI_API_KEY", "X_NOTE"] {
        assert!(lines.iter().any(|line| line.contains(&format!("env -u {name}"))), "{lines:?}");
    }
    if emulated() {
        return;
    }
    match std::fs::read(format!("/proc/{}/environ", relay.pid())) {
        Ok(environ) => {
            assert!(!environ.windows(key.len()).any(|text| text == key.as_bytes()));
            assert!(environ.windows(9).any(|text| text == b"KEPT=this"), "too much is wiped");
        }
        Err(error) => skipped(&format!("reading the environment of another process: {error}")),
    }
}

#[test]
fn a_key_that_also_stands_in_the_arguments_is_wiped_there_and_reported() {
    // An emulator lays the arguments out in its own way. tests/aarch64.sh runs this on a kernel.
    if emulated() {
        return;
    }
    let key = marker_key();
    // Port 0 is any; a name of a file may be anything.
    let file = std::env::temp_dir().join(format!("{key}.json"));
    let relay = Relay::bare().key(&key).args(["--server-info", file.to_str().unwrap()]).start();
    relay.line_with("the key was also in the arguments");
    let arguments = std::fs::read(format!("/proc/{}/cmdline", relay.pid())).unwrap();
    drop(relay);
    let _ = std::fs::remove_file(file);
    assert!(!arguments.windows(key.len()).any(|text| text == key.as_bytes()));
}

#[test]
fn an_inherited_descriptor_above_the_soft_limit_is_closed_without_close_range() {
    if emulated() {
        return;
    }
    let mark = Folder::new();
    let file = File::open(mark.file("inherited", 0o600, "x")).unwrap();
    let fd = file.as_raw_fd();
    // Root gets descriptors above its soft limit by lowering that afterwards.
    let high = move || {
        let limit = libc::rlimit { rlim_cur: 256, rlim_max: 4_096 };
        let more = libc::rlimit { rlim_cur: 4_096, rlim_max: 4_096 };
        // SAFETY: async-signal-safe calls on memory that outlives them.
        let done = unsafe {
            libc::setrlimit(libc::RLIMIT_NOFILE, &more) == 0
                && libc::dup2(fd, 3_000) == 3_000
                && libc::setrlimit(libc::RLIMIT_NOFILE, &limit) == 0
        };
        if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    let start = |listing: bool, error: i32| {
        let starter = Relay::bare().args(["--max-connections", "16"]).command(|command| {
            // SAFETY: between fork and exec it does no more than that.
            unsafe { command.pre_exec(high) };
        });
        let starter = starter.refusing(libc::SYS_close_range, None, error);
        if listing {
            starter.start()
        } else {
            starter.refusing(libc::SYS_getdents64, None, libc::ENOSYS).start()
        }
    };
    // With 0 the call seems to succeed and does nothing.
    for error in [libc::ENOSYS, 0] {
        let relay = start(true, error);
        let open = std::fs::read_link(format!("/proc/{}/fd/3000", relay.pid()));
        assert!(open.is_err(), "descriptor 3000 is still open");
        let output = String::from_utf8(relay.output()).unwrap();
        assert!(!output.contains("inherited descriptors"), "{output}");
        // Where they cannot be listed either, that is said.
        let line = start(false, error).line_with("inherited descriptors");
        assert!(line.contains("may still be open"), "{line}");
    }
    // Where hardening is required, it ends the start.
    let (code, _, err) = Relay::bare()
        .args(["--require-hardening"])
        .refusing(libc::SYS_close_range, None, libc::ENOSYS)
        .refusing(libc::SYS_getdents64, None, libc::ENOSYS)
        .run(b"sk-of-no-use");
    assert!(code == 14 && err.contains("may still be open"), "{code}: {err}");
}

#[test]
fn check_looks_at_the_key_file_and_does_not_read_it() {
    let folder = Folder::new();
    // The variable contains no key, so no warning is given.
    let open = folder.file("open", 0o604, "no key");
    let missing = folder.0.join("missing").to_str().unwrap().to_owned();
    let check = |path: &str| Relay::bare().args(["--check", "--key-file", path]);
    let (_, out, _) = check(&open).run(b"");
    assert!(out.contains("warning     --key-file") && out.contains("by every local user"), "{out}");
    let (_, out, _) = check(&missing).run(b"");
    assert!(out.contains("warning     --key-file") && out.contains("cannot be read"), "{out}");
    let (code, _, err) = check(&open).args(["--require-hardening"]).run(b"");
    assert!(code == 14 && err.contains("a key file that not everybody can read"), "{code}: {err}");
    let closed = folder.file("closed", 0o600, "no key");
    assert!(!check(&closed).run(b"").1.contains("warning"));
}

#[test]
fn what_kind_of_byte_stands_where_is_told_and_the_flag_only_where_it_helps() {
    for (key, want, helps) in [
        ("Bearer sk-0123", "it begins with \"Bearer \"", false),
        ("OPENAI_API_KEY=sk-0123", "it begins with NAME=", false),
        ("\u{feff}sk-0123", "it begins with a byte order mark", false),
        ("sk-01 23", "byte 6 is a space", false),
        ("'sk-0123'", "byte 1 is a quotation mark", false),
        ("sk-0123.x y", "byte 8 is one of", false),
        ("sk-0123.x", "add --allow-token68", true),
    ] {
        let (code, _, err) = Relay::bare().run(key.as_bytes());
        assert_eq!((code, err.lines().count()), (1, 1), "{err}");
        assert!(err.contains(want) && err.contains("--allow-token68") == helps, "{err}");
        assert!(!err.contains("0123"), "a part of the key is shown");
    }
}
