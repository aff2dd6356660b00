//! Why the relay does not start, with its exit code.

use std::io;

use codex_responses_api_proxy::connector;
use codex_responses_api_proxy::connector::link::ConnectorFailed;
use codex_responses_api_proxy::feeder::FeederError;
use codex_responses_api_proxy::http1::limits::KEY_SETS;
use codex_responses_api_proxy::http1::local_response::UpstreamFault;
use codex_responses_api_proxy::oidc::notice::{Failure, SetupFault};
use codex_responses_api_proxy::process::credential::locked_kib;
use codex_responses_api_proxy::process::harden::HardenError;
use codex_responses_api_proxy::process::protections::Unmet;
use codex_responses_api_proxy::process::sys;

/// The start failed. This code, [`USAGE`] and `CONNECTOR` are the exit codes that [`HardenError`]
/// does not have.
pub const FAILED: u8 = 1;
/// The command line is wrong.
pub const USAGE: u8 = 2;
/// The connector or the feeder ended before the relay did.
const CONNECTOR: u8 = 16;

/// Why the relay does not start.
pub struct StartError {
    /// The text after `error:`.
    pub reason: String,
    /// The exit code.
    pub code: u8,
}

impl From<String> for StartError {
    fn from(reason: String) -> StartError {
        StartError { reason, code: FAILED }
    }
}

impl From<HardenError> for StartError {
    fn from(error: HardenError) -> StartError {
        StartError { reason: error.to_string(), code: error.exit_code() }
    }
}

impl From<Unmet> for StartError {
    fn from(unmet: Unmet) -> StartError {
        StartError { reason: unmet.to_string(), code: unmet.exit_code() }
    }
}

impl From<connector::ConnectorStartError> for StartError {
    fn from(error: connector::ConnectorStartError) -> StartError {
        match error {
            connector::ConnectorStartError::Harden(error) => error.into(),
            connector::ConnectorStartError::Gone => ConnectorFailed.into(),
        }
    }
}

impl From<ConnectorFailed> for StartError {
    fn from(ConnectorFailed: ConnectorFailed) -> StartError {
        let reason = "the connector process has ended; start the relay again, and report it as a bug \
                      unless somebody killed it";
        StartError { reason: reason.into(), code: CONNECTOR }
    }
}

impl From<FeederError> for StartError {
    fn from(error: FeederError) -> StartError {
        match error {
            FeederError::Harden(error) => error.into(),
            FeederError::Failed(failure) => {
                let mut reason = format!("--github-oidc: {failure}");
                if failure == Failure::Setup(SetupFault::Memory) {
                    // The relay needs more than the feeder.
                    let kib = locked_kib(sys::page_size(), KEY_SETS);
                    reason += &format!(" to {kib} KiB or more");
                }
                reason.into()
            }
            FeederError::Gone => {
                let reason = "the feeder process has ended; start the relay again, and report it as a \
                              bug unless somebody killed it";
                StartError { reason: reason.into(), code: CONNECTOR }
            }
        }
    }
}

/// The command line is wrong, for this reason.
pub fn usage(reason: String) -> StartError {
    StartError { reason, code: USAGE }
}

/// TLS could not be set up.
pub fn tls_failed(fault: UpstreamFault) -> StartError {
    format!("--upstream-url: {}", fault.response()).into()
}

/// The loop, or another thread, could not be set up.
pub fn loop_failed(error: io::Error) -> StartError {
    match error.get_ref().and_then(|e| e.downcast_ref::<HardenError>()) {
        Some(error) => StartError::from(*error),
        None => {
            format!("cannot start the event loop ({error}); raise ulimit -n and ulimit -u").into()
        }
    }
}
