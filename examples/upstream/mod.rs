//! A TLS server with the part of the Responses API that the demo and the client tests need.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// The text of the responses.
pub const MESSAGE: &str = "Hello from behind the relay.";

/// A received request.
pub struct Request {
    /// The request line and the field lines.
    pub head: Vec<String>,
    /// The body, without chunk framing.
    pub body: String,
}

impl Request {
    /// The value of the first field with this name.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head
            .iter()
            .filter_map(|line| line.split_once(": "))
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }
}

/// A new certificate authority, and a server certificate for localhost.
pub struct Identity {
    /// The authority's certificate, in PEM form.
    pub ca: String,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    /// Makes new keys and certificates.
    pub fn new() -> Result<Identity, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // The names differ, because OpenSSL treats a certificate whose issuer has the subject's
        // name as self-signed.
        params.distinguished_name.push(DnType::CommonName, "stub authority");
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let leaf = CertificateParams::new(vec!["localhost".into()])?.signed_by(&key, &ca)?;
        Ok(Identity {
            ca: ca.pem(),
            chain: vec![leaf.der().clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        })
    }

    /// The TLS configuration of the server.
    pub fn config(self) -> io::Result<ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                builder.with_no_client_auth().with_single_cert(self.chain, self.key)
            })
            .map_err(io::Error::other)
    }
}

/// The decrypted stream of a connection.
pub type Stream = StreamOwned<ServerConnection, TcpStream>;

/// Starts a server on 127.0.0.1 with a thread for each connection, and returns its port. `respond`
/// writes the response to each request. The server runs until the process ends.
pub fn serve(
    identity: Identity,
    respond: impl Fn(&Request, &mut Stream) -> io::Result<()> + Send + Sync + 'static,
) -> io::Result<u16> {
    let (config, respond) = (Arc::new(identity.config()?), Arc::new(respond));
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (config, respond) = (config.clone(), respond.clone());
            std::thread::spawn(move || {
                let _ = stream.set_nodelay(true);
                let connection = ServerConnection::new(config).map_err(io::Error::other)?;
                let mut stream = BufReader::new(StreamOwned::new(connection, stream));
                while let Some(request) = read_request(&mut stream)? {
                    respond(&request, stream.get_mut())?;
                }
                io::Result::Ok(())
            });
        }
    });
    Ok(port)
}

fn line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

fn read_request(stream: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut request = Request { head: Vec::new(), body: String::new() };
    loop {
        let line = line(stream)?;
        if line.is_empty() {
            break;
        }
        request.head.push(line);
    }
    if request.head.is_empty() {
        return Ok(None);
    }
    if let Some(length) = request.field("content-length") {
        let length: u64 = length.parse().map_err(io::Error::other)?;
        stream.take(length).read_to_string(&mut request.body)?;
    } else if request.field("transfer-encoding").is_some() {
        loop {
            let size = u64::from_str_radix(&line(stream)?, 16).map_err(io::Error::other)?;
            stream.take(size).read_to_string(&mut request.body)?;
            line(stream)?;
            if size == 0 {
                break;
            }
        }
    }
    Ok(Some(request))
}

/// The events of a streamed response with the text [`MESSAGE`]: the name and the data of each.
pub fn events() -> Vec<(&'static str, String)> {
    let response = |status: &str, output: &str| {
        format!(
            r#"{{"id":"resp_1","object":"response","created_at":0,"model":"stub","status":"{status}","output":[{output}],"parallel_tool_calls":true,"tool_choice":"auto","tools":[],"usage":{{"input_tokens":1,"input_tokens_details":{{"cached_tokens":0}},"output_tokens":5,"output_tokens_details":{{"reasoning_tokens":0}},"total_tokens":6}}}}"#
        )
    };
    let part = |text: &str| format!(r#"{{"type":"output_text","text":"{text}","annotations":[]}}"#);
    let item = |status: &str, content: &str| {
        format!(
            r#"{{"id":"msg_1","type":"message","role":"assistant","status":"{status}","content":[{content}]}}"#
        )
    };
    let at = r#""item_id":"msg_1","output_index":0,"content_index":0"#;
    let (begun, done) = (item("in_progress", ""), item("completed", &part(MESSAGE)));
    let mut events = vec![
        ("response.created", format!(r#""response":{}"#, response("in_progress", ""))),
        ("response.output_item.added", format!(r#""output_index":0,"item":{begun}"#)),
        ("response.content_part.added", format!(r#"{at},"part":{}"#, part(""))),
    ];
    for word in MESSAGE.split_inclusive(' ') {
        let delta = format!(r#"{at},"delta":"{word}","logprobs":[]"#);
        events.push(("response.output_text.delta", delta));
    }
    let text = format!(r#"{at},"text":"{MESSAGE}","logprobs":[]"#);
    events.push(("response.output_text.done", text));
    events.push(("response.content_part.done", format!(r#"{at},"part":{}"#, part(MESSAGE))));
    events.push(("response.output_item.done", format!(r#""output_index":0,"item":{done}"#)));
    events.push(("response.completed", format!(r#""response":{}"#, response("completed", &done))));
    events
        .into_iter()
        .enumerate()
        .map(|(n, (name, data))| {
            (name, format!(r#"{{"type":"{name}","sequence_number":{n},{data}}}"#))
        })
        .collect()
}

/// The whole response as one JSON object, for a request without `"stream": true`.
#[allow(dead_code, reason = "the demo streams")]
pub fn object() -> String {
    let last = events().pop().map(|(_, data)| data).unwrap_or_default();
    let start = last.find(r#"{"id""#).unwrap_or(0);
    last[start..last.len() - 1].to_owned()
}

/// Sleeps between two events, so that an observer sees them arrive one by one.
pub fn pace(time: Duration) {
    std::thread::sleep(time);
}

/// Writes the response as server-sent events, each in a TLS record of its own.
pub fn stream_events(stream: &mut Stream, pause: Duration) -> io::Result<()> {
    stream.write_all(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
    )?;
    stream.flush()?;
    for (name, data) in events() {
        let event = format!("event: {name}\ndata: {data}\n\n");
        write!(stream, "{:x}\r\n{event}\r\n", event.len())?;
        stream.flush()?;
        pace(pause);
    }
    stream.write_all(b"0\r\n\r\n")?;
    stream.flush()
}
