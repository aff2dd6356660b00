//! `--check`: makes one upstream connection with the code and the confinement of the relay. Each
//! step prints a line on stdout. The upstream sees a TLS handshake at most, never a request.

use std::fmt::{self, Write as _};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::buffer::{Scratch, TlsScratch};
use super::clock;
use super::limits::{CLIENT_READ, LONGEST_RECORD};
use super::timeouts::{CHECK_VERDICT, CONNECT};
use super::tls::{RecordingVerifier, TlsConnector};
use super::upstream::{Connection, Origin, StreamEnd, Upstream};
use crate::connector::link::{Dialed, Link};
use crate::http1::local_response::UpstreamFault;
use crate::process::confine::{ReadBack, Sandbox};
use crate::process::egress::ConnectRequest;
use crate::process::filter::Thread;
use crate::process::harden::HardenError;
use crate::process::upstream_users::UpstreamUsers;
use crate::x509::certificate::Certificate;

const UPSTREAM: Token = Token(0);
const CONNECTOR: Token = Token(1);

/// The parts that a check needs.
pub struct CheckSetup {
    /// The TLS configuration, and the verifier that records the certificate; `None` for an upstream
    /// in plain HTTP.
    pub tls: Option<(TlsConnector, Arc<RecordingVerifier>)>,
    /// The link to the connector.
    pub link: Link,
    /// The request to the egress proxy; `None` if there is no proxy.
    pub proxy: Option<ConnectRequest>,
    /// The users who may hold the other end of a connection that carries a secret in plaintext;
    /// `None` if no connection does, or with `--upstream-uid any`.
    pub upstream_users: Option<UpstreamUsers>,
    /// Confines the thread that runs the check.
    pub sandbox: Sandbox,
}

/// One check, which makes one upstream connection.
pub struct Check {
    poll: Poll,
    origin: Origin,
    verifier: Option<Arc<RecordingVerifier>>,
    sandbox: Sandbox,
    space: TlsScratch,
}

/// Why a check has failed.
#[derive(Debug)]
pub enum CheckError {
    /// This step failed, on the way to the upstream.
    Step(&'static str, UpstreamFault),
    /// The wait for events failed.
    Poll(io::Error),
}

impl fmt::Display for CheckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CheckError::Step(step, fault) => {
                write!(f, "{step}: {}{}", fault.response(), advice(*fault))
            }
            CheckError::Poll(error) => {
                write!(f, "cannot wait for the connection ({error}); try again")
            }
        }
    }
}

/// Advice that follows the message of a fault; empty if the message needs none.
fn advice(fault: UpstreamFault) -> &'static str {
    match fault {
        UpstreamFault::Dns => {
            " Check --upstream-url and /etc/resolv.conf; behind a proxy, set HTTPS_PROXY."
        }
        UpstreamFault::Refused | UpstreamFault::Unreachable | UpstreamFault::ConnectTimeout => {
            " Check --upstream-url and the network; behind a proxy, set HTTPS_PROXY."
        }
        UpstreamFault::TlsExpired => " Check the clock of this machine.",
        UpstreamFault::TlsBadCertificate => {
            " It has to be a server certificate (TLS Web Server Authentication) of X.509 version 3, \
             signed with SHA-256 or better by an issuer that may sign for this name."
        }
        UpstreamFault::TlsClientCertificate => {
            " Ask for an address that needs no client certificate, or use an upstream proxy that \
             has the certificate."
        }
        UpstreamFault::TlsFailed | UpstreamFault::Closed => {
            " Check that the port in --upstream-url speaks TLS 1.2 or 1.3, and that no proxy changes \
             the TLS connection."
        }
        UpstreamFault::ProxyDns
        | UpstreamFault::ProxyUnreachable
        | UpstreamFault::ProxyBadResponse => " Check HTTPS_PROXY.",
        UpstreamFault::ProxyAuthRequired => {
            " Put them into HTTPS_PROXY: http://USER:PASSWORD@HOST:PORT."
        }
        UpstreamFault::ProxyRefused(_) | UpstreamFault::ProxyTimeout => {
            " Ask its administrator to allow the host of --upstream-url, or name it in NO_PROXY."
        }
        _ => "",
    }
}

/// Prints one line: the step, then the text. Errors of stdout are ignored.
pub fn say(step: &str, text: &str) {
    // If stdout is closed, no process needs the lines.
    let _ = io::stdout()
        .write_all((format!("{step:<11} {text}").trim_end().to_owned() + "\n").as_bytes());
}

impl Check {
    /// Prepares a check before the thread is confined. Fails if the kernel refuses the poll or the
    /// registration of the link.
    pub fn new(setup: CheckSetup) -> io::Result<Check> {
        let poll = Poll::new()?;
        let link = Rc::new(setup.link);
        let fd = link.as_raw_fd();
        poll.registry().register(&mut SourceFd(&fd), CONNECTOR, Interest::READABLE)?;
        let (tls, verifier) = setup.tls.unzip();
        let space = TlsScratch {
            ciphertext_in: Scratch::new(CLIENT_READ + LONGEST_RECORD),
            plaintext_in: Scratch::new(CLIENT_READ + LONGEST_RECORD),
            ciphertext_out: Scratch::new(CLIENT_READ),
            record: Scratch::new(0),
        };
        let users = setup.upstream_users;
        let origin = Origin { tls, link, proxy: setup.proxy, users };
        Ok(Check { poll, origin, verifier, sandbox: setup.sandbox, space })
    }

    /// Confines the calling thread like the event loop of the relay.
    pub fn confine(&self) -> Result<ReadBack, HardenError> {
        let read_back = self.sandbox.confine(Thread::Loop)?;
        say("sandbox", &self.sandbox.to_string());
        Ok(read_back)
    }

    /// Connects, prints each step and closes the connection. Returns the first step that fails.
    pub fn run(mut self) -> Result<(), CheckError> {
        let mut events = Events::with_capacity(16);
        let start = Instant::now();
        let mut up = Upstream::new(UPSTREAM, None, start, CONNECT);
        let mut connected = None;
        loop {
            let now = Instant::now();
            let Check { poll, origin, space, .. } = &mut self;
            let result = up.advance(origin, poll.registry(), space, now);
            if let (Some(remote), Some(took)) = (up.remote(), connected.take()) {
                let took: Duration = took;
                say("connected", &format!("{remote} in {} ms", took.as_millis()));
            }
            if let Err(fault) = result {
                self.say_certificate();
                return Err(CheckError::Step(step(&up, fault), fault));
            }
            if let Some(connection) = up.connection() {
                return self.finish(connection, &mut events);
            }
            let timeout = up.wakes_at().map(|at| at.saturating_duration_since(now));
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result.map_err(CheckError::Poll)?,
            }
            for event in &events {
                if event.token() == UPSTREAM {
                    up.note(event);
                    continue;
                }
                match self.origin.link.receive() {
                    Ok(None) => {}
                    Ok(Some(Dialed { result, connect, resolved, .. })) => {
                        say_addresses(&resolved);
                        connected = Some(connect);
                        up.dialed(result);
                    }
                    Err(_) => up.dialed(Err(UpstreamFault::ConnectorFailed)),
                }
            }
        }
    }

    /// Prints the properties of the connection, once it is usable.
    fn finish(mut self, up: &mut Connection, events: &mut Events) -> Result<(), CheckError> {
        if self.origin.tls.as_ref().is_some_and(TlsConnector::was_asked_for_certificate) {
            self.await_verdict(up, events)?;
        }
        match up.tls() {
            Some(tls) => {
                let (version, group) = tls.negotiated();
                say("tls", &format!("{version}, {group}"));
                self.say_certificate();
            }
            None => say("tls", "none: the upstream is plain HTTP"),
        }
        say(
            "ok",
            "only a request tests the key: an empty one through the relay, -d '{}', gets 400 if the \
             key is valid and 401 if not",
        );
        Ok(())
    }

    /// Waits up to [`CHECK_VERDICT`] for an upstream that has asked for a client certificate to
    /// refuse the handshake. In TLS 1.3 the refusal comes after the handshake is complete for the
    /// client.
    fn await_verdict(
        &mut self,
        up: &mut Connection,
        events: &mut Events,
    ) -> Result<(), CheckError> {
        let until = Instant::now() + CHECK_VERDICT;
        loop {
            while up.has_news() {
                match up.read(&mut self.space, LONGEST_RECORD) {
                    StreamEnd::NotYet => {}
                    StreamEnd::Refused(fault) => {
                        self.say_certificate();
                        return Err(CheckError::Step("tls", fault));
                    }
                    StreamEnd::Orderly | StreamEnd::CutOff => return Ok(()),
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            match self.poll.poll(events, Some(left)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result.map_err(CheckError::Poll)?,
            }
            events
                .iter()
                .filter(|event| event.token() == UPSTREAM)
                .for_each(|event| up.note(event));
        }
    }

    /// Prints the issuer and the expiry of the certificate that the upstream has shown, if any.
    fn say_certificate(&self) {
        let Some(shown) = self.verifier.as_ref().and_then(|verifier| verifier.certificate()) else {
            return;
        };
        let Some(Certificate { issuer, not_after: (year, month, day) }) = Certificate::read(&shown)
        else {
            return say("certificate", "cannot be parsed");
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let today = now.as_secs() / 86_400;
        let last = clock::days(year, month, day);
        let left = match last.checked_sub(today) {
            Some(days) => format!("in {days} days"),
            None => format!("{} days ago", today - last),
        };
        let date = format!("{year:04}-{month:02}-{day:02}");
        say("certificate", &format!("issuer {issuer}, expires {date} ({left})"));
    }
}

fn say_addresses(addresses: &[Option<IpAddr>]) {
    let mut text = String::new();
    for address in addresses.iter().flatten() {
        let comma = if text.is_empty() { "" } else { ", " };
        let _ = write!(text, "{comma}{address}");
    }
    if !text.is_empty() {
        say("addresses", &text);
    }
}

/// The name of the step in which this fault occurred.
fn step(up: &Upstream, fault: UpstreamFault) -> &'static str {
    match fault {
        UpstreamFault::Dns | UpstreamFault::ProxyDns => "addresses",
        UpstreamFault::TlsUnknownIssuer
        | UpstreamFault::TlsWrongName
        | UpstreamFault::TlsExpired
        | UpstreamFault::TlsBadCertificate => "certificate",
        _ => up.step(),
    }
}
