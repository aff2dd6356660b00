//! The table of flags. The parser and `--help` use this table. So do the tests that compare the
//! flags in a document with those of the program.

use std::time::Duration;

use super::config::{Config, UpstreamUids};
use super::usage_error::UsageError;
use super::value::Value;
use crate::http1::auth_header::AuthHeader;
use crate::http1::url::UpstreamUrl;
use crate::process::credential::KeyForm;

/// One flag.
pub struct Flag {
    /// The name, without the two dashes.
    pub name: &'static str,
    /// The one-letter name, if there is one.
    pub letter: Option<char>,
    /// The name of the value in `--help`. Empty if the flag takes no value.
    pub value: &'static str,
    /// Whether the flag may be given more than once.
    pub repeatable: bool,
    /// The section of `--help` that lists the flag.
    pub section: Section,
    /// The description, in one line of any length.
    pub help: &'static str,
    /// The effect of the flag.
    pub action: Action,
}

/// The sections of `--help`, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// The clients' side.
    Listening,
    /// The upstream's side.
    Upstream,
    /// A key from GitHub's OIDC, instead of stdin.
    Oidc,
    /// Users and tokens that have access.
    Users,
    /// Protections against an attacker.
    Hardening,
    /// Ways to start the relay.
    Starting,
    /// All other flags.
    Other,
}

impl Section {
    /// All sections, in order.
    pub const ALL: [Section; 7] = [
        Section::Listening,
        Section::Upstream,
        Section::Oidc,
        Section::Users,
        Section::Hardening,
        Section::Starting,
        Section::Other,
    ];

    /// The title of the section.
    pub fn title(self) -> &'static str {
        match self {
            Section::Listening => "Listening",
            Section::Upstream => "Upstream",
            Section::Oidc => "No key at all, on GitHub",
            Section::Users => "Who may use it",
            Section::Hardening => "Hardening",
            Section::Starting => "Starting",
            Section::Other => "Other",
        }
    }
}

/// The effect of a flag on the configuration.
pub enum Action {
    /// Sets a field. The flag takes no value.
    Switch(fn(&mut Config)),
    /// Reads a value and sets a field.
    Value(fn(&mut Config, Value) -> Result<(), UsageError>),
    /// Prints [`help`] and ends.
    Help,
    /// Prints [`version`](super::version) and ends.
    Version,
}

/// The first lines of `--help`.
const USAGE: &str = "\
Relays POST /v1/responses from 127.0.0.1 to one upstream and adds the API key,
which it reads from stdin. Everything else is refused.

Usage: codex-responses-api-proxy [OPTIONS] < KEY
";
/// The last lines of `--help`.
const ENVIRONMENT: &str = "
Environment:
  HTTPS_PROXY, ALL_PROXY     the egress proxy (http:// only), as for curl
  NO_PROXY                   hosts, domains, networks that need no proxy

The key, for example:
  printenv OPENAI_API_KEY | env -u OPENAI_API_KEY codex-responses-api-proxy
";

/// The width of the help text in columns, and the column in which descriptions begin.
const WIDTH: usize = 79;
const INDENT: usize = 29;

/// The text of `--help`.
pub fn help() -> String {
    let mut text = USAGE.to_owned();
    for section in Section::ALL {
        text.push_str(&format!("\n{}:\n", section.title()));
        for flag in FLAGS.iter().filter(|flag| flag.section == section) {
            flag.describe(&mut text);
        }
    }
    text + ENVIRONMENT
}

impl Flag {
    /// The flag of this name, and its index in the table.
    pub fn named(name: &str) -> Option<(usize, &'static Flag)> {
        FLAGS.iter().enumerate().find(|(_, flag)| flag.name == name)
    }

    /// The flag of this one-letter name, and its index in the table.
    pub fn with_letter(letter: char) -> Option<(usize, &'static Flag)> {
        FLAGS.iter().enumerate().find(|(_, flag)| flag.letter == Some(letter))
    }

    /// The most similar flag name, if one is similar enough.
    pub fn similar(name: &str) -> Option<&'static str> {
        let names = FLAGS.iter().map(|flag| (distance(name, flag.name), flag.name));
        // At most a third of the letters may differ.
        names.min().filter(|(distance, meant)| 3 * distance <= meant.len()).map(|(_, meant)| meant)
    }

    fn describe(&self, text: &mut String) {
        let mut line = match self.letter {
            Some(letter) => format!("  -{letter}, --{}", self.name),
            None => format!("  --{}", self.name),
        };
        if !self.value.is_empty() {
            line.push_str(&format!(" <{}>", self.value));
        }
        if line.len() >= INDENT {
            text.push_str(&line);
            text.push('\n');
            line.clear();
        }
        for word in self.help.split(' ') {
            if line.len() + 1 + word.len() > WIDTH {
                text.push_str(&line);
                text.push('\n');
                line.clear();
            }
            if line.len() < INDENT {
                line.push_str(&" ".repeat(INDENT - line.len()));
            } else {
                line.push(' ');
            }
            line.push_str(word);
        }
        text.push_str(&line);
        text.push('\n');
    }
}

/// The number of edits that turn one name into the other. An edit inserts, removes or replaces a
/// letter, or swaps two neighbours (optimal string alignment).
fn distance(from: &str, to: &str) -> usize {
    let (from, to) = (from.as_bytes(), to.as_bytes());
    let mut rows = vec![vec![0; to.len() + 1]; from.len() + 1];
    for i in 0..=from.len() {
        for j in 0..=to.len() {
            rows[i][j] = match (i, j) {
                (0, _) => j,
                (_, 0) => i,
                _ => {
                    let replaced = rows[i - 1][j - 1] + usize::from(from[i - 1] != to[j - 1]);
                    let mut least = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                    let swapped =
                        i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1];
                    if swapped {
                        least = least.min(rows[i - 2][j - 2] + 1);
                    }
                    least
                }
            };
        }
    }
    rows[from.len()][to.len()]
}

/// The largest value of `--key-max-age`: a year, in seconds.
const LONGEST_KEY_AGE: u64 = 365 * 86_400;

/// Every flag, in the order of `--help`.
pub const FLAGS: &[Flag] = &[
    Flag {
        name: "port",
        letter: None,
        value: "PORT",
        repeatable: false,
        section: Section::Listening,
        help: "port on 127.0.0.1 and [::1] (default: any free port)",
        action: Action::Value(|config, value| {
            config.port = value.number(0, 65_535)? as u16;
            Ok(())
        }),
    },
    Flag {
        name: "server-info",
        letter: None,
        value: "FILE",
        repeatable: false,
        section: Section::Listening,
        help: "write {\"port\":PORT,\"pid\":PID} there once listening",
        action: Action::Value(|config, value| {
            config.server_info = Some(value.path()?);
            Ok(())
        }),
    },
    Flag {
        name: "http-shutdown",
        letter: None,
        value: "",
        repeatable: false,
        section: Section::Listening,
        help: "let GET /shutdown end the relay",
        action: Action::Switch(|config| config.http_shutdown = true),
    },
    Flag {
        name: "max-connections",
        letter: None,
        value: "N",
        repeatable: false,
        section: Section::Listening,
        help: "client connections at one time (default: 1024)",
        action: Action::Value(|config, value| {
            config.settings.max_connections = value.number(1, 65_536)? as usize;
            Ok(())
        }),
    },
    Flag {
        name: "client-timeout",
        letter: None,
        value: "SECONDS",
        repeatable: false,
        section: Section::Listening,
        help: "for a whole request head, and for a pause within a body (default: 30)",
        action: Action::Value(|config, value| {
            config.settings.timeouts.client = value.seconds(1)?;
            Ok(())
        }),
    },
    Flag {
        name: "grace",
        letter: None,
        value: "SECONDS",
        repeatable: false,
        section: Section::Listening,
        help: "how long exchanges may continue after a signal to end (default: 1)",
        action: Action::Value(|config, value| {
            config.settings.grace = value.seconds(0)?;
            Ok(())
        }),
    },
    Flag {
        name: "upstream-url",
        letter: None,
        value: "URL",
        repeatable: false,
        section: Section::Upstream,
        help: "where requests go (default: https://api.openai.com/v1/responses)",
        action: Action::Value(|config, value| {
            config.upstream = UpstreamUrl::parse(&value.text()?).map_err(UsageError::Url)?;
            Ok(())
        }),
    },
    Flag {
        name: "ca-file",
        letter: None,
        value: "PEM",
        repeatable: false,
        section: Section::Upstream,
        help: "trust these roots in addition to the built-in ones (also: SSL_CERT_FILE, CODEX_CA_CERTIFICATE)",
        action: Action::Value(|config, value| {
            config.ca_file = Some(("--ca-file", value.path()?));
            Ok(())
        }),
    },
    Flag {
        name: "upstream-timeout",
        letter: None,
        value: "SECONDS",
        repeatable: false,
        section: Section::Upstream,
        help: "for a response to begin, and for a pause within it (default: none)",
        action: Action::Value(|config, value| {
            config.settings.timeouts.upstream = Some(value.seconds(1)?);
            Ok(())
        }),
    },
    Flag {
        name: "allow-plaintext-upstream",
        letter: None,
        value: "",
        repeatable: false,
        section: Section::Upstream,
        help: "allow http:// to a host that is not loopback: the key then travels in the clear",
        action: Action::Switch(|config| config.allow_plaintext_upstream = true),
    },
    Flag {
        name: "upstream-uid",
        letter: None,
        value: "UID|NAME|any",
        repeatable: true,
        section: Section::Upstream,
        help: "trust a process of this user as the http:// upstream, or as the proxy with a password, on \
               this machine, in addition to root's and the relay's own (repeatable)",
        action: Action::Value(|config, value| {
            let flag = value.flag;
            match &mut config.upstream_uids {
                UpstreamUids::Named(users) if value.text != "any" => users.push(value.user_name()?),
                UpstreamUids::Named(users) if users.is_empty() => {
                    config.upstream_uids = UpstreamUids::Any;
                }
                _ => return Err(UsageError::AnyAndMore(flag)),
            }
            Ok(())
        }),
    },
    Flag {
        name: "auth-header",
        letter: None,
        value: "'NAME: {}'",
        repeatable: false,
        section: Section::Upstream,
        help: "the field that carries the key, instead of 'Authorization: Bearer {}' (e.g. 'api-key: {}')",
        action: Action::Value(|config, value| {
            // The text is leaked once, because it lasts as long as the program.
            let text = value.text()?.leak();
            config.auth_header = AuthHeader::parse(text).map_err(UsageError::AuthHeader)?;
            Ok(())
        }),
    },
    Flag {
        name: "key-file",
        letter: None,
        value: "FILE",
        repeatable: false,
        section: Section::Upstream,
        help: "read the key from this file instead of stdin",
        action: Action::Value(|config, value| {
            config.key_file = Some(value.path()?);
            Ok(())
        }),
    },
    Flag {
        name: "rotate",
        letter: None,
        value: "",
        repeatable: false,
        section: Section::Upstream,
        help: "let each further line on stdin replace the key",
        action: Action::Switch(|config| config.rotate = true),
    },
    Flag {
        name: "key-max-age",
        letter: None,
        value: "SECONDS",
        repeatable: false,
        section: Section::Upstream,
        help: "with --rotate: respond 503 when no line has come for so long (default: never)",
        action: Action::Value(|config, value| {
            config.key_max_age = Some(Duration::from_secs(value.number(1, LONGEST_KEY_AGE)?));
            Ok(())
        }),
    },
    Flag {
        name: "allow-token68",
        letter: None,
        value: "",
        repeatable: false,
        section: Section::Upstream,
        help: "accept a JWT as key: also . ~ + / and =, and up to 8192 bytes",
        action: Action::Switch(|config| config.key_form = KeyForm::Token68),
    },
    Flag {
        name: "drop-header",
        letter: None,
        value: "NAME",
        repeatable: true,
        section: Section::Upstream,
        help: "do not forward clients' fields of this name (repeatable; e.g. OpenAI-Project)",
        action: Action::Value(|config, value| {
            config.drop_headers.push(value.field_name()?);
            Ok(())
        }),
    },
    Flag {
        name: "allow-encoded-responses",
        letter: None,
        value: "",
        repeatable: false,
        section: Section::Upstream,
        help: "forward responses that cannot be searched for the key: compressed, or in UTF-16 or similar",
        action: Action::Switch(|config| config.allow_encoded_responses = true),
    },
    Flag {
        name: "github-oidc",
        letter: None,
        value: "",
        repeatable: false,
        section: Section::Oidc,
        help: "get the key by GitHub's OIDC and renew it; stdin is GitHub's request token",
        action: Action::Switch(|config| config.github_oidc = true),
    },
    Flag {
        name: "github-oidc-request-url",
        letter: None,
        value: "URL",
        repeatable: false,
        section: Section::Oidc,
        help: "where GitHub gives ID tokens ($ACTIONS_ID_TOKEN_REQUEST_URL)",
        action: Action::Value(|config, value| {
            config.oidc.request_url = value.token_url()?;
            Ok(())
        }),
    },
    Flag {
        name: "oidc-audience",
        letter: None,
        value: "AUDIENCE",
        repeatable: false,
        section: Section::Oidc,
        help: "for whom GitHub makes the ID token",
        action: Action::Value(|config, value| {
            config.oidc.audience = value.id()?;
            Ok(())
        }),
    },
    Flag {
        name: "identity-provider-id",
        letter: None,
        value: "ID",
        repeatable: false,
        section: Section::Oidc,
        help: "the identity provider, as OpenAI calls it",
        action: Action::Value(|config, value| {
            config.oidc.identity_provider_id = value.id()?;
            Ok(())
        }),
    },
    Flag {
        name: "service-account-id",
        letter: None,
        value: "ID",
        repeatable: false,
        section: Section::Oidc,
        help: "the service account, as OpenAI calls it",
        action: Action::Value(|config, value| {
            config.oidc.service_account_id = value.id()?;
            Ok(())
        }),
    },
    Flag {
        name: "oidc-token-url",
        letter: None,
        value: "URL",
        repeatable: false,
        section: Section::Oidc,
        help: "another token endpoint than OpenAI's",
        action: Action::Value(|config, value| {
            config.oidc.token_url = value.token_url()?;
            Ok(())
        }),
    },
    Flag {
        name: "allow-host",
        letter: None,
        value: "NAME",
        repeatable: true,
        section: Section::Users,
        help: "accept this name in Host too, with any port (repeatable; for port forwards, e.g. host.docker.internal)",
        action: Action::Value(|config, value| {
            config.allow_hosts.push(value.host_name()?);
            Ok(())
        }),
    },
    Flag {
        name: "allow-uid",
        letter: None,
        value: "UID|NAME",
        repeatable: true,
        section: Section::Users,
        help: "serve this local user only (repeatable)",
        action: Action::Value(|config, value| {
            config.allow_uids.push(value.user_name()?);
            Ok(())
        }),
    },
    Flag {
        name: "client-token-file",
        letter: None,
        value: "FILE",
        repeatable: false,
        section: Section::Users,
        help: "require Authorization: Bearer TOKEN in each request, with the token from this file",
        action: Action::Value(|config, value| {
            config.client_token_file = Some(value.path()?);
            Ok(())
        }),
    },
    Flag {
        name: "max-requests",
        letter: None,
        value: "N",
        repeatable: false,
        section: Section::Users,
        help: "forward this many requests, then respond with 429",
        action: Action::Value(|config, value| {
            config.settings.max_requests = Some(value.number(1, 1_000_000_000_000)?);
            Ok(())
        }),
    },
    Flag {
        name: "user",
        letter: None,
        value: "NAME|UID[:GID]",
        repeatable: false,
        section: Section::Hardening,
        help: "change to this user once the port and the files are open (needs root)",
        action: Action::Value(|config, value| {
            config.user = Some(value.user()?);
            Ok(())
        }),
    },
    Flag {
        name: "require-secret-memory",
        letter: None,
        value: "",
        repeatable: false,
        section: Section::Hardening,
        help: "do not start if the kernel has no memfd_secret",
        action: Action::Switch(|config| config.require_secret_memory = true),
    },
    Flag {
        name: "require-hardening",
        letter: None,
        value: "",
        repeatable: false,
        section: Section::Hardening,
        help: "do not start without secret memory and the full sandbox",
        action: Action::Switch(|config| config.require_hardening = true),
    },
    Flag {
        name: "no-sandbox",
        letter: None,
        value: "",
        repeatable: false,
        section: Section::Hardening,
        help: "no seccomp, no Landlock, no MDWE: for debugging only",
        action: Action::Switch(|config| config.no_sandbox = true),
    },
    Flag {
        name: "detach",
        letter: None,
        value: "",
        repeatable: false,
        section: Section::Starting,
        help: "return once the relay listens; it continues in the background",
        action: Action::Switch(|config| config.detach = true),
    },
    Flag {
        name: "check",
        letter: None,
        value: "",
        repeatable: false,
        section: Section::Starting,
        help: "connect to the upstream without a request, report the protections in force, and end; needs no key",
        action: Action::Switch(|config| config.check = true),
    },
    Flag {
        name: "probe",
        letter: None,
        value: "PORT",
        repeatable: false,
        section: Section::Starting,
        help: "test whether a relay responds on 127.0.0.1:PORT, and end: 0 if so, 1 if not; needs no key",
        action: Action::Value(|config, value| {
            config.probe = Some(value.number(1, 65_535)? as u16);
            Ok(())
        }),
    },
    Flag {
        name: "access-log",
        letter: None,
        value: "",
        repeatable: false,
        section: Section::Other,
        help: "write a JSON line for each exchange to stderr",
        action: Action::Switch(|config| config.access_log = true),
    },
    Flag {
        name: "help",
        letter: Some('h'),
        value: "",
        repeatable: false,
        section: Section::Other,
        help: "print this help",
        action: Action::Help,
    },
    Flag {
        name: "version",
        letter: Some('V'),
        value: "",
        repeatable: false,
        section: Section::Other,
        help: "print version, commit, target and TLS library",
        action: Action::Version,
    },
];
