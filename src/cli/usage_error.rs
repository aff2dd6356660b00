//! What is wrong with a command line, in one line of text.

use std::fmt;

use crate::http1::auth_header::AuthHeaderError;
use crate::http1::url::UrlError;

/// The last user or group id; 2^32 - 1 means "none" to the kernel.
pub(super) const LAST_ID: u64 = u32::MAX as u64 - 1;

/// What is wrong with the command line.
#[derive(Debug)]
pub enum UsageError {
    /// lexopt's own: unknown option, missing value, stray argument.
    Syntax(lexopt::Error),
    /// No flag has this name; the flag that has the most similar one.
    Unknown(String, Option<&'static str>),
    /// The reference has this flag and this program, on purpose, has not.
    NotHere(&'static str, &'static str),
    /// A flag that is given twice.
    Repeated(&'static str),
    /// The value of this flag is not a whole number in this range.
    Number(&'static str, u64, u64),
    /// Not a user.
    User,
    /// The value of this flag is not a user.
    UserName(&'static str),
    /// `any` and further values of this flag.
    AnyAndMore(&'static str),
    /// `--probe` and further flags.
    ProbeAndMore,
    /// `--upstream-url` cannot be used.
    Url(UrlError),
    /// http:// to a host that is not loopback.
    Plaintext,
    /// `--auth-header` cannot be used.
    AuthHeader(AuthHeaderError),
    /// `--drop-header` is no token.
    FieldName(&'static str),
    /// `--allow-host` is no host, or a pattern, or has a port.
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
            UsageError::NotHere(flag, why) => write!(f, "{flag} is not here, on purpose: {why}"),
            UsageError::Repeated(flag) => write!(f, "--{flag} is given twice; keep one"),
            UsageError::Number(flag, least, most) => {
                write!(f, "--{flag} takes a whole number from {least} to {most}")
            }
            UsageError::User => f.write_str("--user takes the name or number of a user, and :GID"),
            UsageError::UserName(flag) => {
                write!(f, "--{flag} takes the name of a user, or a number up to {LAST_ID}")
            }
            UsageError::AnyAndMore(flag) => {
                write!(f, "--{flag} any trusts every user; leave the other --{flag} out")
            }
            UsageError::ProbeAndMore => f.write_str(
                "--probe asks a relay that is running and starts none; leave the other flags out",
            ),
            UsageError::Url(error) => write!(f, "--upstream-url: {error}"),
            UsageError::Plaintext => f.write_str(
                "--upstream-url: http:// would send the key in the clear; use https://, or add \
                 --allow-plaintext-upstream",
            ),
            UsageError::AuthHeader(error) => write!(f, "--auth-header: {error}"),
            UsageError::FieldName(flag) => {
                write!(f, "--{flag} takes the name of a field, such as OpenAI-Project")
            }
            UsageError::HostName(flag) => write!(
                f,
                "--{flag} takes the name or address of a host, without a port (any port will do), \
                 such as host.docker.internal"
            ),
            UsageError::Text(flag) => write!(f, "--{flag} takes text in UTF-8"),
            UsageError::NoPath(flag) => write!(f, "--{flag} takes the path of a file"),
        }
    }
}

/// The flags of the reference that are not here, and what to do without them.
const NOT_HERE: [(&str, &str); 10] = [
    (
        "--dump-dir",
        "it would write prompts and responses to disk, and this program can write no such file once it \
         listens; --access-log tells sizes, times and how each exchange ended",
    ),
    ("--github-oidc", ONE_UPSTREAM),
    ("--github-oidc-request-url", ONE_UPSTREAM),
    ("--oidc-audience", ONE_UPSTREAM),
    ("--identity-provider-id", ONE_UPSTREAM),
    ("--service-account-id", ONE_UPSTREAM),
    ("-c", NO_CONFIGURATION),
    ("--config", NO_CONFIGURATION),
    ("--enable", NO_CONFIGURATION),
    ("--disable", NO_CONFIGURATION),
];
const ONE_UPSTREAM: &str = "this program talks to one upstream alone; fetch the token beforehand and give it \
                            on stdin, with --allow-token68";
const NO_CONFIGURATION: &str = "there is no configuration but the flags; see --help";

impl UsageError {
    /// Why there is no flag of this name; `similar` is the flag that has the most similar one.
    pub(super) fn unknown(name: &str, similar: Option<&'static str>) -> UsageError {
        UsageError::not_here("--", name)
            .unwrap_or_else(|| UsageError::Unknown(name.to_owned(), similar))
    }

    /// The same of a flag of one letter.
    pub(super) fn unknown_letter(letter: char) -> UsageError {
        UsageError::not_here("-", letter.encode_utf8(&mut [0; 4]))
            .unwrap_or_else(|| lexopt::Arg::Short(letter).unexpected().into())
    }

    fn not_here(dashes: &str, name: &str) -> Option<UsageError> {
        let (flag, why) =
            NOT_HERE.iter().find(|(flag, _)| flag.strip_prefix(dashes) == Some(name))?;
        Some(UsageError::NotHere(flag, why))
    }
}

/// Shows what was typed without control characters.
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
