//! The command line: lexopt's values, set one by one by the table of flags, become a [`Config`].

pub mod flags;
mod usage_error;

use std::ffi::{CString, OsString};
use std::path::PathBuf;
use std::time::Duration;

use lexopt::Arg;

use crate::http1::auth_header::AuthHeader;
use crate::http1::digits;
use crate::http1::field::is_token_byte;
use crate::http1::host::HostKind;
use crate::http1::request::Policy;
use crate::http1::url::{Scheme, UpstreamUrl};
use crate::net::tls::PROVIDER;
use crate::process::credential::KeyForm;
use crate::process::protections::Requirement;
use flags::{Action, FLAGS, Flag};
use usage_error::LAST_ID;
pub use usage_error::UsageError;

/// The text of `--version`: the commit and the target are from `build.rs`.
pub fn version() -> String {
    let build = concat!(env!("CARGO_PKG_VERSION"), " (", env!("COMMIT"), ", ", env!("TARGET"));
    ["codex-responses-api-proxy ", build, ", ", PROVIDER, ")\n"].concat()
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Command {
    /// Run the relay.
    Run(Box<Config>),
    /// Print [`flags::help`].
    Help,
    /// Print [`version`].
    Version,
    /// Ask whether a relay answers on this port.
    Probe(u16),
}

/// Everything that can be set.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub struct Config {
    /// 0: any port that is free.
    pub port: u16,
    /// Where to tell port and pid.
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
    /// Clients' fields that do not travel.
    pub drop_headers: Vec<&'static [u8]>,
    /// Responses pass that cannot be searched for the key.
    pub allow_encoded_responses: bool,
    /// Hosts that clients may name apart from loopback's.
    pub allow_hosts: Vec<&'static [u8]>,
    /// Further roots, in PEM form, and the flag or variable that names the file.
    pub ca_file: Option<(&'static str, PathBuf)>,
    /// Connect, say what is in force, and end.
    pub check: bool,
    /// Ask whether a relay answers on this port, and end.
    pub probe: Option<u16>,
    /// Go on in a process of its own.
    pub detach: bool,
    /// A line for each exchange.
    pub access_log: bool,
    /// Client connections at one time.
    pub max_connections: usize,
    /// Local users who may connect; empty: all.
    pub allow_uids: Vec<UserName>,
    /// Users who may hold a loopback upstream that gets a secret in the clear.
    pub upstream_uids: UpstreamUids,
    /// Holds the token that callers must show.
    pub client_token_file: Option<PathBuf>,
    /// Holds the key, in place of stdin.
    pub key_file: Option<PathBuf>,
    /// Requests to forward in all.
    pub max_requests: Option<u64>,
    /// Whom to become.
    pub user: Option<User>,
    /// Start with memfd_secret or not at all.
    pub require_secret_memory: bool,
    /// Start with every protection in force or not at all.
    pub require_hardening: bool,
    /// Leave seccomp and Landlock out.
    pub no_sandbox: bool,
    /// For a whole head, and for a body that stalls.
    pub client_timeout: Duration,
    /// How long exchanges under way may go on once the relay is to end.
    pub grace: Duration,
    /// For an answer to begin, and for silence within it.
    pub upstream_timeout: Option<Duration>,
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

    /// What is right by the rules and hardly meant: a base URL in place of an endpoint's.
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

/// Reads the arguments (without the program's name) and the environment variables that mean the
/// same as flags.
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Command, UsageError> {
    let mut config = Config::default();
    let mut given = [false; FLAGS.len()];
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        let (index, flag) = match argument {
            Arg::Long(name) => {
                Flag::named(name).ok_or_else(|| UsageError::unknown(name, Flag::similar(name)))?
            }
            Arg::Short(letter) => {
                Flag::with_letter(letter).ok_or_else(|| UsageError::unknown_letter(letter))?
            }
            other => return Err(other.unexpected().into()),
        };
        if std::mem::replace(&mut given[index], true) && !flag.repeatable {
            return Err(UsageError::Repeated(flag.name));
        }
        match flag.action {
            Action::Switch(set) => set(&mut config),
            Action::Value(set) => {
                set(&mut config, Value { flag: flag.name, text: parser.value()? })?;
            }
            Action::Help => return Ok(Command::Help),
            Action::Version => return Ok(Command::Version),
        }
    }
    if let Some(port) = config.probe {
        let is_alone = given.iter().filter(|is_given| **is_given).count() == 1;
        return if is_alone { Ok(Command::Probe(port)) } else { Err(UsageError::ProbeAndMore) };
    }
    let upstream = &config.upstream;
    let is_clear = upstream.scheme == Scheme::Http && !upstream.is_loopback();
    if is_clear && !config.allow_plaintext_upstream {
        return Err(UsageError::Plaintext);
    }
    let named = |name| {
        let value = variable(name).filter(|value| !value.is_empty());
        value.map(|path| (name, PathBuf::from(path)))
    };
    config.ca_file =
        config.ca_file.or_else(|| named("SSL_CERT_FILE")).or_else(|| named("CODEX_CA_CERTIFICATE"));
    Ok(Command::Run(Box::new(config)))
}

/// The value of a flag as it was typed.
pub struct Value {
    flag: &'static str,
    text: OsString,
}

impl Value {
    fn number(self, least: u64, most: u64) -> Result<u64, UsageError> {
        match digits::decimal(self.text.as_encoded_bytes(), 19) {
            Some(number) if (least..=most).contains(&number) => Ok(number),
            _ => Err(UsageError::Number(self.flag, least, most)),
        }
    }

    fn seconds(self, least: u64) -> Result<Duration, UsageError> {
        self.number(least, 86_400).map(Duration::from_secs)
    }

    fn text(self) -> Result<String, UsageError> {
        self.text.into_string().map_err(|_| UsageError::Text(self.flag))
    }

    /// A field name, leaked once, for as long as the program runs.
    fn field_name(self) -> Result<&'static [u8], UsageError> {
        let flag = self.flag;
        let name = self.text()?.leak().as_bytes();
        let is_token = !name.is_empty() && name.iter().all(|byte| is_token_byte(*byte));
        if is_token { Ok(name) } else { Err(UsageError::FieldName(flag)) }
    }

    /// A host without its port, leaked once, for as long as the program runs.
    fn host_name(self) -> Result<&'static [u8], UsageError> {
        let flag = self.flag;
        let name = self.text()?.leak().as_bytes();
        if HostKind::can_be_allowed(name) { Ok(name) } else { Err(UsageError::HostName(flag)) }
    }

    fn path(self) -> Result<PathBuf, UsageError> {
        if self.text.is_empty() { Err(UsageError::NoPath(self.flag)) } else { Ok(self.text.into()) }
    }

    fn user_name(self) -> Result<UserName, UsageError> {
        let flag = self.flag;
        let text = self.text()?;
        match digits::decimal(text.as_bytes(), 19) {
            Some(id @ 0..=LAST_ID) => Ok(UserName::Id(id as u32)),
            _ if text.bytes().all(|byte| byte.is_ascii_digit()) => Err(UsageError::UserName(flag)),
            _ => CString::new(text).map(UserName::Name).or(Err(UsageError::UserName(flag))),
        }
    }

    fn user(self) -> Result<User, UsageError> {
        let text = self.text()?;
        let id = |text: &str| digits::decimal(text.as_bytes(), 19).filter(|id| *id <= LAST_ID);
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(id(group).ok_or(UsageError::User)? as u32)),
            None => (&*text, None),
        };
        let user = match id(user) {
            Some(uid) => UserName::Id(uid as u32),
            None if user.is_empty() => return Err(UsageError::User),
            None => UserName::Name(CString::new(user).map_err(|_| UsageError::User)?),
        };
        Ok(User { user, group })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &[&str]) -> Result<Command, UsageError> {
        parse(arguments.iter().map(OsString::from), |_| None)
    }

    fn config(arguments: &[&str]) -> Config {
        match read(arguments) {
            Ok(Command::Run(config)) => *config,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn defaults_are_those_of_the_reference() {
        let config = config(&[]);
        assert_eq!(config.port, 0);
        let url = "https://api.openai.com/v1/responses";
        assert_eq!(config.upstream, UpstreamUrl::parse(url).unwrap());
        assert!(!config.http_shutdown && !config.access_log && config.server_info.is_none());
        assert_eq!(config.client_timeout, Duration::from_secs(30));
        assert_eq!(config.grace, Duration::from_secs(1));
        assert_eq!(config.upstream_timeout, None);
        assert_eq!(config.max_connections, 1024);
    }

    #[test]
    fn values_stand_behind_a_space_or_an_equals_sign() {
        for arguments in
            [&["--port", "80", "--http-shutdown"][..], &["--http-shutdown", "--port=80"]]
        {
            let config = config(arguments);
            assert_eq!((config.port, config.http_shutdown), (80, true));
        }
    }

    #[test]
    fn wrong_use_is_told_in_one_line() {
        for (arguments, want) in [
            (&["--nope"][..], "invalid option '--nope'"),
            (&["--prot", "1"], "invalid option '--prot'; did you mean --port?"),
            (&["--server_info=x"], "invalid option '--server_info'; did you mean --server-info?"),
            (&["--a\tb"], "invalid option '--a\\tb'"),
            (
                &["--dump-dir", "/x"],
                "--dump-dir is not here, on purpose: it would write prompts and responses to disk, and \
                 this program can write no such file once it listens; --access-log tells sizes, times \
                 and how each exchange ended",
            ),
            (
                &["--enable=x"],
                "--enable is not here, on purpose: there is no configuration but the flags; see --help",
            ),
            (
                &["-c", "model=x"],
                "-c is not here, on purpose: there is no configuration but the flags; see --help",
            ),
            (
                &["--oidc-audience=x"],
                "--oidc-audience is not here, on purpose: this program talks to one upstream alone; fetch \
                 the token beforehand and give it on stdin, with --allow-token68",
            ),
            (&["-x"], "invalid option '-x'"),
            (&["extra"], "unexpected argument \"extra\""),
            (&["--port"], "missing argument for option '--port'"),
            (&["--port", "70000"], "--port takes a whole number from 0 to 65535"),
            (&["--port", "+80"], "--port takes a whole number from 0 to 65535"),
            (&["--port="], "--port takes a whole number from 0 to 65535"),
            (&["--port", "00000000000000000080"], "--port takes a whole number from 0 to 65535"),
            (
                &["--allow-uid", "4294967295"],
                "--allow-uid takes the name of a user, or a number up to 4294967294",
            ),
            (
                &["--upstream-uid="],
                "--upstream-uid takes the name of a user, or a number up to 4294967294",
            ),
            (
                &["--upstream-uid=any", "--upstream-uid=1"],
                "--upstream-uid any trusts every user; leave the other --upstream-uid out",
            ),
            (
                &["--upstream-uid=1", "--upstream-uid=any"],
                "--upstream-uid any trusts every user; leave the other --upstream-uid out",
            ),
            (&["--user", ""], "--user takes the name or number of a user, and :GID"),
            (&["--user", "1:x"], "--user takes the name or number of a user, and :GID"),
            (&["--user", "a:4294967295"], "--user takes the name or number of a user, and :GID"),
            (
                &["--max-requests", "0"],
                "--max-requests takes a whole number from 1 to 1000000000000",
            ),
            (&["--client-timeout", "0"], "--client-timeout takes a whole number from 1 to 86400"),
            (&["--client-timeout", "5s"], "--client-timeout takes a whole number from 1 to 86400"),
            (&["--port", "1", "--port", "1"], "--port is given twice; keep one"),
            (&["--access-log", "--access-log"], "--access-log is given twice; keep one"),
            (&["--server-info", ""], "--server-info takes the path of a file"),
            (
                &["--upstream-url", "ftp://a.b"],
                "--upstream-url: the URL must begin with https:// (or http:// for a loopback host)",
            ),
        ] {
            let error = read(arguments).unwrap_err().to_string();
            assert_eq!(error, want);
            assert!(!error.contains('\n'));
        }
    }

    #[test]
    fn users_are_named_or_numbered() {
        let user = |text: &str| config(&["--user", text]).user.unwrap();
        assert_eq!(user("1000"), User { user: UserName::Id(1000), group: None });
        assert_eq!(user("1000:100"), User { user: UserName::Id(1000), group: Some(100) });
        assert_eq!(user("nobody"), User { user: UserName::Name(c"nobody".into()), group: None });
        assert_eq!(
            user("nobody:7"),
            User { user: UserName::Name(c"nobody".into()), group: Some(7) }
        );
        let both = [UserName::Name(c"agent".into()), UserName::Id(0)];
        assert_eq!(config(&["--allow-uid", "agent", "--allow-uid=0"]).allow_uids, both);
        let upstream = |arguments: &[&str]| config(arguments).upstream_uids;
        assert_eq!(upstream(&[]), UpstreamUids::Named(vec![]));
        assert_eq!(upstream(&["--upstream-uid", "any"]), UpstreamUids::Any);
        let named = upstream(&["--upstream-uid", "agent", "--upstream-uid=0"]);
        assert_eq!(named, UpstreamUids::Named(both.to_vec()));
    }

    #[test]
    fn plain_http_needs_loopback_or_its_flag() {
        assert!(read(&["--upstream-url", "http://127.0.0.1:1/"]).is_ok());
        assert!(matches!(read(&["--upstream-url", "http://a.b/"]), Err(UsageError::Plaintext)));
        assert!(read(&["--upstream-url", "http://a.b/", "--allow-plaintext-upstream"]).is_ok());
    }

    #[test]
    fn the_flag_wins_over_the_variables_and_empty_ones_do_not_count() {
        let ca = |arguments: &[&str], variables: &[(&str, &str)]| {
            let variable = |name: &str| {
                variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into())
            };
            match parse(arguments.iter().map(OsString::from), variable) {
                Ok(Command::Run(config)) => config.ca_file,
                other => panic!("{other:?}"),
            }
        };
        let both = [("SSL_CERT_FILE", "s"), ("CODEX_CA_CERTIFICATE", "c")];
        assert_eq!(ca(&["--ca-file", "f"], &both), Some(("--ca-file", "f".into())));
        assert_eq!(ca(&[], &both), Some(("SSL_CERT_FILE", "s".into())));
        assert_eq!(
            ca(&[], &[("SSL_CERT_FILE", ""), both[1]]),
            Some(("CODEX_CA_CERTIFICATE", "c".into()))
        );
        assert_eq!(ca(&[], &[]), None);
    }
}
