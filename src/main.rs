//! The order of life: harden, arguments, fork (`--detach`), connector, files, key, bind, server-info, privileges,
//! session (`--detach`), confine, run, exit code.

use std::fmt::Display;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::ExitCode;

use codex_responses_api_proxy::cli::{self, Command, Config, flags};
use codex_responses_api_proxy::connector;
use codex_responses_api_proxy::connector::wire::Target;
use codex_responses_api_proxy::http1::request;
use codex_responses_api_proxy::http1::url::{Host, Scheme};
use codex_responses_api_proxy::net::check as check_report;
use codex_responses_api_proxy::net::event_loop::{EventLoop, Setup};
use codex_responses_api_proxy::net::probe::probe;
use codex_responses_api_proxy::net::report::{self, Colour, Event, Form, Started};
use codex_responses_api_proxy::net::tls::{Connector, Recording, RootStore};
use codex_responses_api_proxy::process::allowed_users::AllowedUsers;
use codex_responses_api_proxy::process::confine::Sandbox;
use codex_responses_api_proxy::process::credential::{Credential, KeyError};
use codex_responses_api_proxy::process::detach::{self, ForkSide, Outcome, ParentReport};
use codex_responses_api_proxy::process::egress::{self, Egress, EgressError};
use codex_responses_api_proxy::process::filter::Descriptors;
use codex_responses_api_proxy::process::harden::{self, Beginning};
use codex_responses_api_proxy::process::key_source;
use codex_responses_api_proxy::process::listeners::Listeners;
use codex_responses_api_proxy::process::protections::{Callers, Protections};
use codex_responses_api_proxy::process::server_info::{Later, ServerInfo};
use codex_responses_api_proxy::process::service_manager::{ActivationError, Handover, Notifier};
use codex_responses_api_proxy::process::signals::{Session, Signals};
use codex_responses_api_proxy::process::sys;
use codex_responses_api_proxy::process::token::{ClientToken, Readers};
use codex_responses_api_proxy::process::upstream_users::{Reach, UpstreamUsers};
use codex_responses_api_proxy::users::{self, UserError};

mod check_command;
mod start_error;

use check_command::{Way, check};
use start_error::{FAILED, StartError, USAGE, no_connector, no_loop, usage};

/// How to write to stderr.
#[derive(Clone, Copy)]
struct Stderr {
    form: Form,
    colour: Colour,
}

codex_responses_api_proxy::run_first!(sys::first_steps);

/// Runs the relay until it is told to end.
pub fn main() -> ExitCode {
    let mut parent = ParentReport::default();
    let hardened = harden::base();
    let arguments = std::env::args_os().skip(1);
    let form = Form::of(arguments);
    report::end_on_panic(form);
    let stderr = Stderr { form, colour: Colour::of_stderr(form) };
    let beginning = match hardened {
        Ok(beginning) => beginning,
        Err(error) => return failed(&mut parent, stderr, &error, error.exit_code()),
    };
    let arguments = std::env::args_os().skip(1);
    let config = match cli::parse(arguments, |name| std::env::var_os(name)) {
        Ok(Command::Run(config)) => config,
        Ok(Command::Help) => return print(&flags::help()),
        Ok(Command::Version) => return print(&cli::version()),
        Ok(Command::Probe(port)) => {
            return match probe(port) {
                Ok(()) => print(&format!("a relay answers on 127.0.0.1:{port}\n")),
                Err(error) => failed(&mut parent, stderr, &error, FAILED),
            };
        }
        Err(error) => return failed(&mut parent, stderr, &error, USAGE),
    };
    let handover = Handover::take();
    if config.detach && !config.check {
        if config.access_log && !detach::is_stderr_kept() {
            let reason = "--access-log with --detach needs a file as stderr; add 2> FILE";
            return failed(&mut parent, stderr, &reason, USAGE);
        }
        match detach::fork() {
            Ok(ForkSide::Child(pipe)) => parent = pipe,
            Ok(ForkSide::Parent(start)) => {
                egress::wipe();
                return match start.outcome() {
                    Outcome::Told(code, lines) => {
                        let _ = parent.tell(code, &lines);
                        ExitCode::from(code)
                    }
                    Outcome::Died(reason) => failed(&mut parent, stderr, &reason, FAILED),
                };
            }
            Err(error) => {
                return failed(&mut parent, stderr, &format!("--detach: {error}"), FAILED);
            }
        }
    }
    match run(&config, (beginning, handover), stderr, &mut parent) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&mut parent, stderr, &error.reason, error.code),
    }
}

fn run(
    config: &Config,
    (beginning, mut handover): (Beginning, Handover),
    stderr: Stderr,
    parent: &mut ParentReport,
) -> Result<(), StartError> {
    if handover.is_activated() && config.port != 0 {
        return Err(usage(ActivationError::Port.to_string()));
    }
    let beginning = if config.no_sandbox { beginning } else { beginning.deny_executable_memory() };
    harden::empty_bounding_set()?;
    // Before anything secret is read: it keeps no copy of what this process has from here on.
    let forked = connector::fork(!config.no_sandbox).map_err(|error| {
        format!("cannot start the connector ({error}); raise ulimit -n and ulimit -u")
    })?;
    // Whatever can fail without the key fails before it is read.
    harden::can_start()?;
    let requirement = config.requirement();
    let egress = Egress::take(&config.upstream).map_err(|error| match error {
        EgressError::Url(..) => usage(error.to_string()),
        EgressError::Memory(_) => StartError::from(error.to_string()),
    })?;
    let (host, port, proxy) = match egress {
        Some(egress) => (egress.host, egress.port, Some(egress.request)),
        None => (config.upstream.host.clone(), config.upstream.port, None),
    };
    if matches!(host, Host::Name(_)) && !host.is_localhost() {
        harden::can_look_up()?;
    }
    let mut roots = RootStore::built_in(&config.upstream.host);
    let skipped_roots = match &config.ca_file {
        None => String::new(),
        Some((name, path)) => match roots.add(path) {
            Ok(0) => String::new(),
            Ok(n) => format!("{name}: certificates skipped, which cannot be roots: {n}"),
            Err(error) => return Err(format!("{name}: {} {error}", path.display()).into()),
        },
    };
    let wanted = 2 * config.max_connections as u64 + 64;
    let files = sys::raise_open_files(wanted);
    let max_connections = config.max_connections.min((files.saturating_sub(64) / 2) as usize);
    if max_connections == 0 {
        let reason = format!("the limit on open files ({files}) is too low; raise ulimit -n");
        return Err(reason.into());
    }
    let user = config.user.as_ref().map(users::with_group).transpose().map_err(no_user)?;
    let clear_reach = users::clear_reach(config, proxy.as_ref());
    // A proxy may be anywhere: what goes through it is sealed.
    let reach = clear_reach.filter(|_| proxy.is_none()).unwrap_or(Reach::Anywhere);
    let told = forked.tell(&Target { host: host.clone(), port, user, reach })?;
    let mut warnings: Vec<String> = config.likely_mistake().into_iter().collect();
    let token = match &config.client_token_file {
        Some(path) => Some(read_token(path, &mut warnings)?),
        None => None,
    };
    match &config.key_file {
        Some(path) if config.check => match key_source::look(path) {
            Ok(readers) => {
                requirement.key_file(readers)?;
                readers
                    .warning(path)
                    .iter()
                    .for_each(|warning| check_report::say("warning", warning));
            }
            // Where the relay will run, it may be another one.
            Err(error) => {
                check_report::say("warning", &format!("--key-file {} {error}", path.display()))
            }
        },
        Some(path) => {
            let readers = key_source::open(path)
                .map_err(|error| format!("--key-file {}: {error}", path.display()))?;
            requirement.key_file(readers)?;
            warnings.extend(readers.warning(path));
        }
        None => {}
    }
    let left_open = harden::close_inherited(handover.end(), told.fd());
    requirement.inherited(left_open.as_deref())?;
    warnings.extend(left_open);
    let notifier = handover.notifier().unwrap_or_else(|warning| {
        warnings.push(warning);
        Notifier::default()
    });
    sys::make_room_for_descriptors(files.min(wanted));
    let upstream_users = users::of_upstream(config, clear_reach, user).map_err(no_user)?;
    let peers = users::of_clients(config).map_err(no_user)?;
    let tables = [
        peers.as_ref().map(AllowedUsers::tables).unwrap_or_default(),
        upstream_users.as_ref().map(UpstreamUsers::tables).unwrap_or_default(),
    ];
    let descriptors = Descriptors { server_info: None, socket_tables: tables };
    let sandbox = sandbox(config, port).with_descriptors(descriptors);
    requirement.before_the_key(&beginning, &sandbox)?;
    if config.check {
        let way =
            Way { told, host, port, proxy, upstream_users, roots, skipped_roots, user, sandbox };
        return check(config, beginning, way);
    }
    let connector = match config.upstream.scheme {
        Scheme::Http => None,
        Scheme::Https => Some(Connector::new(roots, Recording::Off).map_err(no_connector)?.0),
    };
    let mut credential = read_key(config).map_err(|error| error.to_string())?;
    key_source::close(config.key_file.is_some()).map_err(|error| {
        format!("cannot close the key's file ({error}); give the key through a pipe")
    })?;
    warnings.extend(key_source::wipe_copies(&mut credential));
    requirement.memory(credential.memory())?;
    let session = if config.detach { Session::Own } else { Session::Inherited };
    let signals = Signals::take_over(session)
        .map_err(|error| format!("cannot take signals ({error}); raise ulimit -n"))?;

    let listeners = match handover.take_listeners().map_err(|error| error.to_string())? {
        Some(listeners) => listeners,
        None => Listeners::bind(config.port).map_err(|error| error.to_string())?,
    };
    let listening = listeners.port;
    let server_info = open_server_info(config, listening)?;
    let of_file = server_info.as_ref().zip(config.server_info.as_deref());
    warnings.extend(of_file.and_then(|(info, path)| info.warning(path)));
    harden::drop_privileges(user)?;
    let descriptors = Descriptors {
        server_info: server_info.as_ref().map(|file| file.as_fd().as_raw_fd()),
        ..descriptors
    };
    let sandbox = sandbox.with_descriptors(descriptors);
    let mut notes = Vec::new();
    if !skipped_roots.is_empty() {
        notes.push(skipped_roots);
    }
    if proxy.is_some() {
        notes.push(format!("upstream through the proxy {host}:{port}"));
    }
    match (&upstream_users, clear_reach) {
        (Some(users), _) => notes.push(users.describe()),
        (None, Some(_)) => {
            notes.push("A LOCAL UPSTREAM MAY BE ANY USER'S (--upstream-uid any)".into());
        }
        (None, None) => {}
    }
    if peers.as_ref().is_some_and(AllowedUsers::needs_tables) {
        notes.push("--allow-uid by /proc/net/tcp".into());
    }
    if listeners.is_alone() && !handover.is_activated() {
        notes.push("127.0.0.1 alone, as there is no ::1".into());
    }
    if max_connections < config.max_connections {
        notes.push(format!(
            "--max-connections lowered to {max_connections} by the limit on open files"
        ));
    }
    let (memory, lock) = (credential.memory(), credential.lock());
    let search = if credential.is_searched_for() {
        "answers searched for the key"
    } else {
        "answers not searched for the key (shorter than 16 bytes)"
    };
    let mut event_loop = EventLoop::new(Setup {
        listeners: listeners.sockets,
        notifier,
        signals,
        grace: config.grace,
        server_info,
        credential,
        connector,
        link: told.link(),
        proxy,
        upstream_users,
        policy: config.policy(),
        max_connections,
        client_timeout: config.client_timeout,
        upstream_timeout: config.upstream_timeout,
        form: stderr.form,
        peers,
        token,
        max_requests: config.max_requests,
        sandbox,
    })
    .map_err(no_loop)?;
    parent.leave().map_err(|error| format!("--detach: {error}"))?;
    // The process may not ask for it any more once it is confined.
    let pid = std::process::id();
    sys::prefault_code();
    let sealed = sys::seal_program();
    sandbox.look_at_others()?;
    let uid = sys::user_id();
    let connector_confined = connector::report(event_loop.link())?;
    // All other threads are confined, and nothing but this one's own confinement can fail any more.
    let published = event_loop.publish();
    published.map_err(|error| no_server_info(config, &error))?;
    let read_back = event_loop.confine()?;
    let callers = Callers::new(!config.allow_uids.is_empty(), config.client_token_file.is_some());
    let protections = Protections {
        beginning,
        memory,
        lock,
        search: Some(search),
        callers,
        user,
        uid,
        sandbox,
        read_back,
        sealed,
        connector: connector_confined,
        notes,
    };
    protections.fulfil(requirement)?;
    let started = Started {
        port: listening,
        upstream: &config.upstream,
        needs_token: config.client_token_file.is_some(),
        grace: config.grace,
        protections: &protections,
    };
    let mut lines = started.event(stderr.colour).render(stderr.form);
    for warning in &warnings {
        let text = format!("codex-responses-api-proxy: warning: {warning}");
        lines.push_str(&Event::new("warning", text).render(stderr.form));
    }
    let told = parent.tell(0, &lines);
    told.map_err(|_| "--detach: nobody waits for the start any more".to_owned())?;
    event_loop.tell_ready(pid);
    let ended = event_loop.run().map_err(|error| {
        format!("the event loop failed ({error}); start the relay again, and report it as a bug")
    })?;
    Ok(ended?)
}

fn open_server_info(config: &Config, port: u16) -> Result<Option<ServerInfo>, StartError> {
    let Some(path) = &config.server_info else {
        return Ok(None);
    };
    let later = if config.user.is_some() { Later::OtherUser } else { Later::SameUser };
    let info = ServerInfo::open(path, port, std::process::id(), later)
        .map_err(|error| no_server_info(config, &error))?;
    if config.detach && info.is_same(io::stdout()) {
        let error = io::Error::other("with --detach, stdout is left");
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

fn sandbox(config: &Config, port: u16) -> Sandbox {
    if config.no_sandbox { Sandbox::off() } else { Sandbox::new(port) }
}

fn no_user(error: UserError) -> StartError {
    match error {
        UserError::Clients(_) | UserError::Upstream(_) => StartError::from(error.to_string()),
        _ => usage(error.to_string()),
    }
}

fn read_token(path: &Path, warnings: &mut Vec<String>) -> Result<ClientToken, StartError> {
    let name = format!("--client-token-file {}", path.display());
    let (token, readers) =
        ClientToken::open(path).map_err(|error| StartError::from(format!("{name}: {error}")))?;
    if readers == Readers::Others {
        let reason = "can be read by others, who can then use the relay; chmod go-r it";
        warnings.push(format!("{name} {reason}"));
    }
    Ok(token)
}

fn read_key(config: &Config) -> Result<Credential, KeyError> {
    let prefix = request::prefix(&config.upstream, &config.auth_header);
    key_source::read(prefix.as_bytes(), config.key_form)
}

fn print(text: &str) -> ExitCode {
    // A reader that has gone is no reason to complain.
    let _ = io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

fn failed(parent: &mut ParentReport, stderr: Stderr, reason: &dyn Display, code: u8) -> ExitCode {
    let mut text = format!("codex-responses-api-proxy: {} {reason}", stderr.colour.red("error:"));
    if code == USAGE {
        text.push_str("\nTry 'codex-responses-api-proxy --help'.");
    }
    let event = Event::new("error", text).number("exit_code", code.into());
    let _ = parent.tell(code, &event.render(stderr.form));
    ExitCode::from(code)
}
