//! Tests which users and which holders of a client token may use the relay, and `--max-requests`.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use super::support::{
    Client, DEADLINE, End, Relay, Upstream, needs_root, ok, post, reset_now, skipped, wait_for,
};
use super::upstream_users::{OTHER, STRANGER, Source, as_user, connect_from};

const SHUTDOWN: &str = "GET /shutdown HTTP/1.1\r\nHost: localhost\r\n\r\n";

fn me() -> String {
    // SAFETY: no memory is involved.
    unsafe { libc::geteuid() }.to_string()
}

#[test]
fn a_user_that_is_named_is_admitted_and_any_other_is_not() {
    let upstream = Upstream::answering(ok("fine"));
    let relay =
        Relay::to(&upstream.url()).args(["--allow-uid", "4242", "--allow-uid", &me()]).start();
    assert_eq!(relay.connect().send(post("", "{}")).response().status, 200);

    let upstream = Upstream::answering(ok("fine"));
    let mut relay =
        Relay::to(&upstream.url()).args(["--http-shutdown", "--allow-uid=4242"]).start();
    for request in [post("", "{}"), SHUTDOWN.to_owned()] {
        let mut client = relay.connect();
        let response = client.try_send(&request).response();
        assert_eq!((response.status, response.code()), (403, "user_not_allowed"));
        assert_eq!(response.fields("connection"), ["close"]);
        client.finish().expect_end(End::Fin);
    }
    assert!(relay.is_running());
    assert_eq!(upstream.connections(), 0, "an upstream connection for somebody who may not");
}

/// Sends a request with curl as another user; the status.
fn curl_as(uid: u32, port: u16) -> Option<String> {
    let url = format!("http://127.0.0.1:{port}/v1/responses");
    let output = Command::new("curl")
        .args([
            "--silent",
            "--output",
            "/dev/null",
            "--write-out",
            "%{http_code}",
            "--data",
            "{}",
            &url,
        ])
        .uid(uid)
        .output();
    match output {
        Ok(output) => Some(String::from_utf8(output.stdout).unwrap()),
        Err(_) => {
            skipped("curl is not installed");
            None
        }
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn another_users_process_is_told_apart_from_ours() {
    let upstream = Upstream::answering(ok("fine"));
    let relay = Relay::to(&upstream.url()).args(["--allow-uid", "65533"]).start();
    if let Some(status) = curl_as(65_533, relay.port) {
        assert_eq!(status, "200");
        assert_eq!(curl_as(65_532, relay.port).unwrap(), "403");
        assert_eq!(upstream.requests().len(), 1);
    }
    assert_eq!(relay.connect().send(post("", "{}")).response().code(), "user_not_allowed");
}

/// No process has the socket that is connected from this port of 127.0.0.1 to that one.
fn belongs_to_nobody(from: u16, to: u16) -> bool {
    let [from, to] = [from, to].map(|port| format!("0100007F:{port:04X}"));
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut sockets = rows.filter(|row| row[1] == from && row[2] == to);
    sockets.all(|row| row[9] == "0")
}

#[test]
fn a_client_that_sends_and_leaves_belongs_to_no_user() {
    let upstream = Upstream::answering(ok("fine"));
    let relay = Relay::to(&upstream.url()).args(["--access-log", "--allow-uid", &me()]).start();
    // While the relay is stopped, clients connect, send and leave; then it looks whose they were.
    relay.stop();
    let ports = [(); 20].map(|()| {
        let mut stream = TcpStream::connect(("127.0.0.1", relay.port)).unwrap();
        stream.write_all(post("", "{}").as_bytes()).unwrap();
        stream.local_addr().unwrap().port()
    });
    // A child that another test starts has a copy of each descriptor until it runs its program.
    wait_for(|| ports.iter().all(|port| belongs_to_nobody(*port, relay.port)));
    relay.signal(libc::SIGCONT);
    assert_eq!(relay.connect().send(post("", "{}")).response().status, 200);
    assert_eq!(upstream.requests().len(), 1, "only the client that is there is served");
    let refused = relay.line_with("\"user_refused\"");
    assert!(refused.contains("\"count\":20}"), "{refused}");
}

#[test]
fn without_netlink_the_tables_are_read() {
    // The kernel's table of connections says the same as its diagnosis socket.
    let upstream = Upstream::answering(ok("fine"));
    for (uid, status) in [(me(), 200), ("4242".to_owned(), 403)] {
        let relay = Relay::to(&upstream.url())
            .args(["--allow-uid", &uid])
            .refusing(libc::SYS_socket, Some(libc::AF_NETLINK), libc::EAFNOSUPPORT)
            .start();
        let line = relay.output_line("protections: ");
        assert!(line.contains("--allow-uid by /proc/net/tcp"), "{line}");
        assert_eq!(relay.connect().send(post("", "{}")).response().status, status);
    }
}

#[test]
fn a_user_that_is_none_is_wrong_use() {
    for flag in ["--allow-uid", "--upstream-uid"] {
        for value in ["", "no-such-user", "-1", "+1", "4294967295", "4294967296", "1x"] {
            let (code, _, err) = Relay::bare().args([&format!("{flag}={value}")]).run(b"");
            assert_eq!(code, 2, "{err}");
            assert!(err.contains(flag), "{err}");
        }
        let (_, _, err) = Relay::bare().args([flag, "no\x1b[31m-such-user"]).run(b"");
        assert!(err.contains("there is no user named no\\u{1b}[31m-such-user;"), "{err}");
    }
}

/// The name of this process's user, if it has one.
fn my_name() -> Option<String> {
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let mut words = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
    words.find(|words| words[2] == me()).map(|words| words[0].to_owned())
}

#[test]
fn users_are_known_by_their_names_too() {
    let Some(name) = my_name() else {
        return skipped("this user has no name");
    };
    let upstream = Upstream::answering(ok("fine"));
    let relay = Relay::to(&upstream.url()).args(["--allow-uid", &name]).start();
    assert_eq!(relay.connect().send(post("", "{}")).response().status, 200);
    let relay = Relay::to(&upstream.url()).args(["--allow-uid", "daemon"]).start();
    assert_eq!(relay.connect().send(post("", "{}")).response().code(), "user_not_allowed");
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_reset_connection_is_not_its_ports_next_users() {
    needs_root();
    for source in Source::ALL {
        let upstream = Upstream::answering(ok("fine"));
        let starter =
            Relay::to(&upstream.url()).args(["--access-log", "--allow-uid", &OTHER.to_string()]);
        let relay = source.of(starter).start();
        let to = SocketAddr::from(([127, 0, 0, 1], relay.port));
        relay.stop();
        let refused = as_user(STRANGER, move || {
            // From an address of its own, of which no other test takes the port meanwhile.
            let mut stream = connect_from(([127, 0, 0, 77], 0).into(), to);
            stream.write_all(post("", "{\"who\":\"stranger\"}").as_bytes()).unwrap();
            let from = stream.local_addr().unwrap();
            reset_now(&stream);
            from
        });
        // The port is free again once the socket is closed, and its next user may use the relay.
        wait_for(|| TcpListener::bind(refused).is_ok());
        let allowed = as_user(OTHER, move || connect_from(refused, to));
        relay.signal(libc::SIGCONT);
        let mut client = Client { stream: allowed, buffer: Vec::new(), date: None };
        client.stream.set_read_timeout(Some(DEADLINE)).unwrap();
        client.send(post("", "{\"who\":\"allowed\"}"));
        assert_eq!(client.response().status, 200);
        let bodies: Vec<_> = upstream.requests().into_iter().map(|request| request.body).collect();
        assert_eq!(bodies, [b"{\"who\":\"allowed\"}"], "{source:?}");
        // It was refused as it came, and not only found to have left when its turn came.
        let refused = relay.line_with("\"user_refused\"");
        assert!(refused.contains("\"count\":1}"), "{source:?}: {refused}");
    }
}

#[test]
fn the_uid_of_users_who_are_not_mapped_is_refused() {
    // Here all are mapped, or the harness could not say.
    let all = fs::read_to_string("/proc/self/uid_map").unwrap().contains(" 4294967295");
    let unmapped = fs::read_to_string("/proc/sys/kernel/overflowuid").unwrap();
    let unmapped = unmapped.trim();
    if all {
        let upstream = Upstream::answering(ok("fine"));
        let relay = Relay::to(&upstream.url()).args(["--allow-uid", unmapped]).start();
        assert_eq!(relay.connect().send(post("", "{}")).response().code(), "user_not_allowed");
    }
    let in_a_user_namespace = |flag: &str| {
        let starter = Relay::bare().args(["--upstream-url", "http://localhost/", flag, unmapped]);
        starter.command(|command| {
            // SAFETY: between fork and exec it makes one system call.
            unsafe {
                command.pre_exec(|| match libc::unshare(libc::CLONE_NEWUSER) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                })
            };
        })
    };
    // SAFETY: no memory is involved; the child ends at once.
    let may = unsafe {
        match libc::fork() {
            0 => libc::_exit(libc::unshare(libc::CLONE_NEWUSER)),
            child => {
                let mut status = 0;
                libc::waitpid(child, &mut status, 0);
                status == 0
            }
        }
    };
    if !may {
        return skipped("user namespaces are not to be had here");
    }
    for flag in ["--allow-uid", "--upstream-uid"] {
        let (code, _, err) = in_a_user_namespace(flag).run(b"sk-key\n");
        assert_eq!(code, 2, "{err}");
        assert!(err.contains(&format!("{flag} {unmapped}: in this user namespace")), "{err}");
    }
}

/// So many bytes of read(2), readv(2) and pread(2) calls have been made by a process.
fn reads(relay: &Relay) -> usize {
    let io = fs::read_to_string(format!("/proc/{}/io", relay.pid())).unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix("syscr: ")).unwrap();
    line.parse().unwrap()
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn one_read_of_the_tables_serves_all_that_were_accepted_with_it() {
    needs_root();
    let relay = Source::Proc
        .of(Relay::to("https://localhost/v1/responses").args(["--allow-uid", "4242"]))
        .start();
    // Connections that come together, and what they cost in calls.
    let cost = |count: usize| {
        relay.stop();
        let before = reads(&relay);
        let clients: Vec<_> = (0..count).map(|_| relay.connect()).collect();
        relay.signal(libc::SIGCONT);
        for mut client in clients {
            let response = client.send(post("", "{}")).response();
            assert_eq!(response.code(), "user_not_allowed");
        }
        reads(&relay) - before
    };
    // Other tests make the tables longer and shorter meanwhile.
    let few = (0..5).map(|_| cost(1)).max().unwrap();
    let many = cost(50);
    assert!(few >= 2 && many < 10 * few, "{few} reads for one, {many} for 50");
}

/// A file that is gone with the value.
struct TokenFile(PathBuf);

impl TokenFile {
    fn new(name: &str, bytes: &[u8]) -> TokenFile {
        let path = std::env::temp_dir().join(format!("token-{}-{name}", std::process::id()));
        fs::write(&path, bytes).unwrap();
        // Whatever the umask of the tests is.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        TokenFile(path)
    }

    fn arguments(&self) -> [&str; 2] {
        ["--client-token-file", self.0.to_str().unwrap()]
    }
}

impl Drop for TokenFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn who_shows_the_token_is_served_and_the_upstream_never_sees_it() {
    let token = "token-0123456789.abc~+/=";
    for end in ["", "\n", "\r\n"] {
        let file =
            TokenFile::new(&format!("right{}", end.len()), format!("{token}{end}").as_bytes());
        let upstream = Upstream::answering(ok("fine"));
        let relay = Relay::to(&upstream.url()).args(file.arguments()).start();
        for scheme in ["Bearer", "bearer"] {
            let fields = format!("Authorization: {scheme} {token}\r\n");
            assert_eq!(relay.connect().send(post(&fields, "{}")).response().status, 200);
        }
        for request in upstream.requests() {
            assert!(!request.head_without_key(&relay.key).contains(token));
        }
    }
}

#[test]
fn who_does_not_show_it_gets_401() {
    let file = TokenFile::new("wrong", b"0123456789abcdef\n");
    let upstream = Upstream::answering(ok("fine"));
    let mut relay =
        Relay::to(&upstream.url()).args(["--http-shutdown"]).args(file.arguments()).start();
    let mut client = relay.connect();
    for fields in [
        "",
        "Authorization: Bearer 0123456789abcdee\r\n",
        "Authorization: Bearer 0123456789abcde\r\n",
        "Authorization: Bearer 0123456789abcdef0\r\n",
        "Authorization: Bearer 0123456789ABCDEF\r\n",
        "Authorization: Bearer\r\n",
        "Authorization: \r\n",
        "Authorization: Basic 0123456789abcdef\r\n",
        "Authorization: 0123456789abcdef\r\n",
        "Proxy-Authorization: Bearer 0123456789abcdef\r\n",
        "Authorization: Bearer 0123456789abcdef\r\nAuthorization: Bearer 0123456789abcdef\r\n",
    ] {
        let response = client.send(post(fields, "{}")).response();
        assert_eq!((response.status, response.code()), (401, "client_token_required"), "{fields}");
        assert_eq!(response.fields("www-authenticate"), ["Bearer"]);
    }
    assert_eq!(upstream.requests().len(), 0);
    assert_eq!(client.send(SHUTDOWN).response().code(), "client_token_required");
    assert!(relay.is_running());
    // The reference's curl line ends it with `-H "Authorization: Bearer TOKEN"`.
    let field = "Authorization: Bearer 0123456789abcdef\r\n\r\n";
    let shutdown = SHUTDOWN.replace("\r\n\r\n", &format!("\r\n{field}"));
    assert_eq!(relay.connect().send(shutdown).response().status, 200);
    assert_eq!(relay.exit_code(), 0);
}

#[test]
fn a_token_file_that_cannot_be_used_is_named() {
    let long = vec![b'a'; 100_000];
    for (name, bytes) in
        [("empty", &b""[..]), ("line", b"\n"), ("space", b"a b\n"), ("long", &long)]
    {
        let file = TokenFile::new(name, bytes);
        let (code, _, err) = Relay::bare().args(file.arguments()).run(b"sk-key\n");
        assert_eq!(code, 1, "{err}");
        assert!(err.contains("--client-token-file"), "{err}");
        assert!(err.contains(file.0.to_str().unwrap()), "{err}");
    }
    let short = TokenFile::new("short", b"0123456789abcde\n");
    let (code, _, err) = Relay::bare().args(short.arguments()).run(b"sk-key\n");
    assert_eq!(code, 1);
    assert!(err.contains("random token of 16 bytes or more"), "{err}");
    let missing = ["--client-token-file", "/no/such/file"];
    let (code, _, err) = Relay::bare().args(missing).run(b"sk-key\n");
    assert_eq!(code, 1);
    assert!(err.contains("/no/such/file"), "{err}");
}

#[test]
fn a_token_file_that_others_may_write_is_refused_and_one_they_may_read_is_warned_about() {
    let file = TokenFile::new("mode", b"0123456789abcdef\n");
    let set = |mode| fs::set_permissions(&file.0, fs::Permissions::from_mode(mode)).unwrap();
    for mode in [0o620, 0o602, 0o666] {
        set(mode);
        let (code, _, err) = Relay::bare().args(file.arguments()).run(b"sk-key\n");
        assert_eq!(code, 1, "{err}");
        assert!(err.contains(file.0.to_str().unwrap()) && err.contains("chmod go-w it"), "{err}");
    }
    for (mode, warned) in [(0o600, false), (0o400, false), (0o644, true), (0o640, true)] {
        set(mode);
        let mut relay = Relay::bare().args(file.arguments()).start();
        relay.signal(libc::SIGTERM);
        assert_eq!(relay.exit_code(), 0);
        let output = String::from_utf8(relay.output()).unwrap();
        assert_eq!(output.contains("warning: ") && output.contains("chmod go-r it"), warned);
    }
}

#[test]
#[cfg_attr(not(root), ignore = "needs root")]
fn a_token_file_of_the_agents_own_is_taken_as_in_the_readme() {
    needs_root();
    let file = TokenFile::new("agents", b"0123456789abcdef\n");
    fs::set_permissions(&file.0, fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(&file.0, Some(65_533), None).unwrap();
    let upstream = Upstream::answering(ok("fine"));
    let relay = Relay::to(&upstream.url()).args(file.arguments()).start();
    let fields = "Authorization: Bearer 0123456789abcdef\r\n";
    assert_eq!(relay.connect().send(post(fields, "{}")).response().status, 200);
    assert!(!String::from_utf8(relay.output()).unwrap().contains("warning"));
}

#[test]
fn so_many_requests_are_forwarded_and_no_more() {
    let upstream = Upstream::answering(ok("fine"));
    let mut relay =
        Relay::to(&upstream.url()).args(["--http-shutdown", "--max-requests", "3"]).start();
    let mut client = relay.connect();
    // What is refused here does not count.
    assert_eq!(client.send("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").response().status, 403);
    for _ in 0..3 {
        assert_eq!(client.send(post("", "{}")).response().status, 200);
    }
    for _ in 0..2 {
        let response = client.send(post("", "{}")).response();
        assert_eq!((response.status, response.code()), (429, "request_limit_reached"));
        let response = relay.connect().send(post("", "{}")).response();
        assert_eq!(response.status, 429);
    }
    assert_eq!(upstream.requests().len(), 3);
    assert_eq!(relay.connect().send(SHUTDOWN).response().status, 200);
    assert_eq!(relay.exit_code(), 0);
}

#[test]
fn requests_at_one_time_do_not_get_past_the_number() {
    let upstream = Upstream::answering(ok("fine"));
    let relay = Relay::to(&upstream.url()).args(["--max-requests", "5"]).start();
    let mut clients: Vec<_> = (0..20).map(|_| relay.connect()).collect();
    for client in &mut clients {
        client.send(post("", "{}"));
    }
    let statuses: Vec<u16> = clients.iter_mut().map(|client| client.response().status).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 5);
    assert_eq!(statuses.iter().filter(|status| **status == 429).count(), 15);
    assert_eq!(upstream.requests().len(), 5);
}

#[test]
fn a_number_of_requests_that_is_none_is_wrong_use() {
    for value in ["", "0", "-1", "+1", "1000000000001", "many"] {
        let (code, _, err) = Relay::bare().args(["--max-requests", value]).run(b"");
        assert_eq!(code, 2, "{err}");
        assert!(err.contains("--max-requests"), "{err}");
    }
}

#[test]
fn a_refused_user_is_heard_out() {
    // The 403 reaches a client that goes on sending.
    let relay = Relay::to("https://localhost/").args(["--allow-uid", "4242"]).start();
    let mut client = relay.connect();
    client.try_send(
        "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999\r\n\r\n",
    );
    client.try_send("x".repeat(999_999));
    assert_eq!(client.response().code(), "user_not_allowed");
    client.finish().expect_end(End::Fin);
}
