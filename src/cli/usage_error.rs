//! Errors of the command line, each in one line of text.

use std::fmt;

use crate::http1::auth_header::AuthHeaderError;
use crate::http1::url::UrlError;
use crate::oidc::limits;

/// The largest user or group id. 2^32 - 1 means "none" to the kernel.
pub(super) const LAST_ID: u64 = u32::MAX as u64 - 1;

/// An error of the command line.
#[derive(Debug)]
pub enum UsageError {
    /// An error that lexopt reports: an unknown option, a missing value or a stray argument.
    Syntax(lexopt::Error),
    /// No flag has this name. The second field is the most similar flag name, if one is similar
    /// enough.
    Unknown(String, Option<&'static str>),
    /// The reference implementation has this flag, and this program deliberately does not have it.
    /// The second field is the reason.
    Unsupported(&'static str, &'static str),
    /// The flag is given twice.
    Repeated(&'static str),
    /// The value of this flag is not a whole number from the first to the second bound.
    Number(&'static str, u64, u64),
    /// The value of `--user` is not a user.
    User,
    /// The value of this flag is not a user.
    UserName(&'static str),
    /// This flag has the value `any` and further values.
    AnyAndMore(&'static str),
    /// `--probe` is given together with other flags.
    ProbeAndMore,
    /// `--rotate` and `--key-file` are given together.
    RotatedKeyFile,
    /// `--key-max-age` is given without `--rotate`.
    AgeWithoutRotation,
    /// The URL of `--upstream-url` cannot be used.
    Url(UrlError),
    /// The upstream is `http://` on a host that is not loopback, without
    /// `--allow-plaintext-upstream`.
    Plaintext,
    /// `--github-oidc` and the flags that belong to it are given in part; these are missing.
    OidcMissing(Vec<&'static str>),
    /// The URL of this flag cannot be used.
    OidcUrl(&'static str, UrlError),
    /// The URL of this flag is `http://` on a host that is not loopback.
    OidcPlaintext(&'static str),
    /// The value of this flag is empty or too long.
    OidcId(&'static str),
    /// `--github-oidc` with an upstream that is not OpenAI's, and OpenAI's token endpoint.
    OidcUpstream,
    /// `--github-oidc` with this flag, which is about another source of the key.
    OidcAnd(&'static str),
    /// The value of `--auth-header` cannot be used.
    AuthHeader(AuthHeaderError),
    /// The value of this flag is not a field name (RFC 9110 §5.1).
    FieldName(&'static str),
    /// The value of this flag is not a host, or is a pattern, or has a port.
    HostName(&'static str),
    /// The value of this flag is not UTF-8.
    Text(&'static str),
    /// The value of this flag is empty.
    NoPath(&'static str),
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UsageError::Syntax(error) => write_printable(f, &error.to_string()),
            UsageError::Unknown(name, similar) => {
                write_printable(f, &format!("invalid option '--{name}'"))?;
                similar.map_or(Ok(()), |similar| write!(f, "; did you mean --{similar}?"))
            }
            UsageError::Unsupported(flag, why) => write!(f, "{flag} is not supported: {why}"),
            UsageError::Repeated(flag) => write!(f, "--{flag} is given twice; keep one"),
            UsageError::Number(flag, least, most) => {
                write!(f, "--{flag} takes a whole number from {least} to {most}")
            }
            UsageError::User => {
                f.write_str("--user takes the name or number of a user, with or without :GID")
            }
            UsageError::UserName(flag) => {
                write!(f, "--{flag} takes the name of a user, or a number up to {LAST_ID}")
            }
            UsageError::AnyAndMore(flag) => {
                write!(f, "--{flag} any trusts every user; remove the other --{flag}")
            }
            UsageError::ProbeAndMore => {
                f.write_str("--probe tests a running relay and starts none; remove the other flags")
            }
            UsageError::RotatedKeyFile => f.write_str(
                "--rotate reads each key from stdin; leave --key-file out and write the lines to stdin",
            ),
            UsageError::AgeWithoutRotation => {
                f.write_str("--key-max-age needs --rotate, which lets a fresh key come")
            }
            UsageError::Url(error) => write!(f, "--upstream-url: {error}"),
            UsageError::Plaintext => f.write_str(
                "--upstream-url: http:// would send the key in the clear; use https://, or add \
                 --allow-plaintext-upstream",
            ),
            UsageError::OidcMissing(missing) => write!(
                f,
                "--github-oidc and the flags that belong to it are all needed; add --{}",
                missing.join(", --")
            ),
            // No key is given with these flags.
            UsageError::OidcUrl(flag, UrlError::Userinfo) => {
                write!(f, "--{flag}: remove the user name and password from the URL")
            }
            UsageError::OidcUrl(flag, error) => write!(f, "--{flag}: {error}"),
            UsageError::OidcPlaintext(flag) => {
                write!(f, "--{flag}: http:// would send a token in the clear; use https://")
            }
            UsageError::OidcId(flag) => {
                write!(f, "--{flag} takes a text of 1 to {} bytes", limits::ID)
            }
            UsageError::OidcUpstream => f.write_str(
                "--github-oidc with another --upstream-url would send OpenAI's token there; name the \
                 token endpoint of that upstream with --oidc-token-url",
            ),
            UsageError::OidcAnd(flag) => write!(
                f,
                "--github-oidc gets the key and renews it; leave --{flag} out"
            ),
            UsageError::AuthHeader(error) => write!(f, "--auth-header: {error}"),
            UsageError::FieldName(flag) => {
                write!(f, "--{flag} takes the name of a field, such as OpenAI-Project")
            }
            UsageError::HostName(flag) => write!(
                f,
                "--{flag} takes the name or address of a host, without a port (every port is accepted), \
                 such as host.docker.internal"
            ),
            UsageError::Text(flag) => write!(f, "--{flag} takes text in UTF-8"),
            UsageError::NoPath(flag) => write!(f, "--{flag} takes the path of a file"),
        }
    }
}

/// Flags of the reference implementation that this program does not have, and what to do instead.
const UNSUPPORTED: [(&str, &str); 5] = [
    (
        "--dump-dir",
        "it would write prompts and responses to disk, and a confined relay cannot; use --access-log \
         for the sizes, times and result of each exchange",
    ),
    ("-c", NO_CONFIGURATION),
    ("--config", NO_CONFIGURATION),
    ("--enable", NO_CONFIGURATION),
    ("--disable", NO_CONFIGURATION),
];
const NO_CONFIGURATION: &str = "flags are the only configuration; see --help";

impl UsageError {
    /// The error for a name that no flag has. `similar` is the most similar flag name.
    pub(super) fn unknown(name: &str, similar: Option<&'static str>) -> UsageError {
        UsageError::unsupported("--", name)
            .unwrap_or_else(|| UsageError::Unknown(name.to_owned(), similar))
    }

    /// The error for a letter that no flag has.
    pub(super) fn unknown_letter(letter: char) -> UsageError {
        UsageError::unsupported("-", letter.encode_utf8(&mut [0; 4]))
            .unwrap_or_else(|| lexopt::Arg::Short(letter).unexpected().into())
    }

    fn unsupported(dashes: &str, name: &str) -> Option<UsageError> {
        let (flag, why) =
            UNSUPPORTED.iter().find(|(flag, _)| flag.strip_prefix(dashes) == Some(name))?;
        Some(UsageError::Unsupported(flag, why))
    }
}

/// Writes the text with control characters escaped.
fn write_printable(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    text.chars().try_for_each(|c| {
        if c.is_control() { write!(f, "{}", c.escape_default()) } else { write!(f, "{c}") }
    })
}

impl From<lexopt::Error> for UsageError {
    fn from(error: lexopt::Error) -> UsageError {
        UsageError::Syntax(error)
    }
}
