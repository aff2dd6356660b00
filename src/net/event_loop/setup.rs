//! The parts that the start gives to the loop.

use crate::connector::link::Link;
use crate::http1::request::Policy;
use crate::net::report::Form;
use crate::net::settings::Settings;
use crate::net::tls::TlsConnector;
use crate::process::allowed_users::AllowedUsers;
use crate::process::confine::Sandbox;
use crate::process::egress::ConnectRequest;
use crate::process::key_input::KeyInput;
use crate::process::key_ring::KeyRing;
use crate::process::server_info::ServerInfo;
use crate::process::service_manager::Notifier;
use crate::process::signals::Signals;
use crate::process::token::ClientToken;
use crate::process::upstream_users::UpstreamUsers;

/// The parts that the loop needs.
pub struct LoopSetup {
    /// One or two listeners on loopback.
    pub listeners: Vec<std::net::TcpListener>,
    /// Tells the service manager that requests are served, and later that the relay drains.
    pub notifier: Notifier,
    /// The signals that end the relay.
    pub signals: Signals,
    /// The `--server-info` file, which is emptied when the port is closed.
    pub server_info: Option<ServerInfo>,
    /// The key, and with `--rotate` the pages for further ones.
    pub keys: KeyRing,
    /// Where further keys come from.
    pub key_input: Option<KeyInput>,
    /// The TLS configuration; `None` if the upstream is in plain HTTP.
    pub tls: Option<TlsConnector>,
    /// The link to the connector.
    pub link: Link,
    /// The request to the egress proxy; `None` if there is no proxy.
    pub proxy: Option<ConnectRequest>,
    /// The users who may hold the other end of an upstream connection; `None` if any user may.
    pub upstream_users: Option<UpstreamUsers>,
    /// Which requests are allowed beyond the one route.
    pub policy: Policy,
    /// Limits and timeouts.
    pub settings: Settings,
    /// The form of lines on stderr: text, or JSON with `--access-log`.
    pub form: Form,
    /// The users of `--allow-uid`; `None` if every user may connect.
    pub allowed_users: Option<AllowedUsers>,
    /// The token of `--client-token-file`.
    pub client_token: Option<ClientToken>,
    /// Confines each thread.
    pub sandbox: Sandbox,
}
