//! `--github-oidc`: what the feeder is forked with. All but the fork happens in its own process.

use codex_responses_api_proxy::cli::Config;
use codex_responses_api_proxy::feeder::{self, Feeder, Hop, Plan, Stderr};
use codex_responses_api_proxy::http1::url::{Scheme, UpstreamUrl};
use codex_responses_api_proxy::net::report::Form;
use codex_responses_api_proxy::oidc::TokenExchange;
use codex_responses_api_proxy::oidc::notice::SetupFault;
use codex_responses_api_proxy::process::detach::is_stderr_kept;
use codex_responses_api_proxy::process::egress::{self, Egress};
use codex_responses_api_proxy::process::sys;
use codex_responses_api_proxy::process::upstream_users::Reach;
use codex_responses_api_proxy::users;

use super::error::StartError;
use super::roots::roots;

/// The environment variables that the start still needs. (Those of the egress proxy are wiped when
/// they have been read.)
const KEPT_VARIABLES: [&[u8]; 2] = [b"RES_OPTIONS", b"LOCALDOMAIN"];

/// Wipes the environment of this process, except for what the start still needs. On GitHub each step
/// has the request token there, and the relay is never to have it.
pub fn forget_environment() {
    sys::wipe_variables(|name| {
        let end = name.len().saturating_sub(b"_proxy".len());
        !KEPT_VARIABLES.contains(&name) && !name[end..].eq_ignore_ascii_case(b"_proxy")
    });
}

/// Forks the feeder.
pub(super) fn fork(config: &Config, exchange: &TokenExchange) -> Result<Feeder, StartError> {
    feeder::fork(!config.no_sandbox, || plan(config, exchange)).map_err(|error| {
        format!("cannot start the feeder ({error}); raise ulimit -n and ulimit -u").into()
    })
}

/// What the relay prepares for itself too: it tells what is wrong with files and users in more
/// words.
fn plan<'a>(config: &Config, exchange: &'a TokenExchange) -> Result<Plan<'a>, SetupFault> {
    let user = config.user.as_ref().map(users::with_group).transpose();
    let user = user.map_err(|_| SetupFault::Files)?;
    let hops = [&exchange.request_url, &exchange.token_url].map(|url| hop(config, url, user));
    egress::wipe();
    let [id_token, access_token] = hops;
    let form = if config.access_log { Form::Json } else { Form::Text };
    let is_left = config.detach && !is_stderr_kept();
    Ok(Plan {
        exchange,
        hops: [id_token?, access_token?],
        user,
        requirement: config.requirement(),
        stderr: if is_left { Stderr::Left } else { Stderr::Kept(form) },
    })
}

/// The way to the host of this URL.
#[inline(never)]
fn hop(config: &Config, url: &UpstreamUrl, user: Option<(u32, u32)>) -> Result<Hop, SetupFault> {
    let egress = Egress::find(url).map_err(|_| SetupFault::Proxy)?;
    let (host, port, proxy) = match egress {
        Some(egress) => (egress.host, egress.port, Some(egress.request)),
        None => (url.host.clone(), url.port, None),
    };
    let roots = match url.scheme {
        Scheme::Http => None,
        Scheme::Https => Some(roots(config, &url.host).map_err(|_| SetupFault::Files)?.0),
    };
    // An unencrypted token stays on this machine. A proxy's password may go to any proxy.
    let clear_reach = match &proxy {
        _ if url.scheme == Scheme::Http => Some(Reach::Here),
        Some(proxy) if proxy.has_credentials() => Some(Reach::Anywhere),
        _ => None,
    };
    let users = users::of_upstream(config, clear_reach, user).map_err(|_| SetupFault::Files)?;
    let reach = if url.scheme == Scheme::Http { Reach::Here } else { Reach::Anywhere };
    Ok(Hop { host, port, proxy, reach, users, roots })
}
