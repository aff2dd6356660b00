//! How the first exchange went, as the feeder tells the relay: one message of fixed size, which is
//! parsed strictly. Tokens go another way.

use core::fmt;

use super::Step;
use super::receive::ResponseFault;
use super::token_response::ErrorWord;
use crate::http1::local_response::UpstreamFault;

/// Bytes of a notice: kind, step, cause, code, status, length of the word, word. The rest is zero.
pub const NOTICE: usize = 64;

/// How the first exchange went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The token has been written, or will be at once.
    Fetched,
    /// There is no token, and the feeder ends.
    Failed(Failure),
}

/// Why there is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Before the exchange.
    Setup(SetupFault),
    /// In this step of the exchange.
    Exchange(Step, Cause),
}

impl Failure {
    /// Why to ask again would change nothing, if that is so.
    pub fn why_final(&self) -> Option<&'static str> {
        match self {
            Failure::Setup(_) => None,
            Failure::Exchange(_, cause) => cause.why_final(),
        }
    }
}

/// What went wrong before the exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetupFault {
    /// stdin is a terminal.
    Terminal,
    /// stdin cannot be read.
    Unreadable,
    /// The first line of stdin is empty.
    Empty,
    /// The first line of stdin is longer than a token.
    TooLong,
    /// The first line of stdin has a byte that no token has.
    BadCharacter,
    /// No memory fit to hold tokens.
    Memory,
    /// The egress proxy that the environment names cannot be used.
    Proxy,
    /// The file of `--ca-file` or the users of a flag could not be read a second time.
    Files,
    /// The kernel gives no descriptors, or TLS cannot be set up.
    Resources,
}

impl SetupFault {
    const ALL: [SetupFault; 9] = [
        SetupFault::Terminal,
        SetupFault::Unreadable,
        SetupFault::Empty,
        SetupFault::TooLong,
        SetupFault::BadCharacter,
        SetupFault::Memory,
        SetupFault::Proxy,
        SetupFault::Files,
        SetupFault::Resources,
    ];
}

/// Why a step has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No connection could be made.
    Connection(UpstreamFault),
    /// The response has this status, and perhaps a word that says why.
    Status(u16, Option<ErrorWord>),
    /// The response cannot be used.
    Response(ResponseFault),
    /// The response did not come in time.
    Timeout,
}

impl Cause {
    /// Why to ask again would change nothing: the provider has decided, or a connector, which cannot
    /// be forked again by a confined process, is lost.
    pub fn why_final(self) -> Option<&'static str> {
        match self {
            Cause::Status(400 | 401 | 403, _) => Some("GitHub or the token endpoint refuses"),
            Cause::Connection(UpstreamFault::ConnectorFailed) => {
                Some("a connector of the feeder has ended")
            }
            _ => None,
        }
    }
}

/// The notice has another form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// The faults of a connection, each of which is named by its position.
const FAULTS: [UpstreamFault; 20] = [
    UpstreamFault::Dns,
    UpstreamFault::Refused,
    UpstreamFault::Unreachable,
    UpstreamFault::OutOfDescriptors,
    UpstreamFault::ConnectorFailed,
    UpstreamFault::NotTrusted,
    UpstreamFault::TlsUnknownIssuer,
    UpstreamFault::TlsWrongName,
    UpstreamFault::TlsExpired,
    UpstreamFault::TlsBadCertificate,
    UpstreamFault::TlsClientCertificate,
    UpstreamFault::TlsFailed,
    UpstreamFault::ConnectTimeout,
    UpstreamFault::Closed,
    UpstreamFault::ProxyDns,
    UpstreamFault::ProxyUnreachable,
    UpstreamFault::ProxyAuthRequired,
    UpstreamFault::ProxyBadResponse,
    UpstreamFault::ProxyTimeout,
    UpstreamFault::ProxyRefused(0),
];

const FETCHED: u8 = 1;
const SETUP: u8 = 2;
const ID_TOKEN: u8 = 3;
const ACCESS_TOKEN: u8 = 4;
const CONNECTION: u8 = 1;
const STATUS: u8 = 2;
const RESPONSE: u8 = 3;
const TIMEOUT: u8 = 4;
/// Where the word begins, behind its length.
const WORD_AT: usize = 6;

impl Notice {
    /// Encodes the notice.
    pub fn encode(self) -> [u8; NOTICE] {
        let mut message = [0; NOTICE];
        let (step, cause) = match self {
            Notice::Fetched => {
                message[0] = FETCHED;
                return message;
            }
            Notice::Failed(Failure::Setup(fault)) => {
                message[0] = SETUP;
                message[2] = place(&SetupFault::ALL, fault);
                return message;
            }
            Notice::Failed(Failure::Exchange(step, cause)) => (step, cause),
        };
        message[0] = if step == Step::IdToken { ID_TOKEN } else { ACCESS_TOKEN };
        let (kind, code, status) = match cause {
            Cause::Connection(UpstreamFault::ProxyRefused(status)) => {
                (CONNECTION, place(&FAULTS, UpstreamFault::ProxyRefused(0)), status)
            }
            // A fault that is not of a connection is told as a closed one.
            Cause::Connection(fault) if !FAULTS.contains(&fault) => {
                (CONNECTION, place(&FAULTS, UpstreamFault::Closed), 0)
            }
            Cause::Connection(fault) => (CONNECTION, place(&FAULTS, fault), 0),
            Cause::Status(status, _) => (STATUS, 0, status),
            Cause::Response(fault) => (RESPONSE, place(&ResponseFault::ALL, fault), 0),
            Cause::Timeout => (TIMEOUT, 0, 0),
        };
        (message[1], message[2]) = (kind, code);
        message[3..5].copy_from_slice(&status.to_ne_bytes());
        if let Cause::Status(_, Some(word)) = cause {
            let word = word.as_bytes();
            message[WORD_AT - 1] = word.len() as u8;
            message[WORD_AT..WORD_AT + word.len()].copy_from_slice(word);
        }
        message
    }

    /// Decodes a notice. Any message that [`Notice::encode`] does not make is refused.
    pub fn decode(message: &[u8]) -> Result<Notice, Malformed> {
        let bytes: &[u8; NOTICE] = message.try_into().map_err(|_| Malformed)?;
        let notice = match bytes[0] {
            FETCHED => Notice::Fetched,
            SETUP => Notice::Failed(Failure::Setup(at(&SetupFault::ALL, bytes[2])?)),
            ID_TOKEN => Notice::Failed(Failure::Exchange(Step::IdToken, cause(bytes)?)),
            ACCESS_TOKEN => Notice::Failed(Failure::Exchange(Step::AccessToken, cause(bytes)?)),
            _ => return Err(Malformed),
        };
        // There is one way to write each notice.
        if notice.encode() == *bytes { Ok(notice) } else { Err(Malformed) }
    }
}

fn cause(bytes: &[u8; NOTICE]) -> Result<Cause, Malformed> {
    let status = u16::from_ne_bytes([bytes[3], bytes[4]]);
    Ok(match bytes[1] {
        CONNECTION => Cause::Connection(match at(&FAULTS, bytes[2])? {
            UpstreamFault::ProxyRefused(_) => UpstreamFault::ProxyRefused(status),
            fault => fault,
        }),
        STATUS => {
            let len = usize::from(bytes[WORD_AT - 1]);
            let word = bytes.get(WORD_AT..WORD_AT + len).ok_or(Malformed)?;
            Cause::Status(status, ErrorWord::new(word))
        }
        RESPONSE => Cause::Response(at(&ResponseFault::ALL, bytes[2])?),
        TIMEOUT => Cause::Timeout,
        _ => return Err(Malformed),
    })
}

/// The position of a fault in its table.
fn place<T: PartialEq>(table: &[T], fault: T) -> u8 {
    table.iter().position(|known| *known == fault).map_or(u8::MAX, |at| at as u8)
}

fn at<T: Copy>(table: &[T], place: u8) -> Result<T, Malformed> {
    table.get(usize::from(place)).copied().ok_or(Malformed)
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (step, cause) = match self {
            Failure::Setup(fault) => return write!(f, "{fault}"),
            Failure::Exchange(step, cause) => (step, cause),
        };
        f.write_str(match step {
            Step::IdToken => "step 1, GitHub's ID token: ",
            Step::AccessToken => "step 2, the access token: ",
        })?;
        match cause {
            // By its `error.code`, which docs/errors.md explains.
            Cause::Connection(fault) => write!(f, "no connection ({})", fault.response().code),
            Cause::Status(status, word) => {
                write!(f, "HTTP status {status}")?;
                word.map_or(Ok(()), |word| write!(f, ", {word}"))
            }
            Cause::Response(fault) => write!(f, "{fault}"),
            Cause::Timeout => f.write_str("no response in time"),
        }
    }
}

impl fmt::Display for SetupFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SetupFault::Terminal => {
                "GitHub's request token is no key to type; give it through a pipe (printenv \
                 ACTIONS_ID_TOKEN_REQUEST_TOKEN | codex-responses-api-proxy)"
            }
            SetupFault::Unreadable => {
                "cannot read GitHub's request token from stdin; give it through a pipe"
            }
            SetupFault::Empty => {
                "GitHub's request token must be provided via stdin (printenv \
                 ACTIONS_ID_TOKEN_REQUEST_TOKEN); the job needs the permission id-token: write"
            }
            SetupFault::TooLong => "the request token on stdin is too large: at most 8192 bytes",
            SetupFault::BadCharacter => {
                "the request token on stdin has a byte that no token has; give the token alone"
            }
            SetupFault::Memory => {
                "no memory fit to hold tokens; raise the limit on locked memory (ulimit -l)"
            }
            SetupFault::Proxy => "the egress proxy of the environment cannot be used",
            SetupFault::Files => "a file or user that the flags name could not be read",
            SetupFault::Resources => {
                "no descriptors or no memory are left; raise ulimit -n and ulimit -u"
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oidc::limits;

    fn notices() -> Vec<Notice> {
        let word = ErrorWord::new(&[b'a'; limits::WORD]);
        let mut causes = vec![
            Cause::Timeout,
            Cause::Status(503, None),
            Cause::Status(400, word),
            Cause::Connection(UpstreamFault::ProxyRefused(403)),
        ];
        causes.extend(FAULTS.map(Cause::Connection));
        causes.extend(ResponseFault::ALL.map(Cause::Response));
        let mut all = vec![Notice::Fetched];
        all.extend(SetupFault::ALL.map(|fault| Notice::Failed(Failure::Setup(fault))));
        for step in [Step::IdToken, Step::AccessToken] {
            let failed = |cause| Notice::Failed(Failure::Exchange(step, cause));
            all.extend(causes.iter().copied().map(failed));
        }
        all
    }

    #[test]
    fn what_is_told_is_understood_and_shown_in_one_line() {
        for notice in notices() {
            assert_eq!(Notice::decode(&notice.encode()), Ok(notice));
            if let Notice::Failed(failure) = notice {
                assert!(failure.to_string().bytes().all(|byte| (32..127).contains(&byte)));
            }
        }
    }

    #[test]
    fn what_means_nothing_is_refused() {
        for notice in notices() {
            let message = notice.encode();
            for at in 0..NOTICE {
                for byte in 0..=255 {
                    let mut changed = message;
                    changed[at] = byte;
                    if let Ok(notice) = Notice::decode(&changed) {
                        assert_eq!(notice.encode(), changed);
                    }
                }
            }
            assert_eq!(Notice::decode(&message[1..]), Err(Malformed));
            assert_eq!(Notice::decode(&[&message[..], &[0]].concat()), Err(Malformed));
        }
        assert_eq!(Notice::decode(&[0; NOTICE]), Err(Malformed));
    }

    #[test]
    fn only_a_decision_of_the_provider_and_the_loss_of_a_connector_are_final() {
        for (cause, is_final) in [
            (Cause::Status(400, None), true),
            (Cause::Status(401, None), true),
            (Cause::Status(403, None), true),
            (Cause::Status(404, None), false),
            (Cause::Status(302, None), false),
            (Cause::Status(429, None), false),
            (Cause::Status(500, None), false),
            (Cause::Timeout, false),
            (Cause::Response(ResponseFault::NotJson), false),
            (Cause::Connection(UpstreamFault::Refused), false),
            (Cause::Connection(UpstreamFault::ConnectorFailed), true),
        ] {
            assert_eq!(cause.why_final().is_some(), is_final, "{cause:?}");
        }
    }
}
