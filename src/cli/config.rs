//! The configuration, as the command line sets it.

use std::ffi::CString;
use std::path::PathBuf;
use std::time::Duration;

use crate::http1::auth_header::AuthHeader;
use crate::http1::request::Policy;
use crate::http1::url::UpstreamUrl;
use crate::net::settings::Settings;
use crate::oidc::TokenExchange;
use crate::process::credential::KeyForm;
use crate::process::key_ring::{LineForm, Terms};
use crate::process::protections::Requirement;

/// All settings of the relay.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub struct Config {
    /// The port to listen on. 0 means any free port.
    pub port: u16,
    /// The file that the port and the process id are written to.
    pub server_info: Option<PathBuf>,
    /// `GET /shutdown` is served.
    pub http_shutdown: bool,
    /// The URL that requests are sent to.
    pub upstream: UpstreamUrl,
    /// A plain `http://` upstream need not be on loopback.
    pub allow_plaintext_upstream: bool,
    /// The header field that carries the key.
    pub auth_header: AuthHeader<'static>,
    /// The form of keys that are accepted.
    pub key_form: KeyForm,
    /// The names of request fields that are not forwarded.
    pub drop_headers: Vec<&'static [u8]>,
    /// Encoded responses are forwarded, although they cannot be searched for the key.
    pub allow_encoded_responses: bool,
    /// Hosts that requests may name, in addition to loopback hosts.
    pub allow_hosts: Vec<&'static [u8]>,
    /// A file of further root certificates in PEM form, and the flag or variable that names the
    /// file.
    pub ca_file: Option<(&'static str, PathBuf)>,
    /// Test the connection to the upstream, print which protections are in force, and end.
    pub check: bool,
    /// Test whether a relay responds on this port, and end.
    pub probe: Option<u16>,
    /// Continue in the background.
    pub detach: bool,
    /// Write a line to stderr for each exchange.
    pub access_log: bool,
    /// Local users who may connect. If the list is empty, all users may.
    pub allow_uids: Vec<UserName>,
    /// The users whose processes may be the upstream on this machine, if the connection to it
    /// carries a secret in plaintext.
    pub upstream_uids: UpstreamUids,
    /// The file with the token that every request must carry.
    pub client_token_file: Option<PathBuf>,
    /// The file to read the key from, instead of stdin.
    pub key_file: Option<PathBuf>,
    /// Each further line on stdin replaces the key.
    pub rotate: bool,
    /// How long a key is used after it was read. Only with `rotate`.
    pub key_max_age: Option<Duration>,
    /// The key comes by GitHub's OIDC.
    pub(super) github_oidc: bool,
    /// What the flags that belong to `--github-oidc` say.
    pub(super) oidc: TokenExchange,
    /// The user to change to.
    pub user: Option<UserAndGroup>,
    /// Refuse to start without memfd_secret(2).
    pub require_secret_memory: bool,
    /// Refuse to start unless every protection is in force.
    pub require_hardening: bool,
    /// Use neither seccomp nor Landlock.
    pub no_sandbox: bool,
    /// Limits and timeouts of the event loop.
    pub settings: Settings,
}

impl Config {
    /// The protections without which the relay does not start.
    pub fn requirement(&self) -> Requirement {
        match (self.require_hardening, self.require_secret_memory) {
            (true, _) => Requirement::Everything,
            (false, true) => Requirement::SecretMemory,
            (false, false) => Requirement::WhatTheKernelHas,
        }
    }

    /// With `--rotate`: how further keys are read, and how long each is used.
    pub fn rotation(&self) -> Option<Terms> {
        match (self.token_exchange(), self.rotate) {
            (Some(_), _) => Some(Terms { max_age: None, line: LineForm::KeyAndLifetime }),
            (None, true) => Some(Terms { max_age: self.key_max_age, line: LineForm::Key }),
            (None, false) => None,
        }
    }

    /// `--github-oidc`: how the key is got.
    pub fn token_exchange(&self) -> Option<&TokenExchange> {
        self.github_oidc.then_some(&self.oidc)
    }

    /// A warning about a valid URL that is most likely a mistake: the URL is a base URL, not an
    /// endpoint.
    pub fn likely_mistake(&self) -> Option<String> {
        let path = self.upstream.path_and_query.split('?').next().unwrap_or_default();
        let path = path.strip_suffix('/').unwrap_or(path);
        path.ends_with("/v1").then(|| {
            format!(
                "--upstream-url ends in /v1, and requests go to exactly that path; most likely \
                 {path}/responses is meant"
            )
        })
    }

    /// The policy for requests and responses. Its lists are leaked, because they last as long as
    /// the program.
    pub fn policy(&self) -> Policy {
        Policy {
            http_shutdown: self.http_shutdown,
            credential_field: self.auth_header.other_name(),
            dropped_fields: self.drop_headers.clone().leak(),
            allowed_hosts: self.allow_hosts.clone().leak(),
            allow_encoded_responses: self.allow_encoded_responses,
        }
    }
}

/// The value of `--user`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserAndGroup {
    /// The user.
    pub user: UserName,
    /// The gid. `None` means the user's own group.
    pub group: Option<u32>,
}

/// A user, as the command line names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserName {
    /// A uid.
    Id(u32),
    /// A name in the user database.
    Name(CString),
}

/// The values of `--upstream-uid`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamUids {
    /// These users, in addition to root and the relay's own user.
    Named(Vec<UserName>),
    /// `any`: the user is not checked.
    Any,
}

impl Default for Config {
    /// The settings that apply unless a flag changes them.
    fn default() -> Config {
        Config {
            port: 0,
            server_info: None,
            http_shutdown: false,
            upstream: UpstreamUrl::openai(),
            allow_plaintext_upstream: false,
            auth_header: AuthHeader::BEARER,
            key_form: KeyForm::Word,
            drop_headers: Vec::new(),
            allow_encoded_responses: false,
            allow_hosts: Vec::new(),
            ca_file: None,
            check: false,
            probe: None,
            detach: false,
            access_log: false,
            allow_uids: Vec::new(),
            upstream_uids: UpstreamUids::Named(Vec::new()),
            client_token_file: None,
            key_file: None,
            rotate: false,
            key_max_age: None,
            github_oidc: false,
            oidc: TokenExchange::default(),
            user: None,
            require_secret_memory: false,
            require_hardening: false,
            no_sandbox: false,
            settings: Settings::default(),
        }
    }
}
