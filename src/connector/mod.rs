//! The connector: a process that resolves the name of the one host, races its addresses (RFC 8305),
//! connects, and passes each connected descriptor to the event loop.
//!
//! The connector is forked before the relay reads any secret, so the connector maps no secret. The
//! loop holds the key and may call neither socket(2) nor connect(2).
//!
//! ```text
//!  loop (key)  ── Dial, Cancel, Doubt ──►  connector  ── fork ──►  lookup (one for each lookup)
//!              ◄── reply + descriptor ───             ◄── pipe ──
//! ```

mod addresses;
pub mod confine;
pub mod link;
mod lookup;
mod race;
pub mod report;
mod serve;
mod system_calls;
pub mod wire;

use std::fs::OpenOptions;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use addresses::Addresses;
use confine::Confinement;
use link::Link;
use report::REPORT;
use serve::{ATTEMPTS, Connector, Target};
use wire::{ConnectorConfig, LONGEST};

use crate::http1::url::Host;
use crate::process::confine::{ReadBack, Sandbox};
use crate::process::harden::{self, HardenError};
use crate::process::protections::ProcessProtections;
use crate::process::signals::HARMLESS;
use crate::process::sys::child::{self, Disposition};
use crate::process::sys::fd_passing::{message_pair, receive_message, send_message};
use crate::process::sys::{self, Standard};

/// The uid and gid of the connector when root starts the relay without `--user`. No distribution
/// assigns this id, and the 65,536 ids of a container include it. The id is not that of `nobody`,
/// because other processes of `nobody` could kill the connector.
const USER: (u32, u32) = (65_520, 65_520);

/// The environment variables that the connector keeps. They configure the resolver
/// (resolv.conf(5)).
const KEPT_VARIABLES: [&[u8]; 2] = [b"RES_OPTIONS", b"LOCALDOMAIN"];

/// The limit on the processes of [`USER`] (RLIMIT_NPROC): each relay has a connector and its
/// lookup. Without the limit, code that took a connector over could fork until the machine has no
/// process left.
/// Tested by `connector_limits::its_own_user_has_a_bounded_number_of_processes`.
const PROCESSES: u64 = 1024;

/// Descriptors of the connector besides those of its connection attempts: the standard ones, the
/// link, the server-info file, the pipe of a lookup, and those that the lookup opens.
const OTHER_DESCRIPTORS: u64 = 32;

/// How long the relay waits for the connector to confine itself.
const START: Duration = Duration::from_secs(20);

/// A connector process that waits for its [`ConnectorConfig`].
pub struct NewConnector {
    link: OwnedFd,
}

/// A connector process that has its [`ConnectorConfig`] and confines itself.
pub struct StartingConnector {
    link: OwnedFd,
}

/// Why the connector did not start.
#[derive(Debug)]
pub enum ConnectorStartError {
    /// A step of the connector's hardening failed.
    Harden(HardenError),
    /// The connector ended, sent a malformed report, or did not report in time.
    Gone,
}

/// Forks the connector, which sandboxes itself if `sandbox` is true. Call it only while the process
/// has one thread and no secret. From here on SIGCHLD is ignored, so the kernel reaps the children
/// of this process. Fails when the kernel refuses a socket pair or a process.
pub fn fork(sandbox: bool) -> io::Result<NewConnector> {
    let (ours, theirs) = message_pair()?;
    let parent = std::process::id();
    child::set_disposition(libc::SIGCHLD, Disposition::Ignored);
    if sys::fork()?.is_none() {
        drop(ours);
        // Even after a panic, the child must not continue as a second relay.
        let main = || connector_main(theirs, parent, sandbox);
        let ended = catch_unwind(AssertUnwindSafe(main));
        child::end_now(i32::from(ended.is_err()));
    }
    Ok(NewConnector { link: ours })
}

impl NewConnector {
    /// This process's end of the link, the only descriptor of the relay that the connector needs.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }

    /// Sends the connector its configuration. Fails with [`ConnectorStartError::Gone`] when the
    /// message cannot be sent.
    pub fn configure(
        self,
        config: &ConnectorConfig,
    ) -> Result<StartingConnector, ConnectorStartError> {
        send_message(self.link.as_fd(), &config.encode(), None)
            .map_err(|_| ConnectorStartError::Gone)?;
        Ok(StartingConnector { link: self.link })
    }
}

impl StartingConnector {
    /// This process's end of the link, the only descriptor of the relay that the connector needs.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }

    /// The link to the connector. Send requests on it only after [`report()`] has returned.
    pub fn link(self) -> Link {
        Link::new(self.link)
    }
}

/// Waits for the connector's report that it is confined, for at most 20 seconds. The report is
/// trusted, not verified. The relay can do other work before this call. Fails with
/// [`ConnectorStartError::Harden`] if a step of the hardening failed, otherwise with
/// [`ConnectorStartError::Gone`].
pub fn report(link: &Link) -> Result<ProcessProtections, ConnectorStartError> {
    let by = Instant::now() + START;
    let mut message = [0; REPORT];
    let n = receive(link.as_fd(), &mut message, Some(by)).ok_or(ConnectorStartError::Gone)?;
    let confined = report::decode(&message[..n]).map_err(|_| ConnectorStartError::Gone)?;
    confined.map_err(ConnectorStartError::Harden)
}

/// Waits for a message and returns its length. `None` means that no message comes: the time is up,
/// the other end is closed, or the link has failed.
pub fn receive(link: BorrowedFd<'_>, message: &mut [u8], by: Option<Instant>) -> Option<usize> {
    loop {
        match receive_message(link, message) {
            Ok((0, _)) => return None,
            Ok((n, _)) => return Some(n),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
        let left = by.map(|by| by.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return None;
        }
        let fd = libc::pollfd { fd: link.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        child::poll(&mut [fd], left).ok()?;
    }
}

/// The main function of the connector process, which ends when this function returns.
fn connector_main(link: OwnedFd, parent: u32, sandbox: bool) {
    let Some(link) = drop_inherited(link) else {
        return;
    };
    let mut message = [0; LONGEST];
    let Some(n) = receive(link.as_fd(), &mut message, None) else {
        return;
    };
    let Ok(config) = ConnectorConfig::decode(&message[..n]) else {
        return;
    };
    let (name, addresses) = match config.host {
        // `localhost` is never looked up, and its addresses are tried in turn. In a race, a
        // listener on the address family that the upstream does not use could win.
        Host::Name(_) if config.host.is_localhost() => {
            (None, literal(&[Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()], config.port))
        }
        Host::Name(name) => (Some(name), Addresses::of_a_name()),
        Host::V4(octets) => (None, literal(&[octets.into()], config.port)),
        Host::V6(octets) => (None, literal(&[octets.into()], config.port)),
    };
    if name.is_some() {
        lookup::load_modules();
    }
    // The relay raises its own limit only after the fork, so the connector does not inherit it.
    let files = sys::raise_open_files(ATTEMPTS as u64 + OTHER_DESCRIPTORS);
    let attempts = files.saturating_sub(OTHER_DESCRIPTORS).clamp(1, ATTEMPTS as u64) as usize;
    // No library is loaded after this point.
    let sealed = sys::seal_program();
    let executable_memory_denied = sys::is_executable_memory_denied();
    let (confinement, confined) = match confine(config.user, config.port, parent, sandbox) {
        Ok((confinement, read_back)) => (Some(confinement), Ok(read_back)),
        Err(error) => (None, Err(error)),
    };
    let confined = confined.map(|read_back| ProcessProtections {
        uid: sys::user_id(),
        read_back,
        sealed,
        executable_memory_denied,
    });
    if send_message(link.as_fd(), &report::encode(&confined), None).is_err() {
        return;
    }
    if let Some(confinement) = confinement
        && confinement.prepare_lookups().is_ok()
    {
        let target = Target { name, port: config.port, reach: config.reach, attempts };
        let connector = Connector::new(link, target, addresses, confinement);
        // `run` returns when the loop has ended. The connector then ends too.
        let _ = connector.run();
    }
}

fn literal(ips: &[IpAddr], port: u16) -> Addresses {
    let addresses: Vec<_> = ips.iter().map(|ip| SocketAddr::new(*ip, port)).collect();
    Addresses::literal(&addresses)
}

/// Drops everything that the connector inherited: environment, arguments, descriptors, signal
/// dispositions and session. Returns the link; `None` means that a step failed.
fn drop_inherited(link: OwnedFd) -> Option<OwnedFd> {
    sys::wipe_variables(|name| !KEPT_VARIABLES.contains(&name));
    child::wipe_arguments();
    child::set_name(c"connector");
    let link = child::keep_only(link).ok()?;
    let null = null_device().ok()?;
    for standard in [Standard::Input, Standard::Output, Standard::Error] {
        sys::replace(standard, null.as_fd()).ok()?;
    }
    outlive_signals();
    sys::new_session().ok()?;
    Some(link)
}

/// A descriptor of `/dev/null`. Without that, a socket whose other end is closed takes its place.
pub fn null_device() -> io::Result<OwnedFd> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").map(OwnedFd::from);
    null.or_else(|_| message_pair().map(|(end, _)| end))
}

/// Ignores the signals that may reach the loop too, which lets exchanges under way finish. A process
/// that the loop needs must survive them and ends with the loop.
pub fn outlive_signals() {
    let ending = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGPIPE];
    for signal in ending.into_iter().chain(HARMLESS) {
        child::set_disposition(signal, Disposition::Ignored);
    }
}

/// Gives up every privilege, then puts the sandbox in force. Fails with the step that failed.
fn confine(
    user: Option<(u32, u32)>,
    port: u16,
    parent: u32,
    sandbox: bool,
) -> Result<(Confinement, ReadBack), HardenError> {
    if user.is_none() && child::is_root() {
        // In a container, the right to change users or the id may be missing. The connector then
        // keeps its user, without capabilities, and the start line says so.
        if sys::become_user(USER.0, USER.1).is_ok() {
            child::limit_processes(PROCESSES);
        }
    }
    harden::drop_privileges(user)?;
    // A change of user clears the parent-death signal (prctl(2)), so it is set only now. Later, the
    // end of the link ends the connector, not this signal: the kernel sends the signal in the
    // loop's name. Landlock (from version 6 on) and a different user id each keep the loop from
    // signalling the connector.
    match child::end_with(parent) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => child::end_now(0),
        Err(_) => return Err(HardenError::ParentDeathSignal),
    }
    let confinement = Confinement::new(if sandbox { Sandbox::new(port) } else { Sandbox::off() });
    let read_back = confinement.connector(port)?;
    Ok((confinement, read_back))
}
