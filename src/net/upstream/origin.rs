//! The parts that all upstream connections share.

use std::rc::Rc;

use crate::connector::link::Link;
use crate::net::tls::TlsConnector;
use crate::process::egress::ConnectRequest;
use crate::process::upstream_users::UpstreamUsers;

/// Where upstream connections lead, and how they are made.
pub struct Origin {
    /// The TLS configuration; `None` if the upstream is in plain HTTP.
    pub tls: Option<TlsConnector>,
    /// The link to the connector.
    pub link: Rc<Link>,
    /// The request for a tunnel, if there is an egress proxy.
    pub proxy: Option<ConnectRequest>,
    /// The users who may hold the other end of a connection that carries a secret in plaintext;
    /// `None` if no connection does, or with `--upstream-uid any`.
    pub users: Option<UpstreamUsers>,
}
