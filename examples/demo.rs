//! Shows one request end to end, on one machine and without a network. The upstream speaks TLS and
//! the Responses API. The relay is the real program with a random key. The client sends plain HTTP
//! and never sees the key.

#[path = "../src/main.rs"]
mod relay;
mod upstream;

use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

/// The environment variable that makes this program run as the relay. The demo sets it for its
/// child process.
const RELAY: &str = "RELAY_DEMO_CHILD";

/// The pause between the events of the upstream, so that they visibly arrive one by one.
const PAUSE: Duration = Duration::from_millis(150);

const BODY: &str = r#"{"model":"demo","stream":true,"input":"Say hello."}"#;

fn main() -> ExitCode {
    if std::env::var_os(RELAY).is_some() {
        return relay::main();
    }
    match demo() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A file that is removed when the demo ends.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The child process of the relay, which is killed when the demo ends, also after an error.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn demo() -> Result<(), Box<dyn Error>> {
    let mut random = [0; 20];
    fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    let key: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let key = format!("sk-demo-{key}");

    let identity = upstream::Identity::new()?;
    let ca = std::env::temp_dir().join(format!("relay-demo-{}.pem", std::process::id()));
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&ca)?
        .write_all(identity.ca.as_bytes())?;
    let ca = Temporary(ca);
    let (tell, seen) = channel();
    let port = upstream::serve(identity, move |request, stream| {
        let _ = tell.send(request.head.clone());
        upstream::stream_events(stream, PAUSE)
    })?;

    heading("The relay starts; the key comes through its stdin");
    let mut relay = Running(
        Command::new(std::env::current_exe()?)
            .env(RELAY, "1")
            .arg("--http-shutdown")
            .arg(format!("--upstream-url=https://localhost:{port}/v1/responses"))
            .arg("--ca-file")
            .arg(&ca.0)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?,
    );
    if let Some(mut stdin) = relay.0.stdin.take() {
        writeln!(stdin, "{key}")?;
    }
    let mut stderr = BufReader::new(relay.0.stderr.take().ok_or("no stderr")?);
    let mut line = String::new();
    stderr.read_line(&mut line)?;
    let address = line.trim_end().rsplit(' ').next().unwrap_or_default().to_owned();
    for _ in ["relay", "clients", "protections"] {
        stderr.read_line(&mut line)?;
    }
    if !line.contains("listening on") {
        return Err(line.into());
    }
    print!("{line}");

    heading("The client sends plain HTTP, without a key");
    let request = format!(
        "POST /v1/responses HTTP/1.1\r\nHost: {address}\r\nAccept: text/event-stream\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    println!("{}", request.replace('\r', ""));
    let started = Instant::now();
    let mut client = TcpStream::connect(&address)?;
    client.write_all(request.as_bytes())?;

    heading("The upstream's events stream back as they happen");
    let mut answer = BufReader::new(client);
    let mut events = 0;
    loop {
        line.clear();
        answer.read_line(&mut line)?;
        if let Some(name) = line.strip_prefix("event: ") {
            events += 1;
            print!("{:>6} ms  {name}", started.elapsed().as_millis());
        }
        if line.is_empty() || line == "0\r\n" {
            break;
        }
    }
    if events != upstream::events().len() {
        return Err(format!("{events} events arrived").into());
    }

    heading("What the upstream saw");
    let mut keys = 0;
    for line in seen.recv_timeout(Duration::from_secs(10))? {
        keys += usize::from(line == format!("Authorization: Bearer {key}"));
        let redacted = "*".repeat(key.len() - 4);
        println!("{}", line.replace(&key[..key.len() - 4], &redacted));
    }
    if keys != 1 {
        return Err("the key did not arrive exactly once".into());
    }

    heading("GET /shutdown");
    let mut client = TcpStream::connect(&address)?;
    write!(client, "GET /shutdown HTTP/1.1\r\nHost: {address}\r\n\r\n")?;
    let mut text = String::new();
    client.read_to_string(&mut text)?;
    println!("{}", text.lines().next().unwrap_or_default());
    println!("the relay ended: {}", relay.0.wait()?);
    Ok(())
}

fn heading(text: &str) {
    println!("\n== {text}");
}
