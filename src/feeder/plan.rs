//! What the feeder works with.

use crate::http1::url::Host;
use crate::net::report::Form;
use crate::net::tls::RootStore;
use crate::oidc::TokenExchange;
use crate::process::egress::ConnectRequest;
use crate::process::protections::Requirement;
use crate::process::upstream_users::{Reach, UpstreamUsers};

/// Everything that it needs. It is prepared in the feeder's own process.
pub struct Plan<'a> {
    /// Both requests.
    pub exchange: &'a TokenExchange,
    /// The way to the host of each step.
    pub hops: [Hop; 2],
    /// The uid and gid of `--user`.
    pub user: Option<(u32, u32)>,
    /// What must be in force.
    pub requirement: Requirement,
    /// What becomes of stderr.
    pub stderr: Stderr,
}

/// The way to one host.
pub struct Hop {
    /// The host to connect to: the endpoint's or the egress proxy's.
    pub host: Host,
    /// Its port.
    pub port: u16,
    /// What the egress proxy is asked for.
    pub proxy: Option<ConnectRequest>,
    /// Which addresses of the host are allowed.
    pub reach: Reach,
    /// The users who may own the other end, if a secret goes there unencrypted.
    pub users: Option<UpstreamUsers>,
    /// The roots for the endpoint's certificate; `None` for one without TLS.
    pub roots: Option<RootStore>,
}

/// What becomes of the feeder's stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stderr {
    /// Failed renewals are reported there.
    Kept(Form),
    /// It is left: the relay goes on in the background.
    Left,
}
