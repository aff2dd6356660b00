//! What the command line settles.

use std::ffi::CString;
use std::path::PathBuf;

use crate::http1::auth_header::AuthHeader;
use crate::http1::request::Policy;
use crate::http1::url::UpstreamUrl;
use crate::net::settings::Settings;
use crate::process::credential::KeyForm;
use crate::process::protections::Requirement;

/// Everything that can be set.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub struct Config {
    /// The port to listen on; 0 means any port that is free.
    pub port: u16,
    /// The file to write port and pid to.
    pub server_info: Option<PathBuf>,
    /// `GET /shutdown` is served.
    pub http_shutdown: bool,
    /// Where requests go.
    pub upstream: UpstreamUrl,
    /// A plain `http://` upstream need not be on loopback.
    pub allow_plaintext_upstream: bool,
    /// The field that carries the key.
    pub auth_header: AuthHeader<'static>,
    /// Which keys are taken.
    pub key_form: KeyForm,
    /// Fields of requests that are not forwarded.
    pub drop_headers: Vec<&'static [u8]>,
    /// Encoded responses, which cannot be searched for the key, are forwarded.
    pub allow_encoded_responses: bool,
    /// Hosts that requests may name, besides those of loopback.
    pub allow_hosts: Vec<&'static [u8]>,
    /// Further roots, in PEM form, and the flag or variable that names the file.
    pub ca_file: Option<(&'static str, PathBuf)>,
    /// Test the connection, print which protections are in force, and end.
    pub check: bool,
    /// Ask whether a relay answers on this port, and end.
    pub probe: Option<u16>,
    /// Go on in the background.
    pub detach: bool,
    /// A line for each exchange.
    pub access_log: bool,
    /// Local users who may connect; empty: all.
    pub allow_uids: Vec<UserName>,
    /// Users who may hold a loopback upstream that gets a secret in the clear.
    pub upstream_uids: UpstreamUids,
    /// The file with the token that callers must show.
    pub client_token_file: Option<PathBuf>,
    /// The file to read the key from, in place of stdin.
    pub key_file: Option<PathBuf>,
    /// The user to change to.
    pub user: Option<User>,
    /// Start with memfd_secret or not at all.
    pub require_secret_memory: bool,
    /// Start with every protection in force or not at all.
    pub require_hardening: bool,
    /// Leave seccomp and Landlock out.
    pub no_sandbox: bool,
    /// Numbers and times that the event loop keeps to.
    pub settings: Settings,
}

impl Config {
    /// What must be in force for the relay to start.
    pub fn requirement(&self) -> Requirement {
        match (self.require_hardening, self.require_secret_memory) {
            (true, _) => Requirement::Everything,
            (false, true) => Requirement::SecretMemory,
            (false, false) => Requirement::WhatThereIs,
        }
    }

    /// A warning about a valid URL that is most likely a mistake: a base URL, not an endpoint.
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

    /// What decides on requests and responses. Its lists are leaked: they last as long as the
    /// program.
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
pub struct User {
    /// The user.
    pub user: UserName,
    /// A group; else the user's own.
    pub group: Option<u32>,
}

/// A user as the command line names one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserName {
    /// By number.
    Id(u32),
    /// By a name of the user database.
    Name(CString),
}

/// The values of `--upstream-uid`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamUids {
    /// These, besides root and the relay's own.
    Named(Vec<UserName>),
    /// `any`: it is not checked.
    Any,
}

impl Default for Config {
    /// What the program does unless a flag says otherwise.
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
            user: None,
            require_secret_memory: false,
            require_hardening: false,
            no_sandbox: false,
            settings: Settings::default(),
        }
    }
}
