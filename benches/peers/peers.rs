//! The measured programs and their configurations. All do the same job: they serve only
//! `POST /v1/responses`, add the key, speak TLS 1.3 to the upstream, check its certificate, keep
//! connections, and stream bodies. Each has one process and, if it can, one thread.

use std::ffi::OsStr;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{Cores, Running};

/// The names on the command line.
pub const NAMES: [&str; 4] = ["relay", "nginx", "haproxy", "reference"];

/// An installed program.
pub struct Peer {
    pub name: &'static str,
    pub binary: PathBuf,
    pub version: String,
}

/// The environment of the measurements: a folder, the upstream's port, the key and the cores.
pub struct Lab {
    /// The folder for the files of the programs.
    pub folder: PathBuf,
    pub upstream: u16,
    pub key: String,
    pub cores: Cores,
}

impl Peer {
    /// Finds the program, or returns the reason why it is left out.
    pub fn find(name: &str) -> Result<Peer, String> {
        let name = NAMES.into_iter().find(|n| *n == name).ok_or(format!("unknown peer: {name}"))?;
        let (binary, version) = match name {
            "relay" => (relay()?, "--version"),
            "nginx" => (on_path("nginx").ok_or("not installed (Debian: nginx)")?, "-v"),
            "haproxy" => (on_path("haproxy").ok_or("not installed (Debian: haproxy)")?, "-v"),
            _ => (reference()?, "--version"),
        };
        let output = Command::new(&binary).arg(version).output().map_err(|e| e.to_string())?;
        let text = [output.stdout, output.stderr].concat();
        let version = String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned();
        Ok(Peer { name, binary, version })
    }

    /// Starts the program and waits until it accepts connections.
    pub fn start(&self, lab: &Lab, more: &[&str]) -> io::Result<Running> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new(&self.binary);
        command.env_clear().env("HOME", &lab.folder).current_dir(&lab.folder);
        let ca = lab.folder.join("ca.pem");
        let url = format!("https://localhost:{}/v1/responses", lab.upstream);
        let mut stdin = String::new();
        match self.name {
            "nginx" => {
                let path = lab.write("nginx.conf", &nginx(lab, port, &ca))?;
                command.args([OsStr::new("-e"), OsStr::new("stderr"), OsStr::new("-c")]).arg(path);
            }
            "haproxy" => {
                let path = lab.write("haproxy.cfg", &haproxy(lab, port, &ca))?;
                command.args(["-db", "-q", "-f"]).arg(path);
            }
            name => {
                stdin = format!("{}\n", lab.key);
                if name == "reference" {
                    command.arg("responses-api-proxy").env("SSL_CERT_FILE", &ca);
                } else {
                    command.arg("--ca-file").arg(&ca).args(more);
                }
                command.args(["--port", &port.to_string(), "--upstream-url", &url]);
            }
        }
        Running::start(command, &stdin, port, &lab.cores)
    }
}

impl Lab {
    /// Writes a file that only this user can read, because it contains the key.
    fn write(&self, name: &str, text: &str) -> io::Result<PathBuf> {
        let path = self.folder.join(name);
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.create(true).write(true).truncate(true).mode(0o600).open(&path)?;
        io::Write::write_all(&mut file, text.as_bytes())?;
        Ok(path)
    }
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // On Debian, servers are in a folder that may be missing from a user's PATH.
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// `RELAY_BINARY`, or the release binary, which is built first.
fn relay() -> Result<PathBuf, String> {
    if let Some(binary) = std::env::var_os("RELAY_BINARY") {
        return std::fs::canonicalize(binary).map_err(|e| format!("RELAY_BINARY: {e}"));
    }
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--release", "--bin", "codex-responses-api-proxy"])
        .arg("--manifest-path")
        .arg(root.join("Cargo.toml"))
        .status();
    if !built.is_ok_and(|status| status.success()) {
        return Err("cannot be built; RELAY_BINARY names one that is".into());
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
    Ok(target.join("release/codex-responses-api-proxy"))
}

/// `CODEX_BIN`, or the program that npm has installed below `CODEX_PREFIX` or here: the program
/// itself, not the script that starts it.
fn reference() -> Result<PathBuf, String> {
    if let Some(binary) = std::env::var_os("CODEX_BIN") {
        return Ok(binary.into());
    }
    fn program(folder: &Path, depth: usize) -> Option<PathBuf> {
        let file = folder.join("bin/codex");
        if file.is_file() && folder.parent().is_some_and(|parent| parent.ends_with("vendor")) {
            return Some(file);
        }
        let entries = std::fs::read_dir(folder).ok()?.map_while(Result::ok);
        entries.filter(|_| depth > 0).find_map(|entry| program(&entry.path(), depth - 1))
    }
    let prefix = std::env::var_os("CODEX_PREFIX").map_or(PathBuf::from("."), PathBuf::from);
    program(&prefix.join("node_modules/@openai"), 6).ok_or(
        "not installed: npm install --prefix FOLDER @openai/codex, then CODEX_PREFIX=FOLDER".into(),
    )
}

fn nginx(lab: &Lab, port: u16, ca: &Path) -> String {
    let (folder, ca) = (lab.folder.display(), ca.display());
    let (upstream, key) = (lab.upstream, &lab.key);
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {folder}/nginx-{name}; "))
        .concat();
    format!(
        "daemon off; master_process off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr error;
events {{ worker_connections 8000; }}
http {{
  access_log off; server_tokens off; client_max_body_size 0; {temporary}
  keepalive_timeout 3600s; keepalive_requests 1000000000;
  upstream api {{
    server 127.0.0.1:{upstream}; keepalive 2048; keepalive_requests 1000000000; keepalive_timeout 3600s;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location = /v1/responses {{
      limit_except POST {{ deny all; }}
      proxy_pass https://api; proxy_http_version 1.1;
      proxy_set_header Host localhost:{upstream}; proxy_set_header Connection \"\";
      proxy_set_header Authorization \"Bearer {key}\";
      proxy_buffering off; proxy_request_buffering off; proxy_read_timeout 1h; proxy_send_timeout 1h;
      proxy_ssl_verify on; proxy_ssl_trusted_certificate {ca}; proxy_ssl_name localhost;
      proxy_ssl_server_name on; proxy_ssl_protocols TLSv1.3;
    }}
    location / {{ return 403; }}
  }}
}}
"
    )
}

fn haproxy(lab: &Lab, port: u16, ca: &Path) -> String {
    let (upstream, key, ca) = (lab.upstream, &lab.key, ca.display());
    format!(
        "global
  nbthread 1
  maxconn 8000
defaults
  mode http
  timeout connect 10s
  timeout client 1h
  timeout server 1h
  option http-no-delay
frontend local
  bind 127.0.0.1:{port} backlog 4096
  http-request deny deny_status 403 unless METH_POST {{ path /v1/responses }}
  http-request set-header Authorization \"Bearer {key}\"
  http-request set-header Host localhost:{upstream}
  default_backend api
backend api
  http-reuse always
  server api 127.0.0.1:{upstream} ssl verify required ca-file {ca} sni str(localhost) verifyhost localhost ssl-min-ver TLSv1.3 pool-purge-delay 1h
"
    )
}
