//! A process of its own that resolves the one name, races its addresses, connects, and passes each
//! connected descriptor to the loop. It is forked before anything secret is read, so it maps no
//! secret; the loop, which holds the key, has neither socket(2) nor connect(2).
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
use serve::{ATTEMPTS, Connector, Work};
use wire::{LONGEST, Target};

use crate::http1::url::Host;
use crate::process::confine::{ReadBack, Sandbox};
use crate::process::harden::{self, HardenError};
use crate::process::protections::Confined;
use crate::process::sys::child::{self, Disposition};
use crate::process::sys::fd_passing::{message_pair, receive_message, send_message};
use crate::process::sys::{self, Standard};

/// Whom the connector becomes where root starts the relay without `--user`: an id that no
/// distribution gives to anybody, and that a container's 65,536 ids have. Not `nobody`, whose other
/// processes could kill it.
const USER: (u32, u32) = (65_520, 65_520);

/// What of the environment stays: how names are looked up.
const KEPT_VARIABLES: [&[u8]; 2] = [b"RES_OPTIONS", b"LOCALDOMAIN"];

/// How many processes the user of that id may have: a connector and a lookup of each relay. Code
/// that took a connector over could otherwise fork until the machine has no process left to give.
const PROCESSES: u64 = 1024;

/// Descriptors of the connector apart from its attempts: standard ones, the link, the server-info
/// file, a lookup's pipe, what that lookup opens.
const OTHER_DESCRIPTORS: u64 = 32;

/// How long the connector may take to confine itself.
const START: Duration = Duration::from_secs(20);

/// A connector that runs and waits to be told its target.
pub struct Forked {
    link: OwnedFd,
}

/// A connector that has been told.
pub struct Told {
    link: OwnedFd,
}

/// Why there is no connector.
#[derive(Debug)]
pub enum StartError {
    /// A step of its hardening failed.
    Harden(HardenError),
    /// It ended, or says nothing.
    Gone,
}

/// Forks the connector. Only while the process has one thread and no secret. From here on the
/// kernel takes the children of this process that end.
pub fn fork(sandbox: bool) -> io::Result<Forked> {
    let (ours, theirs) = message_pair()?;
    let parent = std::process::id();
    child::set_disposition(libc::SIGCHLD, Disposition::Ignored);
    if sys::fork()?.is_none() {
        drop(ours);
        // Whatever happens, it must not go on as a second relay.
        let life = || live(theirs, parent, sandbox);
        let ended = catch_unwind(AssertUnwindSafe(life));
        child::end_now(i32::from(ended.is_err()));
    }
    Ok(Forked { link: ours })
}

impl Forked {
    /// The one descriptor of this process that it takes.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }

    /// Tells it where to connect to and whom to become.
    pub fn tell(self, target: &Target) -> Result<Told, StartError> {
        send_message(self.link.as_fd(), &target.encode(), None).map_err(|_| StartError::Gone)?;
        Ok(Told { link: self.link })
    }
}

impl Told {
    /// The one descriptor of this process that it takes.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }

    /// The way to it, to be used once it has reported.
    pub fn link(self) -> Link {
        Link::new(self.link)
    }
}

/// Waits until the connector is confined, and takes its word of that. Other things can be done in
/// the meantime.
pub fn report(link: &Link) -> Result<Confined, StartError> {
    let by = Instant::now() + START;
    let mut message = [0; REPORT];
    let n = receive(link.as_fd(), &mut message, Some(by)).ok_or(StartError::Gone)?;
    let confined = report::decode(&message[..n]).map_err(|_| StartError::Gone)?;
    confined.map_err(StartError::Harden)
}

/// Waits for a message; `None` when none comes.
fn receive(link: BorrowedFd<'_>, message: &mut [u8], by: Option<Instant>) -> Option<usize> {
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

/// The connector's life.
fn live(link: OwnedFd, parent: u32, sandbox: bool) {
    let Some(link) = leave(link) else {
        return;
    };
    let mut message = [0; LONGEST];
    let Some(n) = receive(link.as_fd(), &mut message, None) else {
        return;
    };
    let Ok(target) = Target::decode(&message[..n]) else {
        return;
    };
    let (name, addresses) = match target.host {
        // In a race, a listener on the family that the upstream does not use could win.
        Host::Name(_) if target.host.is_localhost() => {
            (None, literal(&[Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()], target.port))
        }
        Host::Name(name) => (Some(name), Addresses::of_a_name()),
        Host::V4(octets) => (None, literal(&[octets.into()], target.port)),
        Host::V6(octets) => (None, literal(&[octets.into()], target.port)),
    };
    if name.is_some() {
        lookup::load_modules();
    }
    // The relay raises its own limit only after the fork.
    let files = sys::raise_open_files(ATTEMPTS as u64 + OTHER_DESCRIPTORS);
    let attempts = files.saturating_sub(OTHER_DESCRIPTORS).clamp(1, ATTEMPTS as u64) as usize;
    // Nothing is loaded from here on.
    let sealed = sys::seal_program();
    let executable_memory_denied = sys::is_executable_memory_denied();
    let (confinement, confined) = match confine(target.user, target.port, parent, sandbox) {
        Ok((confinement, read_back)) => (Some(confinement), Ok(read_back)),
        Err(error) => (None, Err(error)),
    };
    let confined = confined.map(|read_back| Confined {
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
        let work = Work { name, port: target.port, reach: target.reach, attempts };
        let connector = Connector::new(link, work, addresses, confinement);
        // It ends with the loop.
        let _ = connector.run();
    }
}

fn literal(ips: &[IpAddr], port: u16) -> Addresses {
    let addresses: Vec<_> = ips.iter().map(|ip| SocketAddr::new(*ip, port)).collect();
    Addresses::literal(&addresses)
}

/// Leaves behind whatever it was forked with: environment, arguments, descriptors, signals,
/// session.
fn leave(link: OwnedFd) -> Option<OwnedFd> {
    sys::wipe_variables(|name| !KEPT_VARIABLES.contains(&name));
    child::wipe_arguments();
    child::set_name(c"connector");
    let link = child::keep_only(link).ok()?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").map(OwnedFd::from);
    // Where there is no such file: a socket that leads nowhere.
    let null = null.or_else(|_| message_pair().map(|(end, _)| end)).ok()?;
    for standard in [Standard::Input, Standard::Output, Standard::Error] {
        sys::replace(standard, null.as_fd()).ok()?;
    }
    // It ends with the loop, which lets exchanges under way go on after a signal.
    for signal in [
        libc::SIGTERM,
        libc::SIGINT,
        libc::SIGHUP,
        libc::SIGQUIT,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGALRM,
        libc::SIGPIPE,
    ] {
        child::set_disposition(signal, Disposition::Ignored);
    }
    sys::new_session().ok()?;
    Some(link)
}

/// Gives up every privilege; then the rest.
fn confine(
    user: Option<(u32, u32)>,
    port: u16,
    parent: u32,
    sandbox: bool,
) -> Result<(Confinement, ReadBack), HardenError> {
    if user.is_none() && child::is_root() {
        // A container may have taken the right to do so, or lack the id: then it stays who it is,
        // without capabilities, and the start line says so.
        if sys::become_user(USER.0, USER.1).is_ok() {
            child::limit_processes(PROCESSES);
        }
    }
    harden::drop_privileges(user)?;
    // The change of user took that back, so it comes now. What ends the connector is the end of the
    // link: the kernel sends this signal in the loop's name, and neither Landlock (from version 6
    // on) nor another user's id lets the loop signal the connector.
    match child::end_with(parent) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => child::end_now(0),
        Err(_) => return Err(HardenError::NewPrivileges),
    }
    let confinement = Confinement::new(if sandbox { Sandbox::new(port) } else { Sandbox::off() });
    let read_back = confinement.connector(port)?;
    Ok((confinement, read_back))
}
