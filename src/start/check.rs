//! `--check`: reports the protections of this machine, and then makes one connection ([`Check`]).

use codex_responses_api_proxy::connector;
use codex_responses_api_proxy::http1::request;
use codex_responses_api_proxy::http1::url::{Scheme, UpstreamUrl};
use codex_responses_api_proxy::net::check::{self, Check, CheckSetup};
use codex_responses_api_proxy::net::tls::{Recording, TlsConnector};
use codex_responses_api_proxy::process::harden;
use codex_responses_api_proxy::process::key_ring::KeyRing;
use codex_responses_api_proxy::process::protections::{self, Protections};
use codex_responses_api_proxy::process::sys;

use super::error::{StartError, loop_failed, tls_failed};
use super::{NextHop, Plan, Prepared, callers};

impl Prepared<'_> {
    /// Continues as the relay does, but reads no key, opens no port, and makes one upstream
    /// connection that carries no request.
    pub fn check(self) -> Result<(), StartError> {
        let Prepared { plan, roots } = self;
        let Plan { config, beginning, skipped_roots, user, upstream_users, sandbox, .. } = plan;
        let NextHop { host, port, proxy } = plan.next_hop;
        let UpstreamUrl { scheme, path_and_query, .. } = &config.upstream;
        let scheme = if *scheme == Scheme::Http { "http" } else { "https" };
        check::say(
            "upstream",
            &format!("{scheme}://{}{path_and_query}", config.upstream.authority()),
        );
        if let Some(mistake) = config.likely_mistake() {
            check::say("warning", &mistake);
        }
        if let Some(terms) = config.rotation() {
            check::say("rotation", &terms.to_string());
        }
        if config.token_exchange().is_some() {
            check::say(
                "oidc",
                "not tried: an exchange needs GitHub's request token; the start says which step fails",
            );
        }
        if proxy.is_some() {
            check::say("proxy", &format!("{host}:{port}"));
        }
        if let Some((name, path)) = &config.ca_file {
            let separator = if skipped_roots.is_empty() { "" } else { "; " };
            let path = path.display();
            check::say("roots", &format!("built in, and {name} {path}{separator}{skipped_roots}"));
        }
        let prefix = request::prefix(&config.upstream, &config.auth_header);
        let pages = KeyRing::map(prefix.len(), config.key_form, config.rotation())
            .map_err(|error| error.to_string())?;
        let (memory, protection_key) = (pages.memory(), pages.protection_key());
        drop(pages);
        config.requirement().memory(memory)?;
        check::say("memory", protections::describe(memory));
        harden::drop_privileges(user)?;
        if let Some((uid, gid)) = user {
            check::say("user", &format!("{uid}:{gid}"));
        }
        let tls = match config.upstream.scheme {
            Scheme::Http => None,
            Scheme::Https => Some(TlsConnector::new(roots, Recording::On).map_err(tls_failed)?),
        };
        let link = plan.connector.link();
        let connector_confined = connector::report(&link)?;
        let setup = CheckSetup { tls, link, proxy, upstream_users, sandbox };
        let check = Check::new(setup).map_err(loop_failed)?;
        let sealed = sys::seal_program();
        sandbox.look_at_others()?;
        let uid = sys::user_id();
        let read_back = check.confine()?;
        let protections = Protections {
            beginning,
            memory,
            protection_key,
            search: None,
            callers: callers(config),
            user,
            uid,
            sandbox,
            read_back,
            sealed,
            connector: connector_confined,
            feeder: None,
            notes: Vec::new(),
        };
        check::say("protections", &protections.to_string());
        protections.fulfil(config.requirement())?;
        check.run().map_err(|error| error.to_string().into())
    }
}
