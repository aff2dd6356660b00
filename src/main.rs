//! The order of a start: harden, read the command line, detach, then the phases of `start`.

use std::io::{self, Write};
use std::process::ExitCode;

use codex_responses_api_proxy::cli::{self, Command, Config, flags};
use codex_responses_api_proxy::net::probe::probe;
use codex_responses_api_proxy::net::report::{self, Form};
use codex_responses_api_proxy::process::detach::ParentReport;
use codex_responses_api_proxy::process::harden::{self, Beginning};
use codex_responses_api_proxy::process::service_manager::Handover;
use codex_responses_api_proxy::process::sys;

mod start;

use start::{Forked, Role, StartError, Stderr, detach, forget_environment, usage};

codex_responses_api_proxy::run_first!(sys::first_steps);

#[global_allocator]
static ALLOCATOR: sys::WipingAllocator = sys::WipingAllocator;

/// Runs the relay until it is told to end.
pub fn main() -> ExitCode {
    let hardened = harden::base();
    let form = Form::of(std::env::args_os().skip(1));
    report::end_on_panic(form);
    let stderr = Stderr::new(form);
    let mut parent = ParentReport::default();
    let ended = hardened
        .map_err(StartError::from)
        .and_then(|beginning| execute(beginning, stderr, &mut parent));
    ended.unwrap_or_else(|error| stderr.report_failure(&mut parent, &error))
}

/// Carries out the command line.
fn execute(
    beginning: Beginning,
    stderr: Stderr,
    parent: &mut ParentReport,
) -> Result<ExitCode, StartError> {
    let arguments = std::env::args_os().skip(1);
    let command = cli::parse(arguments, |name| std::env::var_os(name))
        .map_err(|error| usage(error.to_string()))?;
    let config = match command {
        Command::Run(config) => config,
        Command::Help => return Ok(print(&flags::help())),
        Command::Version => return Ok(print(&cli::version())),
        Command::Probe(port) => {
            probe(port).map_err(|error| error.to_string())?;
            return Ok(print(&format!("a relay responds on 127.0.0.1:{port}\n")));
        }
    };
    let handover = Handover::take();
    if config.token_exchange().is_some() {
        forget_environment();
    }
    match detach(&config)? {
        Role::Relay(report) => *parent = report,
        Role::Parent(code) => return Ok(code),
    }
    run(&config, beginning, handover, stderr, parent)?;
    Ok(ExitCode::SUCCESS)
}

/// The phases of a start, in their order.
fn run(
    config: &Config,
    beginning: Beginning,
    handover: Handover,
    stderr: Stderr,
    parent: &mut ParentReport,
) -> Result<(), StartError> {
    let forked = Forked::new(config, beginning, handover)?;
    let prepared = forked.prepare()?;
    if config.check {
        return prepared.check();
    }
    let keyed = prepared.read_key()?;
    let listening = keyed.listen(stderr)?;
    let confined = listening.confine(parent)?;
    confined.serve(stderr, parent)
}

fn print(text: &str) -> ExitCode {
    // If stdout is closed, no process needs the text.
    let _ = io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}
