//! Tests that other implementations understand the forwarded requests in the same way. nginx and
//! HAProxy are each the upstream of every request that the vectors forward. They pass on the
//! request as they have understood it, and the test compares that with the intended request.

use std::fs;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::support::relay::{inherit, random_hex};
use super::support::{Relay, Request, Upstream, ok, skipped};
use super::vector_file::{self, Case, Outcome};

/// A real server in front of an upstream of ours. Ends with the value.
struct Server {
    child: Child,
    folder: PathBuf,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its own end takes its workers along.
        // SAFETY: the child has not been waited for, so the pid is its own.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Starts it with the configuration that `write` makes of its folder and of a socket that listens
/// already, by port and by descriptor: a client that connects before the server is ready waits
/// there.
fn start(name: &str, args: &[&str], write: impl Fn(&str, u16, RawFd) -> String) -> Option<Server> {
    let Some(program) = program(name) else {
        skipped(&format!("{name} is not installed"));
        return None;
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, fd) = (listener.local_addr().unwrap().port(), listener.as_raw_fd());
    let folder = std::env::temp_dir().join(format!("differential-{name}-{}", random_hex()));
    fs::create_dir(&folder).unwrap();
    let file = folder.join("config");
    fs::write(&file, write(folder.to_str().unwrap(), port, fd)).unwrap();
    let mut command = Command::new(&program);
    inherit(&mut command, fd);
    let child = command
        .args(args)
        .arg(&file)
        // What nginx takes its sockets from; HAProxy's configuration names it.
        .env("NGINX", format!("{fd};"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Some(Server { child, folder, port })
}

/// Field lines, names in lower case, without those that say how the body is framed.
fn fields(lines: &str) -> Vec<(String, String)> {
    let mut fields: Vec<_> = lines
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .filter(|(name, _)| !["content-length", "transfer-encoding"].contains(&name.as_str()))
        .collect();
    fields.sort();
    fields
}

fn check(name: &str, case: &Case, want: &[u8], got: &Request, authority: &str, key: &str) {
    let end = want.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or(0);
    let head: String = want[..end].iter().map(|byte| char::from(*byte)).collect();
    let body = want[end..].strip_prefix(b"\r\n\r\n").unwrap_or(want);
    let (line, lines) = got.head.split_once("\r\n").unwrap();
    assert_eq!(line, "POST /v1/responses HTTP/1.1", "{name}: {}", case.name);
    assert!(got.body == body, "{name}: {}: another body", case.name);
    let mut wanted = fields(&head);
    wanted.push(("authorization".into(), format!("Bearer {key}")));
    wanted.push(("host".into(), authority.into()));
    wanted.push(("accept-encoding".into(), "identity".into()));
    wanted.sort();
    let mut seen = fields(lines);
    // What the server adds for its own connection to us, and what it meets itself.
    seen.retain(|(name, _)| name != "connection");
    for fields in [&mut wanted, &mut seen] {
        fields.retain(|(name, _)| name != "expect");
    }
    assert!(seen == wanted, "{name}: {}: other fields", case.name);
}

/// Sends every case through the relay and the server; what the server understood is compared.
fn compare(name: &str, server: &Server, recorder: &Upstream) {
    let authority = format!("localhost:{}", server.port);
    let relay = Relay::to(&format!("http://{authority}/v1/responses")).start();
    let (mut compared, mut recorded) = (0, 0);
    for case in vector_file::load() {
        let forwarded: Vec<_> = case
            .outcomes
            .iter()
            .filter_map(|outcome| match outcome {
                Outcome::Forward(want) => Some(want),
                _ => None,
            })
            .collect();
        if forwarded.is_empty() {
            continue;
        }
        let mut client = relay.connect();
        client.try_send(&case.bytes);
        for outcome in &case.outcomes {
            let mut response = client.response();
            while response.status == 100 {
                response = client.response();
            }
            let fine = !matches!(outcome, Outcome::Forward(_)) || response.status == 200;
            assert!(fine, "{name}: {}: {}", case.name, response.head);
        }
        let requests = recorder.requests();
        assert_eq!(requests.len() - recorded, forwarded.len(), "{name}: {}", case.name);
        for (want, got) in forwarded.iter().zip(&requests[recorded..]) {
            check(name, &case, want, got, &authority, &relay.key);
        }
        compared += forwarded.len();
        recorded = requests.len();
    }
    assert!(compared >= 70, "{compared} requests");
}

#[test]
fn nginx_understands_what_was_meant() {
    let recorder = Upstream::plain(|peer| {
        while peer.request().is_some() {
            peer.write(ok(""));
        }
    });
    let to = recorder.port;
    let nginx = start("nginx", &["-c"], |folder, port, _| {
        format!(
            "daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error;
             user root;
             events {{ worker_connections 64; }}
             http {{
               access_log off;
               client_body_temp_path {folder}/1; proxy_temp_path {folder}/2;
               fastcgi_temp_path {folder}/3; uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
               large_client_header_buffers 4 128k;
               ignore_invalid_headers off; underscores_in_headers on;
               server {{
                 listen 127.0.0.1:{port};
                 location / {{
                   proxy_pass http://127.0.0.1:{to};
                   proxy_http_version 1.1;
                   proxy_set_header Host $http_host;
                 }}
               }}
             }}"
        )
    });
    if let Some(nginx) = nginx {
        compare("nginx", &nginx, &recorder);
    }
}

#[test]
fn haproxy_understands_what_was_meant() {
    let recorder = Upstream::plain(|peer| {
        while peer.request().is_some() {
            peer.write(ok(""));
        }
    });
    let to = recorder.port;
    let haproxy = start("haproxy", &["-db", "-f"], |_, _, fd| {
        format!(
            "global\n  tune.bufsize 131072\n  tune.http.maxhdr 256\n\
             defaults\n  mode http\n  timeout client 20s\n  timeout server 20s\n  timeout connect 5s\n\
             listen all\n  bind fd@{fd}\n  server one 127.0.0.1:{to}\n"
        )
    });
    if let Some(haproxy) = haproxy {
        compare("haproxy", &haproxy, &recorder);
    }
}
