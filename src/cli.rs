//! The command line: lexopt's values, parsed and validated into a [`Config`].

use std::ffi::{CString, OsString};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::Arg;

use crate::http1::auth_header::{AuthHeader, AuthHeaderError};
use crate::http1::limits;
use crate::http1::url::{Scheme, UpstreamUrl, UrlError};
use crate::net::tls::PROVIDER;
use crate::process::credential::KeyForm;

/// What the program does unless told otherwise.
const UPSTREAM_URL: &str = "https://api.openai.com/v1/responses";

/// The last user or group id; the one behind it means "none" to the kernel.
const LAST_ID: u64 = u32::MAX as u64 - 1;

/// The text of `--help`.
pub const HELP: &str = "\
Relays POST /v1/responses from 127.0.0.1 to one upstream and adds the API key,
which it reads from stdin. Everything else is refused.

Usage: codex-responses-api-proxy [OPTIONS] < KEY

Listening:
  --port <PORT>              port on 127.0.0.1 (default: one that is free)
  --server-info <FILE>       write {\"port\":PORT,\"pid\":PID} there once listening
  --http-shutdown            let GET /shutdown end the relay
  --max-connections <N>      client connections at one time (default: 1024)
  --client-timeout <SECONDS> for a whole request head, or a stalled body
                             (default: 30)

Upstream:
  --upstream-url <URL>       where requests go
                             (default: https://api.openai.com/v1/responses)
  --ca-file <PEM>            trust these roots besides the built-in ones
                             (also: SSL_CERT_FILE, CODEX_CA_CERTIFICATE)
  --upstream-timeout <SECONDS>
                             for an answer to begin, and for silence within it
                             (default: none)
  --allow-plaintext-upstream allow http:// to a host that is not loopback: the
                             key then travels in the clear
  --auth-header <'NAME: {}'> the field that carries the key, in place of
                             'Authorization: Bearer {}' (e.g. 'api-key: {}')
  --allow-token68            take keys that are JWTs: . ~ + / and = too, and up
                             to 8192 bytes

Who may use it:
  --allow-uid <UID>          connections of this local user only (repeatable)
  --client-token-file <FILE> ask each request for Authorization: Bearer TOKEN,
                             the token being what the file holds
  --max-requests <N>         forward so many requests, then answer 429

Hardening:
  --user <NAME|UID[:GID]>    become this user once everything is open (as root)
  --require-secret-memory    do not start where the kernel has no memfd_secret
  --no-sandbox               no seccomp and no Landlock: for debugging only

Starting:
  --detach                   return once it listens; the relay goes on by itself
  --check                    connect to the upstream without a request, say what
                             is in force, and end; needs no key

Other:
  --access-log               a JSON line for each exchange on stderr
  --help                     print this
  --version                  print version, commit, target and TLS library

Environment:
  HTTPS_PROXY, ALL_PROXY     the egress proxy, by http://; read as curl does
  NO_PROXY                   hosts, domains, networks that need none

The key, for example:
  printenv OPENAI_API_KEY | env -u OPENAI_API_KEY codex-responses-api-proxy
";

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
    /// Print [`HELP`].
    Help,
    /// Print [`version`].
    Version,
}

/// Everything that can be set.
#[derive(Debug)]
pub struct Config {
    /// 0: any port that is free.
    pub port: u16,
    /// Where to tell port and pid.
    pub server_info: Option<PathBuf>,
    /// `GET /shutdown` is served.
    pub http_shutdown: bool,
    /// Where requests go.
    pub upstream: UpstreamUrl,
    /// The field that carries the key.
    pub auth_header: AuthHeader<'static>,
    /// Which keys are taken.
    pub key_form: KeyForm,
    /// Further roots, in PEM form, and the flag or variable that names the file.
    pub ca_file: Option<(&'static str, PathBuf)>,
    /// Connect, say what is in force, and end.
    pub check: bool,
    /// Go on in a process of its own.
    pub detach: bool,
    /// A line for each exchange.
    pub access_log: bool,
    /// Client connections at one time.
    pub max_connections: usize,
    /// Local users who may connect; empty: all.
    pub allow_uids: Vec<u32>,
    /// Holds the token that callers must show.
    pub client_token_file: Option<PathBuf>,
    /// Requests to forward in all.
    pub max_requests: Option<u64>,
    /// Whom to become.
    pub user: Option<User>,
    /// Start with memfd_secret or not at all.
    pub require_secret_memory: bool,
    /// Leave seccomp and Landlock out.
    pub no_sandbox: bool,
    /// For a whole head, and for a body that stalls.
    pub client_timeout: Duration,
    /// For an answer to begin, and for silence within it.
    pub upstream_timeout: Option<Duration>,
}

/// The value of `--user`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// A name of the user database, or a number.
    pub user: Result<u32, CString>,
    /// A group; else the user's own.
    pub group: Option<u32>,
}

/// What is wrong with the command line.
#[derive(Debug)]
pub enum UsageError {
    /// lexopt's own: unknown option, missing value, stray argument.
    Syntax(lexopt::Error),
    /// An option that is there twice.
    Repeated(&'static str),
    /// Not a whole number in this range.
    Number(&'static str, u64, u64),
    /// Not a user.
    User,
    /// `--upstream-url` cannot be used.
    Url(UrlError),
    /// http:// to a host that is not loopback.
    Plaintext,
    /// `--auth-header` cannot be used.
    AuthHeader(AuthHeaderError),
    /// A value that is not UTF-8.
    Text(&'static str),
    /// A value that is empty.
    NoPath(&'static str),
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Whatever was typed is shown without control characters.
            UsageError::Syntax(error) => error.to_string().chars().try_for_each(|c| {
                if c.is_control() { write!(f, "{}", c.escape_default()) } else { write!(f, "{c}") }
            }),
            UsageError::Repeated(flag) => write!(f, "{flag} is given twice; keep one"),
            UsageError::Number(flag, least, most) => {
                write!(f, "{flag} takes a whole number from {least} to {most}")
            }
            UsageError::User => f.write_str("--user takes the name or number of a user, and :GID"),
            UsageError::Url(error) => write!(f, "--upstream-url: {error}"),
            UsageError::Plaintext => f.write_str(
                "--upstream-url: http:// would send the key in the clear; use https://, or add \
                 --allow-plaintext-upstream",
            ),
            UsageError::AuthHeader(error) => write!(f, "--auth-header: {error}"),
            UsageError::Text(flag) => write!(f, "{flag} takes text in UTF-8"),
            UsageError::NoPath(flag) => write!(f, "{flag} takes the path of a file"),
        }
    }
}

impl From<lexopt::Error> for UsageError {
    fn from(error: lexopt::Error) -> UsageError {
        UsageError::Syntax(error)
    }
}

/// Reads the arguments (without the program's name) and the environment variables that mean the
/// same as options.
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Command, UsageError> {
    let mut port: Once<u64> = Once::new("--port");
    let mut server_info = Once::new("--server-info");
    let mut http_shutdown = Once::new("--http-shutdown");
    let mut upstream_url = Once::new("--upstream-url");
    let mut ca_file = Once::new("--ca-file");
    let mut access_log = Once::new("--access-log");
    let mut max_connections = Once::new("--max-connections");
    let mut client_timeout = Once::new("--client-timeout");
    let mut upstream_timeout = Once::new("--upstream-timeout");
    let mut plaintext = Once::new("--allow-plaintext-upstream");
    let mut auth_header = Once::new("--auth-header");
    let mut token68 = Once::new("--allow-token68");
    let mut client_token_file = Once::new("--client-token-file");
    let mut max_requests = Once::new("--max-requests");
    let mut user = Once::new("--user");
    let mut require_secret_memory = Once::new("--require-secret-memory");
    let mut no_sandbox = Once::new("--no-sandbox");
    let mut detach = Once::new("--detach");
    let mut check = Once::new("--check");
    let mut allow_uids = Vec::new();

    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("port") => port.number(parser.value()?, 0, 65_535)?,
            Arg::Long("server-info") => server_info.path(parser.value()?)?,
            Arg::Long("http-shutdown") => http_shutdown.set(())?,
            Arg::Long("upstream-url") => upstream_url.text(parser.value()?)?,
            Arg::Long("ca-file") => ca_file.path(parser.value()?)?,
            Arg::Long("access-log") => access_log.set(())?,
            Arg::Long("max-connections") => max_connections.number(parser.value()?, 1, 65_536)?,
            Arg::Long("client-timeout") => client_timeout.number(parser.value()?, 1, 86_400)?,
            Arg::Long("upstream-timeout") => upstream_timeout.number(parser.value()?, 1, 86_400)?,
            Arg::Long("allow-plaintext-upstream") => plaintext.set(())?,
            Arg::Long("auth-header") => auth_header.text(parser.value()?)?,
            Arg::Long("allow-token68") => token68.set(())?,
            Arg::Long("allow-uid") => {
                let mut uid = Once::new("--allow-uid");
                uid.number(parser.value()?, 0, LAST_ID)?;
                allow_uids.extend(uid.value.map(|uid| uid as u32));
            }
            Arg::Long("client-token-file") => client_token_file.path(parser.value()?)?,
            Arg::Long("max-requests") => {
                max_requests.number(parser.value()?, 1, 1_000_000_000_000)?
            }
            Arg::Long("user") => user.text(parser.value()?)?,
            Arg::Long("require-secret-memory") => require_secret_memory.set(())?,
            Arg::Long("no-sandbox") => no_sandbox.set(())?,
            Arg::Long("detach") => detach.set(())?,
            Arg::Long("check") => check.set(())?,
            Arg::Long("help") | Arg::Short('h') => return Ok(Command::Help),
            Arg::Long("version") | Arg::Short('V') => return Ok(Command::Version),
            other => return Err(other.unexpected().into()),
        }
    }

    let url = upstream_url.value.as_deref().unwrap_or(UPSTREAM_URL);
    let upstream = UpstreamUrl::parse(url).map_err(UsageError::Url)?;
    let clear = upstream.scheme == Scheme::Http && !upstream.is_loopback();
    if clear && plaintext.value.is_none() {
        return Err(UsageError::Plaintext);
    }
    let auth_header = match auth_header.value {
        // Once, for as long as the program runs.
        Some(text) => AuthHeader::parse(text.leak()).map_err(UsageError::AuthHeader)?,
        None => AuthHeader::BEARER,
    };
    let named = |name| {
        let value = variable(name).filter(|value| !value.is_empty());
        value.map(|path| (name, PathBuf::from(path)))
    };
    let ca_file = ca_file.value.map(|path| ("--ca-file", path));
    let ca_file =
        ca_file.or_else(|| named("SSL_CERT_FILE")).or_else(|| named("CODEX_CA_CERTIFICATE"));
    Ok(Command::Run(Box::new(Config {
        port: port.value.map_or(0, |port| port as u16),
        server_info: server_info.value,
        http_shutdown: http_shutdown.value.is_some(),
        upstream,
        auth_header,
        key_form: if token68.value.is_some() { KeyForm::Token68 } else { KeyForm::Word },
        ca_file,
        check: check.value.is_some(),
        detach: detach.value.is_some(),
        access_log: access_log.value.is_some(),
        max_connections: max_connections.value.map_or(limits::CONNECTIONS, |n| n as usize),
        allow_uids,
        client_token_file: client_token_file.value,
        max_requests: max_requests.value,
        user: user.value.map(|text| User::parse(&text)).transpose()?,
        require_secret_memory: require_secret_memory.value.is_some(),
        no_sandbox: no_sandbox.value.is_some(),
        client_timeout: Duration::from_secs(client_timeout.value.unwrap_or(30)),
        upstream_timeout: upstream_timeout.value.map(Duration::from_secs),
    })))
}

/// An option that may be there once.
struct Once<T> {
    flag: &'static str,
    value: Option<T>,
}

impl<T> Once<T> {
    fn new(flag: &'static str) -> Once<T> {
        Once { flag, value: None }
    }

    fn set(&mut self, value: T) -> Result<(), UsageError> {
        match self.value.replace(value) {
            None => Ok(()),
            Some(_) => Err(UsageError::Repeated(self.flag)),
        }
    }
}

impl User {
    fn parse(text: &str) -> Result<User, UsageError> {
        let id = |digits: &str| whole_number(digits.as_bytes()).filter(|id| *id <= LAST_ID);
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(id(group).ok_or(UsageError::User)? as u32)),
            None => (text, None),
        };
        let user = match id(user) {
            Some(uid) => Ok(uid as u32),
            None if user.is_empty() => return Err(UsageError::User),
            None => Err(CString::new(user).map_err(|_| UsageError::User)?),
        };
        Ok(User { user, group })
    }
}

/// Digits and nothing else, so no sign, no space, no unit.
fn whole_number(digits: &[u8]) -> Option<u64> {
    if !(1..=19).contains(&digits.len()) {
        return None;
    }
    digits
        .iter()
        .try_fold(0u64, |n, b| b.is_ascii_digit().then(|| n.wrapping_mul(10) + u64::from(b - b'0')))
}

impl Once<u64> {
    fn number(&mut self, value: OsString, least: u64, most: u64) -> Result<(), UsageError> {
        match whole_number(value.as_encoded_bytes()) {
            Some(number) if (least..=most).contains(&number) => self.set(number),
            _ => Err(UsageError::Number(self.flag, least, most)),
        }
    }
}

impl Once<String> {
    fn text(&mut self, value: OsString) -> Result<(), UsageError> {
        let text = value.into_string().map_err(|_| UsageError::Text(self.flag))?;
        self.set(text)
    }
}

impl Once<PathBuf> {
    fn path(&mut self, value: OsString) -> Result<(), UsageError> {
        if value.is_empty() {
            return Err(UsageError::NoPath(self.flag));
        }
        self.set(value.into())
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
        assert_eq!(config.upstream, UpstreamUrl::parse(UPSTREAM_URL).unwrap());
        assert!(!config.http_shutdown && !config.access_log && config.server_info.is_none());
        assert_eq!(config.client_timeout, Duration::from_secs(30));
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
            (&["extra"], "unexpected argument \"extra\""),
            (&["--port"], "missing argument for option '--port'"),
            (&["--port", "70000"], "--port takes a whole number from 0 to 65535"),
            (&["--port", "+80"], "--port takes a whole number from 0 to 65535"),
            (&["--port="], "--port takes a whole number from 0 to 65535"),
            (&["--port", "00000000000000000080"], "--port takes a whole number from 0 to 65535"),
            (&["--allow-uid", "root"], "--allow-uid takes a whole number from 0 to 4294967294"),
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
        assert_eq!(user("1000"), User { user: Ok(1000), group: None });
        assert_eq!(user("1000:100"), User { user: Ok(1000), group: Some(100) });
        assert_eq!(user("nobody"), User { user: Err(c"nobody".into()), group: None });
        assert_eq!(user("nobody:7"), User { user: Err(c"nobody".into()), group: Some(7) });
        assert_eq!(config(&["--allow-uid", "1", "--allow-uid=0"]).allow_uids, [1, 0]);
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
