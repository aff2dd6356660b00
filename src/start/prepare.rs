//! From [`Forked`] to [`Prepared`]: files, limits, the egress proxy, users.

use std::path::Path;

use codex_responses_api_proxy::cli::Config;
use codex_responses_api_proxy::connector::wire::ConnectorConfig;
use codex_responses_api_proxy::feeder::Feeder;
use codex_responses_api_proxy::http1::url::Host;
use codex_responses_api_proxy::net::check as check_report;
use codex_responses_api_proxy::net::settings::Settings;
use codex_responses_api_proxy::process::allowed_users::AllowedUsers;
use codex_responses_api_proxy::process::confine::Sandbox;
use codex_responses_api_proxy::process::egress::{Egress, EgressError};
use codex_responses_api_proxy::process::filter::Descriptors;
use codex_responses_api_proxy::process::harden;
use codex_responses_api_proxy::process::key_input::KeyInput;
use codex_responses_api_proxy::process::key_memory::key_sets;
use codex_responses_api_proxy::process::key_source;
use codex_responses_api_proxy::process::service_manager::Notifier;
use codex_responses_api_proxy::process::sys;
use codex_responses_api_proxy::process::token::{ClientToken, Readers};
use codex_responses_api_proxy::process::upstream_users::{Reach, UpstreamUsers};
use codex_responses_api_proxy::users::{self, UserError};

use super::error::{StartError, usage};
use super::roots::roots;
use super::{Forked, NextHop, Plan, Prepared};

/// Descriptors that belong to no client connection: standard ones, listeners, the poller and so on.
/// Tested by `limits::too_few_descriptors_lower_the_cap_and_the_start_line_says_so`.
const OTHER_DESCRIPTORS: u64 = 64;

impl<'a> Forked<'a> {
    /// Does everything that can fail without the key. Inherited descriptors are closed before this
    /// process opens any that it keeps.
    pub fn prepare(self) -> Result<Prepared<'a>, StartError> {
        let Forked { config, beginning, handover, connector, feeder } = self;
        harden::can_start()?;
        let requirement = config.requirement();
        let next_hop = next_hop(config)?;
        if matches!(next_hop.host, Host::Name(_)) && !next_hop.host.is_localhost() {
            harden::can_look_up()?;
        }
        let (roots, skipped_roots) = roots(config, &config.upstream.host)?;
        let OpenFiles { limit, wanted, max_connections } = raise_open_files(config)?;
        let user = config.user.as_ref().map(users::with_group).transpose().map_err(no_user)?;
        let clear_reach = users::clear_reach(config, next_hop.proxy.as_ref());
        // A proxy may be on any machine, because the request is encrypted on its way through it.
        let reach = clear_reach.filter(|_| next_hop.proxy.is_none()).unwrap_or(Reach::Anywhere);
        let (host, port) = (next_hop.host.clone(), next_hop.port);
        let connector = connector.configure(&ConnectorConfig { host, port, user, reach })?;
        let mut warnings: Vec<String> = config.likely_mistake().into_iter().collect();
        let token = match &config.client_token_file {
            Some(path) => Some(read_token(path, key_sets(config.rotate), &mut warnings)?),
            None => None,
        };
        open_key_file(config, user.map(|(uid, _)| uid), &mut warnings)?;
        let links: Vec<_> = feeder.iter().map(Feeder::fd).chain([connector.fd()]).collect();
        let left_open = harden::close_inherited(handover.end(), &links);
        requirement.inherited(left_open.as_deref())?;
        warnings.extend(left_open);
        let notifier = handover.notifier().unwrap_or_else(|warning| {
            warnings.push(warning);
            Notifier::default()
        });
        sys::make_room_for_descriptors(limit.min(wanted));
        let upstream_users = users::of_upstream(config, clear_reach, user).map_err(no_user)?;
        let allowed_users = users::of_clients(config).map_err(no_user)?;
        let tables = [
            allowed_users.as_ref().map(AllowedUsers::tables).unwrap_or_default(),
            upstream_users.as_ref().map(UpstreamUsers::tables).unwrap_or_default(),
        ];
        let descriptors = Descriptors { server_info: None, socket_tables: tables };
        let sandbox = if config.no_sandbox { Sandbox::off() } else { Sandbox::new(port) };
        let sandbox = sandbox.with_descriptors(descriptors);
        requirement.before_the_key(&beginning, &sandbox)?;
        let plan = Plan {
            config,
            beginning,
            handover,
            connector,
            feeder,
            next_hop,
            skipped_roots,
            settings: Settings { max_connections, ..config.settings },
            user,
            clear_reach,
            upstream_users,
            allowed_users,
            token,
            notifier,
            descriptors,
            sandbox,
            warnings,
        };
        Ok(Prepared { plan, roots })
    }
}

/// Finds out where connections go: to the upstream, or to the egress proxy that the environment
/// names. Wipes the variables of the proxy.
fn next_hop(config: &Config) -> Result<NextHop, StartError> {
    let egress = Egress::take(&config.upstream).map_err(|error| match error {
        EgressError::Url(..) => usage(error.to_string()),
        EgressError::Memory(_) => StartError::from(error.to_string()),
    })?;
    Ok(match egress {
        Some(egress) => {
            NextHop { host: egress.host, port: egress.port, proxy: Some(egress.request) }
        }
        None => {
            NextHop { host: config.upstream.host.clone(), port: config.upstream.port, proxy: None }
        }
    })
}

/// The limit on open files, and what it allows.
struct OpenFiles {
    limit: u64,
    /// What `--max-connections` needs.
    wanted: u64,
    max_connections: usize,
}

/// Each client connection may need a second descriptor for its upstream connection.
fn raise_open_files(config: &Config) -> Result<OpenFiles, StartError> {
    let wanted = 2 * config.settings.max_connections as u64 + OTHER_DESCRIPTORS;
    let limit = sys::raise_open_files(wanted);
    let allowed = (limit.saturating_sub(OTHER_DESCRIPTORS) / 2) as usize;
    match config.settings.max_connections.min(allowed) {
        0 => {
            let reason = format!("the limit on open files ({limit}) is too low; raise ulimit -n");
            Err(reason.into())
        }
        max_connections => Ok(OpenFiles { limit, wanted, max_connections }),
    }
}

/// Opens `--key-file` as stdin. With `--check` the file is only inspected. A missing file is then a
/// warning, because the machine that runs the relay may have another one.
fn open_key_file(
    config: &Config,
    user: Option<u32>,
    warnings: &mut Vec<String>,
) -> Result<(), StartError> {
    let Some(path) = &config.key_file else {
        if config.rotate && !config.check {
            KeyInput::can_be_stdin().map_err(|error| usage(error.to_string()))?;
        }
        return Ok(());
    };
    if config.check {
        match key_source::look(path, user) {
            Ok(readers) => {
                config.requirement().key_file(readers)?;
                if let Some(warning) = readers.warning(path) {
                    check_report::say("warning", &warning);
                }
            }
            Err(error) => {
                check_report::say("warning", &format!("--key-file {} {error}", path.display()));
            }
        }
        return Ok(());
    }
    let readers = key_source::open(path, user)
        .map_err(|error| format!("--key-file {}: {error}", path.display()))?;
    config.requirement().key_file(readers)?;
    warnings.extend(readers.warning(path));
    Ok(())
}

fn no_user(error: UserError) -> StartError {
    match error {
        UserError::Clients(_) | UserError::Upstream(_) => StartError::from(error.to_string()),
        _ => usage(error.to_string()),
    }
}

fn read_token(
    path: &Path,
    sets: usize,
    warnings: &mut Vec<String>,
) -> Result<ClientToken, StartError> {
    let name = format!("--client-token-file {}", path.display());
    let (token, readers) = ClientToken::open(path, sets)
        .map_err(|error| StartError::from(format!("{name}: {error}")))?;
    if readers == Readers::Others {
        let reason = "can be read by others, who can then use the relay; chmod go-r it";
        warnings.push(format!("{name} {reason}"));
    }
    Ok(token)
}
