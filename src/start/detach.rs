//! `--detach`: which process continues as the relay.

use std::process::ExitCode;

use codex_responses_api_proxy::cli::Config;
use codex_responses_api_proxy::process::detach::{self, ForkSide, ParentReport, StartOutcome};
use codex_responses_api_proxy::process::egress;

use super::error::{StartError, usage};

/// What the process does next.
pub enum Role {
    /// The process becomes the relay. The report says how its start ended.
    Relay(ParentReport),
    /// The process is the parent of a relay whose start has ended. It exits with this code.
    Parent(ExitCode),
}

/// With `--detach`, forks. The parent waits for the end of the start and passes its result on.
pub fn detach(config: &Config) -> Result<Role, StartError> {
    if !config.detach || config.check {
        return Ok(Role::Relay(ParentReport::default()));
    }
    if config.access_log && !detach::is_stderr_kept() {
        let reason = "--access-log with --detach needs stderr to be a file; add 2> FILE";
        return Err(usage(reason.into()));
    }
    match detach::fork().map_err(|error| format!("--detach: {error}"))? {
        ForkSide::Child(parent) => Ok(Role::Relay(parent)),
        ForkSide::Parent(start) => {
            egress::wipe();
            match start.outcome() {
                StartOutcome::Told(code, lines) => {
                    let _ = ParentReport::default().tell(code, &lines);
                    Ok(Role::Parent(ExitCode::from(code)))
                }
                StartOutcome::Died(reason) => Err(reason.into()),
            }
        }
    }
}
