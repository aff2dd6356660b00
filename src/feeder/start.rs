//! The life of the feeder process: it prepares and confines itself, gets the first token, and renews
//! it from then on.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, PipeWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use super::exchange::{ExchangeError, Exchanger, RelayGone};
use super::memory::TokenMemory;
use super::plan::{Hop, Plan, Stderr};
use super::renewal;
use super::system_calls::LAYERS;
use crate::connector::link::Link;
use crate::connector::report::encode;
use crate::connector::wire::ConnectorConfig;
use crate::connector::{self, ConnectorStartError, NewConnector};
use crate::net::report::Event;
use crate::oidc::notice::{Failure, Notice, SetupFault};
use crate::process::confine::Sandbox;
use crate::process::filter::Descriptors;
use crate::process::harden::{self, HardenError};
use crate::process::protections::{ProcessProtections, Requirement, Unmet};
use crate::process::sys::child;
use crate::process::sys::{self, Standard};

/// How long the first exchange may take. Callers wait 10 s for the relay to listen.
const FIRST: Duration = Duration::from_secs(8);

/// Why the feeder ends before it has a token.
enum Stop {
    Harden(HardenError),
    Failed(Failure),
    /// The relay or a connector has ended.
    Gone,
}

impl From<SetupFault> for Stop {
    fn from(fault: SetupFault) -> Stop {
        Stop::Failed(Failure::Setup(fault))
    }
}

impl From<HardenError> for Stop {
    fn from(error: HardenError) -> Stop {
        Stop::Harden(error)
    }
}

impl From<RelayGone> for Stop {
    fn from(RelayGone: RelayGone) -> Stop {
        Stop::Gone
    }
}

/// Everything that the feeder process does. The process ends when this function returns.
pub(super) fn live<'a>(
    link: OwnedFd,
    pipe: PipeWriter,
    parent: u32,
    sandbox: bool,
    prepare: impl FnOnce() -> Result<Plan<'a>, SetupFault>,
) {
    sys::wipe_freed_memory();
    let Ok((link, pipe)) = drop_inherited(link, pipe) else {
        return;
    };
    let result = feed(&link, pipe, parent, sandbox, prepare);
    let message = match result {
        Ok(()) | Err(Stop::Gone) => return,
        Err(Stop::Harden(error)) => encode(&Err(error)).to_vec(),
        Err(Stop::Failed(failure)) => Notice::Failed(failure).encode().to_vec(),
    };
    // A relay that is gone need not be told.
    let _ = tell(&link, &message);
}

/// Drops the descriptors and signal dispositions that the feeder inherited, and its session. stdin
/// stays: the request token comes from there. stdout is the pipe until the connectors have been
/// forked.
fn drop_inherited(link: OwnedFd, pipe: PipeWriter) -> io::Result<(OwnedFd, PipeWriter)> {
    child::set_name(c"feeder");
    sys::replace(Standard::Output, pipe.as_fd())?;
    drop(pipe);
    let link = child::keep_only(link)?;
    let pipe = PipeWriter::from(io::stdout().as_fd().try_clone_to_owned()?);
    sys::replace(Standard::Output, connector::null_device()?.as_fd())?;
    connector::outlive_signals();
    sys::new_session()?;
    Ok((link, pipe))
}

fn feed<'a>(
    link: &OwnedFd,
    mut pipe: PipeWriter,
    parent: u32,
    sandbox: bool,
    prepare: impl FnOnce() -> Result<Plan<'a>, SetupFault>,
) -> Result<(), Stop> {
    // The caller may keep stdin open and silent for as long as it likes.
    end_with(parent)?;
    let fork = || connector::fork(sandbox).map_err(|_| SetupFault::Resources);
    let connectors = [fork()?, fork()?];
    let Plan { exchange, hops, user, requirement, stderr } = prepare()?;
    sys::wipe_variables(|_| true);
    child::wipe_arguments();
    let [id_token, access_token] = hops;
    let [first, second] = connectors;
    let links = [configure(first, &id_token, user)?, configure(second, &access_token, user)?];
    let tables = [&id_token, &access_token]
        .map(|hop| hop.users.as_ref().map(|users| users.tables()).unwrap_or_default());
    let [first, second] = links;
    let mut memory = TokenMemory::new()?;
    meet(requirement, &memory)?;
    let hops = [(id_token, first), (access_token, second)];
    let (mut exchanger, reports) = {
        let reports = [report(&hops[0].1), report(&hops[1].1)];
        let exchanger = Exchanger::new(exchange, hops, &pipe).map_err(|_| SetupFault::Resources)?;
        (exchanger, reports)
    };
    read_request_token(&mut memory, stderr)?;
    let by = Instant::now() + FIRST;
    let sealed = sys::seal_program();
    let executable_memory_denied = sys::is_executable_memory_denied();
    let sandbox = if sandbox { Sandbox::new(0) } else { Sandbox::off() };
    let descriptors = Descriptors { server_info: None, socket_tables: tables };
    drop_privileges(user, parent)?;
    let uid = sys::user_id();
    let read_back = sandbox.with_descriptors(descriptors).confine_process(LAYERS)?;
    let own = ProcessProtections { uid, read_back, sealed, executable_memory_denied };
    let [first, second] = reports;
    for report in [own, first?, second?] {
        tell(link, &encode(&Ok(report)))?;
    }
    let mut write = |line: &[u8]| pipe.write_all(line);
    let mut renewed = match exchanger.exchange(&mut memory, Some(by), &mut write) {
        Ok(renewed) => renewed,
        Err(ExchangeError::Failed(failure)) => return Err(Stop::Failed(failure)),
        Err(ExchangeError::RelayGone) => return Err(Stop::Gone),
    };
    tell(link, &Notice::Fetched.encode())?;
    loop {
        exchanger.wait(renewed.due_in())?;
        let mut attempts = 0;
        renewed = loop {
            let failure = match exchanger.exchange(&mut memory, None, &mut write) {
                Ok(renewed) => break renewed,
                Err(ExchangeError::Failed(failure)) => failure,
                Err(ExchangeError::RelayGone) => return Err(Stop::Gone),
            };
            if let Some(reason) = failure.why_final() {
                say(&mut exchanger, stderr, &failure, &format!("{reason}; no more attempts"))?;
                return Ok(());
            }
            attempts += 1;
            let mut random = [0];
            let _ = sys::random(&mut random);
            let pause = renewal::pause(attempts, random[0]);
            let then = format!("next attempt in {} ms", pause.as_millis());
            say(&mut exchanger, stderr, &failure, &then)?;
            exchanger.wait(pause)?;
        };
    }
}

/// Reports a renewal that has failed.
fn say(
    exchanger: &mut Exchanger<'_>,
    stderr: Stderr,
    failure: &Failure,
    then: &str,
) -> Result<(), RelayGone> {
    let Stderr::Kept(form) = stderr else {
        return Ok(());
    };
    let text =
        format!("codex-responses-api-proxy: warning: the key was not renewed: {failure}; {then}");
    exchanger.report(&Event::new("renewal_failed", text).render(form))
}

/// Sends a connector its configuration.
fn configure(connector: NewConnector, hop: &Hop, user: Option<(u32, u32)>) -> Result<Link, Stop> {
    let config = ConnectorConfig { host: hop.host.clone(), port: hop.port, user, reach: hop.reach };
    Ok(connector.configure(&config).map_err(|_| Stop::Gone)?.link())
}

/// What a connector reports about itself.
#[inline(never)]
fn report(link: &Link) -> Result<ProcessProtections, Stop> {
    connector::report(link).map_err(|error| match error {
        ConnectorStartError::Harden(error) => Stop::Harden(error),
        ConnectorStartError::Gone => Stop::Gone,
    })
}

/// Checks that the memory is what the flags ask for.
fn meet(requirement: Requirement, memory: &TokenMemory) -> Result<(), HardenError> {
    requirement.memory(memory.kind()).map_err(|unmet| match unmet {
        Unmet::Step(error) => error,
        Unmet::Missing(_) => HardenError::Incomplete,
    })
}

/// Reads the request token, and then leaves stdin if it is a file, or if the relay goes on in the
/// background. Closing another pipe would kill a process that writes to it later by SIGPIPE. Leaves
/// stderr too, unless it is kept.
fn read_request_token(memory: &mut TokenMemory, stderr: Stderr) -> Result<(), SetupFault> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return Err(SetupFault::Terminal);
    }
    memory.read_request_token(stdin.as_fd())?;
    let is_file = || -> io::Result<bool> {
        Ok(File::from(stdin.as_fd().try_clone_to_owned()?).metadata()?.is_file())
    };
    let null = connector::null_device().map_err(|_| SetupFault::Resources)?;
    let mut left = Vec::new();
    if stderr == Stderr::Left {
        left.extend([Standard::Input, Standard::Error]);
    } else if is_file().map_err(|_| SetupFault::Resources)? {
        left.push(Standard::Input);
    }
    left.into_iter()
        .try_for_each(|standard| sys::replace(standard, null.as_fd()))
        .map_err(|_| SetupFault::Resources)?;
    // Where that is not permitted, stderr stays as it is.
    let _ = open_stderr_again();
    Ok(())
}

/// Opens a pipe that is stderr again, with separate flags: a write to a full pipe then fails, even
/// if another process has filled the pipe since [`Exchanger::report`] polled it.
fn open_stderr_again() -> io::Result<()> {
    let stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    if !stderr.metadata()?.file_type().is_fifo() {
        return Ok(());
    }
    let again = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open("/proc/self/fd/2")?;
    sys::replace(Standard::Error, again.as_fd())
}

/// Gives up every privilege. A change of user clears the parent-death signal.
fn drop_privileges(user: Option<(u32, u32)>, parent: u32) -> Result<(), HardenError> {
    harden::drop_privileges(user)?;
    end_with(parent)
}

/// From here on the feeder ends with the relay.
fn end_with(parent: u32) -> Result<(), HardenError> {
    match child::end_with(parent) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => child::end_now(0),
        Err(_) => Err(HardenError::NewPrivileges),
    }
}

fn tell(link: &OwnedFd, message: &[u8]) -> Result<(), Stop> {
    sys::send(link.as_fd(), message).map(|_| ()).map_err(|_| Stop::Gone)
}
