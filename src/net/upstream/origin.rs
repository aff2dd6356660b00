//! What all upstream connections of this process have in common.

use std::rc::Rc;

use crate::connector::link::Link;
use crate::net::tls::TlsConnector;
use crate::process::egress::ConnectRequest;
use crate::process::upstream_users::UpstreamUsers;

/// Where upstream connections lead, and how they are made.
pub struct Origin {
    /// TLS; `None` for a plain upstream.
    pub tls: Option<TlsConnector>,
    /// The link to the process that connects to the upstream or to the proxy.
    pub link: Rc<Link>,
    /// The request for a tunnel, if there is an egress proxy.
    pub proxy: Option<ConnectRequest>,
    /// The users who may hold the other end of a connection that carries a secret in plaintext;
    /// `None` if no connection does, or with `--upstream-uid any`.
    pub users: Option<UpstreamUsers>,
}
