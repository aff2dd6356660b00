//! From a command line to a relay that serves, in five phases.
//!
//! | phase | is made by | what is true from then on |
//! |---|---|---|
//! | [`Forked`] | [`Forked::new`] | the connector runs; nothing secret has been read |
//! | [`Prepared`] | [`Forked::prepare`] | everything that can fail without the key has been done |
//! | [`Keyed`] | [`Prepared::read_key`] | the key is in its pages; the file that it was read from is closed |
//! | [`Listening`] | [`Keyed::listen`] | the port is open, privileges are dropped, threads run |
//! | [`Confined`] | [`Listening::confine`] | this process is confined |
//!
//! Each phase consumes the one before, and nothing else can make one. So the key cannot be read
//! before the connector is forked, and the relay opens no port without a key. (A port that systemd
//! passes on is open before.) `--check` shares the first two phases and then continues in its own
//! way ([`Prepared::check`]).

mod check;
mod detach;
mod error;
mod feeder;
mod key;
mod prepare;
mod roots;
mod stderr;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use codex_responses_api_proxy::cli::Config;
use codex_responses_api_proxy::connector::{self, StartingConnector};
use codex_responses_api_proxy::feeder::{Feeder, FeederProtections};
use codex_responses_api_proxy::http1::url::Host;
use codex_responses_api_proxy::net::event_loop::{EventLoop, LoopSetup};
use codex_responses_api_proxy::net::report::Started;
use codex_responses_api_proxy::net::settings::Settings;
use codex_responses_api_proxy::net::tls::{RootStore, TlsConnector};
use codex_responses_api_proxy::process::allowed_users::AllowedUsers;
use codex_responses_api_proxy::process::confine::Sandbox;
use codex_responses_api_proxy::process::detach::ParentReport;
use codex_responses_api_proxy::process::egress::ConnectRequest;
use codex_responses_api_proxy::process::filter::Descriptors;
use codex_responses_api_proxy::process::harden::{self, Beginning};
use codex_responses_api_proxy::process::key_input::KeyInput;
use codex_responses_api_proxy::process::key_ring::KeyRing;
use codex_responses_api_proxy::process::listeners::Listeners;
use codex_responses_api_proxy::process::protections::{Callers, Protections};
use codex_responses_api_proxy::process::server_info::{Later, ServerInfo};
use codex_responses_api_proxy::process::service_manager::{ActivationError, Handover, Notifier};
use codex_responses_api_proxy::process::signals::{SessionOrigin, Signals};
use codex_responses_api_proxy::process::sys::{self, ProtectionKey, SecretMemory};
use codex_responses_api_proxy::process::token::ClientToken;
use codex_responses_api_proxy::process::upstream_users::{Reach, UpstreamUsers};

pub use detach::{Role, detach};
pub use error::{StartError, usage};
pub use feeder::forget_environment;
pub use stderr::Stderr;

use error::loop_failed;

/// The connector has been forked. Nothing secret has been read.
pub struct Forked<'a> {
    config: &'a Config,
    beginning: Beginning,
    handover: Handover,
    connector: connector::NewConnector,
    feeder: Option<Feeder>,
}

/// Everything that can fail without the key has been done. The key has not been read.
pub struct Prepared<'a> {
    plan: Plan<'a>,
    roots: RootStore,
}

/// The result of the preparation: settings, opened files, users.
struct Plan<'a> {
    config: &'a Config,
    beginning: Beginning,
    handover: Handover,
    connector: StartingConnector,
    feeder: Option<Feeder>,
    next_hop: NextHop,
    /// A note about certificates of `--ca-file` that cannot be roots; empty if there are none.
    skipped_roots: String,
    /// The settings, with `--max-connections` lowered if the limit on open files requires it.
    settings: Settings,
    /// The ids of `--user`.
    user: Option<(u32, u32)>,
    /// Where the other end may be if the connection carries a secret in plaintext.
    clear_reach: Option<Reach>,
    upstream_users: Option<UpstreamUsers>,
    allowed_users: Option<AllowedUsers>,
    token: Option<ClientToken>,
    notifier: Notifier,
    descriptors: Descriptors,
    sandbox: Sandbox,
    /// Reported after the start lines.
    warnings: Vec<String>,
}

/// The host that the connector connects to: the upstream or the egress proxy.
struct NextHop {
    host: Host,
    port: u16,
    /// The request to the egress proxy; `None` if there is no proxy.
    proxy: Option<ConnectRequest>,
}

/// The key has been read, and the file that it was read from is closed.
pub struct Keyed<'a> {
    plan: Plan<'a>,
    /// `None` if the upstream is in plain HTTP.
    tls: Option<TlsConnector>,
    keys: KeyRing,
    key_input: Option<KeyInput>,
    feeder: Option<FeederProtections>,
}

/// The port is open, the privileges are gone, and all threads run.
pub struct Listening<'a> {
    config: &'a Config,
    event_loop: EventLoop,
    port: u16,
    so_far: ProtectionsSoFar,
    warnings: Vec<String>,
}

/// The part of [`Protections`] that is known before this process is confined.
struct ProtectionsSoFar {
    beginning: Beginning,
    memory: SecretMemory,
    protection_key: ProtectionKey,
    search: &'static str,
    user: Option<(u32, u32)>,
    sandbox: Sandbox,
    feeder: Option<FeederProtections>,
    notes: Vec<String>,
}

/// The relay is confined and can serve.
pub struct Confined<'a> {
    config: &'a Config,
    event_loop: EventLoop,
    port: u16,
    /// This process, for the service manager.
    pid: u32,
    protections: Protections,
    warnings: Vec<String>,
}

impl<'a> Forked<'a> {
    /// Forks the connector. Nothing secret has been read yet, so the connector has no copy of a
    /// secret.
    pub fn new(
        config: &'a Config,
        beginning: Beginning,
        handover: Handover,
    ) -> Result<Forked<'a>, StartError> {
        if handover.is_activated() && config.port != 0 {
            return Err(usage(ActivationError::Port.to_string()));
        }
        let beginning =
            if config.no_sandbox { beginning } else { beginning.deny_executable_memory() };
        harden::empty_bounding_set()?;
        // The feeder first: it then has no end of the connector's link.
        let feeder = match config.token_exchange() {
            Some(exchange) if !config.check => Some(feeder::fork(config, exchange)?),
            _ => None,
        };
        let connector = connector::fork(!config.no_sandbox).map_err(|error| {
            format!("cannot start the connector ({error}); raise ulimit -n and ulimit -u")
        })?;
        Ok(Forked { config, beginning, handover, connector, feeder })
    }
}

impl Plan<'_> {
    /// Notes for the start line: roots, proxy, users, listeners, limits.
    fn notes(&self, listeners: &Listeners) -> Vec<String> {
        let mut notes = Vec::new();
        if !self.skipped_roots.is_empty() {
            notes.push(self.skipped_roots.clone());
        }
        let NextHop { host, port, proxy } = &self.next_hop;
        if proxy.is_some() {
            notes.push(format!("upstream through the proxy {host}:{port}"));
        }
        match (&self.upstream_users, self.clear_reach) {
            (Some(users), _) => notes.push(users.describe()),
            (None, Some(_)) => {
                notes.push("A LOCAL UPSTREAM MAY BELONG TO ANY USER (--upstream-uid any)".into());
            }
            (None, None) => {}
        }
        if self.allowed_users.as_ref().is_some_and(AllowedUsers::needs_tables) {
            notes.push("--allow-uid by /proc/net/tcp".into());
        }
        if listeners.is_alone() && !self.handover.is_activated() {
            notes.push("127.0.0.1 only, as there is no ::1".into());
        }
        if self.handover.is_activated()
            && let Some(address) = listeners.unheld()
        {
            let address = SocketAddr::new(address, listeners.port);
            notes.push(format!(
                "ANOTHER USER MAY LISTEN ON {address}, which clients of \"localhost\" may try (add \
                 ListenStream={address})"
            ));
        }
        if self.settings.max_connections < self.config.settings.max_connections {
            let lowered = self.settings.max_connections;
            notes
                .push(format!("--max-connections lowered to {lowered} by the limit on open files"));
        }
        notes
    }
}

impl<'a> Keyed<'a> {
    /// Takes over the signals, opens the port and the server-info file, drops the privileges, and
    /// starts the threads, which confine themselves.
    pub fn listen(self, stderr: Stderr) -> Result<Listening<'a>, StartError> {
        let Keyed { mut plan, tls, mut keys, key_input, feeder } = self;
        let config = plan.config;
        let session = if config.detach { SessionOrigin::Own } else { SessionOrigin::Inherited };
        let signals = Signals::take_over(session)
            .map_err(|error| format!("cannot receive signals ({error}); raise ulimit -n"))?;
        let handed_over = plan.handover.take_listeners().map_err(|error| error.to_string())?;
        let listeners = match handed_over {
            Some(listeners) => listeners,
            None => Listeners::bind(config.port).map_err(|error| error.to_string())?,
        };
        let port = listeners.port;
        let server_info = open_server_info(config, port)?;
        let with_path = server_info.as_ref().zip(config.server_info.as_deref());
        plan.warnings.extend(with_path.and_then(|(info, path)| info.warning(path)));
        harden::drop_privileges(plan.user)?;
        // A stream is not emptied: it may be the log.
        let of_file = server_info.as_ref().filter(|info| info.is_file());
        let sandbox = plan.sandbox.with_descriptors(Descriptors {
            server_info: of_file.map(|file| file.as_fd().as_raw_fd()),
            ..plan.descriptors
        });
        let so_far = ProtectionsSoFar {
            beginning: plan.beginning,
            memory: keys.memory(),
            protection_key: keys.protection_key(),
            search: match keys.current().is_searched_for() {
                true => "responses searched for the key",
                false => "responses not searched for the key (shorter than 16 bytes)",
            },
            user: plan.user,
            sandbox,
            feeder,
            notes: plan.notes(&listeners),
        };
        let event_loop = EventLoop::new(LoopSetup {
            listeners: listeners.sockets,
            notifier: plan.notifier,
            signals,
            server_info,
            keys,
            key_input,
            tls,
            link: plan.connector.link(),
            proxy: plan.next_hop.proxy,
            upstream_users: plan.upstream_users,
            policy: config.policy(),
            settings: plan.settings,
            form: stderr.form(),
            allowed_users: plan.allowed_users,
            client_token: plan.token,
            sandbox,
        })
        .map_err(loop_failed)?;
        Ok(Listening { config, event_loop, port, so_far, warnings: plan.warnings })
    }
}

impl<'a> Listening<'a> {
    /// Leaves the parent's session and descriptors (`--detach`), writes the server-info file and
    /// confines this process. The threads and the connector are confined already.
    pub fn confine(self, parent: &mut ParentReport) -> Result<Confined<'a>, StartError> {
        let Listening { config, mut event_loop, port, so_far, warnings } = self;
        let ProtectionsSoFar {
            beginning,
            memory,
            protection_key,
            search,
            user,
            sandbox,
            feeder,
            notes,
        } = so_far;
        parent
            .go_to_background(event_loop.stdin())
            .map_err(|error| format!("--detach: {error}"))?;
        let pid = std::process::id();
        sys::prefault_code();
        let sealed = sys::seal_program();
        sandbox.look_at_others()?;
        let uid = sys::user_id();
        let connector = connector::report(event_loop.link())?;
        // The file is published last: after it, only the confinement of this process can fail.
        let published = event_loop.publish();
        published.map_err(|error| no_server_info(config, &error))?;
        let read_back = event_loop.confine()?;
        let protections = Protections {
            beginning,
            memory,
            protection_key,
            search: Some(search),
            callers: callers(config),
            user,
            uid,
            sandbox,
            read_back,
            sealed,
            connector,
            feeder,
            notes,
        };
        protections.fulfil(config.requirement())?;
        Ok(Confined { config, event_loop, port, pid, protections, warnings })
    }
}

impl Confined<'_> {
    /// Reports the start, and serves until the relay is told to end.
    pub fn serve(self, stderr: Stderr, parent: &mut ParentReport) -> Result<(), StartError> {
        let started = Started {
            port: self.port,
            upstream: &self.config.upstream,
            rotation: self.config.rotation(),
            needs_token: self.config.client_token_file.is_some(),
            grace: self.config.settings.grace,
            protections: &self.protections,
        };
        let told = parent.tell(0, &stderr.start_lines(&started, &self.warnings));
        told.map_err(|_| {
            "--detach: the waiting parent process has ended; start the relay again".to_owned()
        })?;
        self.event_loop.tell_ready(self.pid);
        let ended = self.event_loop.run().map_err(|error| {
            format!(
                "the event loop failed ({error}); start the relay again, and report it as a bug"
            )
        })?;
        Ok(ended?)
    }
}

fn callers(config: &Config) -> Callers {
    Callers::new(!config.allow_uids.is_empty(), config.client_token_file.is_some())
}

fn open_server_info(config: &Config, port: u16) -> Result<Option<ServerInfo>, StartError> {
    let Some(path) = &config.server_info else {
        return Ok(None);
    };
    let later = if config.user.is_some() { Later::OtherUser } else { Later::SameUser };
    let info = ServerInfo::open(path, port, std::process::id(), later)
        .map_err(|error| no_server_info(config, &error))?;
    if config.detach && info.is_same(io::stdout()) {
        let error = io::Error::other("stdout is closed by --detach");
        return Err(no_server_info(config, &error).into());
    }
    Ok(Some(info))
}

fn no_server_info(config: &Config, error: &io::Error) -> String {
    let path = config.server_info.as_deref().unwrap_or(Path::new(""));
    format!(
        "cannot write --server-info {}: {error}; name a file in a folder that the relay's user may \
         write to",
        path.display()
    )
}
