//! The command line: lexopt reads the flags, and the table of flags sets each value in a
//! [`Config`].

mod config;
pub mod flags;
mod oidc;
mod usage_error;
mod value;

use std::ffi::OsString;
use std::path::PathBuf;

use lexopt::Arg;

use crate::http1::url::Scheme;
use crate::net::tls::PROVIDER;
pub use config::{Config, UpstreamUids, UserAndGroup, UserName};
use flags::{Action, FLAGS, Flag};
pub use usage_error::UsageError;
use value::Value;

/// The text of `--version`: the commit and the target are from `build.rs`.
pub fn version() -> String {
    let build = concat!(env!("CARGO_PKG_VERSION"), " (", env!("COMMIT"), ", ", env!("TARGET"));
    ["codex-responses-api-proxy ", build, ", ", PROVIDER, ")\n"].concat()
}

/// The action that the command line requests.
#[derive(Debug)]
pub enum Command {
    /// Run the relay.
    Run(Box<Config>),
    /// Print [`flags::help`].
    Help,
    /// Print [`version`].
    Version,
    /// Test whether a relay responds on this port.
    Probe(u16),
}

/// Reads the arguments, without the program's name, and the environment variables `SSL_CERT_FILE`
/// and `CODEX_CA_CERTIFICATE`, which name a file as `--ca-file` does. `variable` returns the value
/// of an environment variable.
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
    if config.rotate && config.key_file.is_some() {
        return Err(UsageError::RotatedKeyFile);
    }
    if config.key_max_age.is_some() && !config.rotate && !config.github_oidc {
        return Err(UsageError::AgeWithoutRotation);
    }
    let upstream = &config.upstream;
    let is_clear = upstream.scheme == Scheme::Http && !upstream.is_loopback();
    if is_clear && !config.allow_plaintext_upstream {
        return Err(UsageError::Plaintext);
    }
    let is_given = |name: &str| Flag::named(name).is_some_and(|(index, _)| given[index]);
    oidc::check(&mut config, &is_given)?;
    let named = |name| {
        let value = variable(name).filter(|value| !value.is_empty());
        value.map(|path| (name, PathBuf::from(path)))
    };
    config.ca_file =
        config.ca_file.or_else(|| named("SSL_CERT_FILE")).or_else(|| named("CODEX_CA_CERTIFICATE"));
    Ok(Command::Run(Box::new(config)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::http1::url::UpstreamUrl;
    use crate::process::credential::KeyForm;

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
        assert_eq!(config.settings.timeouts.client, Duration::from_secs(30));
        assert_eq!(config.settings.grace, Duration::from_secs(1));
        assert_eq!(config.settings.timeouts.upstream, None);
        assert_eq!(config.settings.max_connections, 1024);
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
                "--dump-dir is not supported: it would write prompts and responses to disk, and a \
                 confined relay cannot; use --access-log for the sizes, times and result of each \
                 exchange",
            ),
            (
                &["--enable=x"],
                "--enable is not supported: flags are the only configuration; see --help",
            ),
            (
                &["-c", "model=x"],
                "-c is not supported: flags are the only configuration; see --help",
            ),
            (
                &["--oidc-audience=x"],
                "--github-oidc and the flags that belong to it are all needed; add --github-oidc, \
                 --github-oidc-request-url, --identity-provider-id, --service-account-id",
            ),
            (
                &["--github-oidc-request-url=http://10.0.0.1/"],
                "--github-oidc-request-url: http:// would send a token in the clear; use https://",
            ),
            (
                &["--github-oidc-request-url", "https://u@a.b/"],
                "--github-oidc-request-url: remove the user name and password from the URL",
            ),
            (
                &["--oidc-token-url", "https://u:p@a.b/"],
                "--oidc-token-url: remove the user name and password from the URL",
            ),
            (
                &["--oidc-token-url", "https://a.b/#f"],
                "--oidc-token-url: the URL must not contain a fragment (#)",
            ),
            (&["--oidc-audience", ""], "--oidc-audience takes a text of 1 to 512 bytes"),
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
                "--upstream-uid any trusts every user; remove the other --upstream-uid",
            ),
            (
                &["--upstream-uid=1", "--upstream-uid=any"],
                "--upstream-uid any trusts every user; remove the other --upstream-uid",
            ),
            (&["--user", ""], "--user takes the name or number of a user, with or without :GID"),
            (&["--user", "1:x"], "--user takes the name or number of a user, with or without :GID"),
            (
                &["--user", "a:4294967295"],
                "--user takes the name or number of a user, with or without :GID",
            ),
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
        assert_eq!(user("1000"), UserAndGroup { user: UserName::Id(1000), group: None });
        assert_eq!(user("1000:100"), UserAndGroup { user: UserName::Id(1000), group: Some(100) });
        assert_eq!(
            user("nobody"),
            UserAndGroup { user: UserName::Name(c"nobody".into()), group: None }
        );
        assert_eq!(
            user("nobody:7"),
            UserAndGroup { user: UserName::Name(c"nobody".into()), group: Some(7) }
        );
        let both = [UserName::Name(c"agent".into()), UserName::Id(0)];
        assert_eq!(config(&["--allow-uid", "agent", "--allow-uid=0"]).allow_uids, both);
        let upstream = |arguments: &[&str]| config(arguments).upstream_uids;
        assert_eq!(upstream(&[]), UpstreamUids::Named(vec![]));
        assert_eq!(upstream(&["--upstream-uid", "any"]), UpstreamUids::Any);
        let named = upstream(&["--upstream-uid", "agent", "--upstream-uid=0"]);
        assert_eq!(named, UpstreamUids::Named(both.to_vec()));
    }

    const OIDC: [&str; 5] = [
        "--github-oidc",
        "--github-oidc-request-url=https://a.b/x?y",
        "--oidc-audience=aud",
        "--identity-provider-id=idp",
        "--service-account-id=sa",
    ];

    #[test]
    fn a_token_exchange_needs_all_its_flags_and_names_those_that_are_missing() {
        let config_of_all = config(&OIDC);
        let exchange = config_of_all.token_exchange().unwrap();
        assert_eq!(exchange.request_url, UpstreamUrl::parse("https://a.b/x?y").unwrap());
        assert_eq!(exchange.token_url, UpstreamUrl::openai_tokens());
        let openai = UpstreamUrl::parse("https://auth.openai.com/oauth/token").unwrap();
        assert_eq!(exchange.token_url, openai);
        let ids = (&*exchange.identity_provider_id, &*exchange.service_account_id);
        assert_eq!((exchange.audience.as_str(), ids), ("aud", ("idp", "sa")));
        assert_eq!(config(&OIDC).key_form, KeyForm::Token68);
        assert!(config(&[]).token_exchange().is_none());
        for at in 0..OIDC.len() {
            let others: Vec<&str> = [&OIDC[..at], &OIDC[at + 1..]].concat();
            let name = OIDC[at].split('=').next().unwrap();
            let error = read(&others).unwrap_err().to_string();
            assert!(error.ends_with(&format!("all needed; add {name}")), "{error}");
        }
        let error = read(&["--oidc-token-url=https://a.b/"]).unwrap_err().to_string();
        assert!(error.contains("add --github-oidc, "), "{error}");
    }

    #[test]
    fn a_token_exchange_is_for_openai_unless_another_token_endpoint_is_named() {
        let upstream = ["--upstream-url=https://c.d/"];
        let error = read(&[&OIDC[..], &upstream].concat()).unwrap_err();
        assert!(matches!(error, UsageError::OidcUpstream), "{error}");
        let token_url = ["--oidc-token-url=http://127.0.0.1:1/t"];
        let config = config(&[&OIDC[..], &upstream, &token_url].concat());
        assert_eq!(config.token_exchange().unwrap().token_url.path_and_query, "/t");
        let default = ["--upstream-url=https://api.openai.com/v1/responses"];
        assert!(read(&[&OIDC[..], &default].concat()).is_ok());
        for (flag, name) in [
            ("--key-file=x", "--key-file"),
            ("--rotate", "--rotate"),
            ("--key-max-age=60", "--key-max-age"),
        ] {
            let error = read(&[&OIDC[..], &[flag]].concat()).unwrap_err().to_string();
            assert!(error.ends_with(&format!("leave {name} out")), "{error}");
        }
    }

    #[test]
    fn an_id_has_a_bound() {
        let read = |n: usize| {
            let id = format!("--service-account-id={}", "x".repeat(n));
            read(&[&OIDC[..4], &[id.as_str()]].concat())
        };
        assert!(read(crate::oidc::limits::ID).is_ok());
        assert!(matches!(
            read(crate::oidc::limits::ID + 1),
            Err(UsageError::OidcId("service-account-id"))
        ));
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
