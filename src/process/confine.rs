//! Confines the threads of the process: Landlock restricts files and ports, seccomp restricts
//! system calls. Both apply to one thread and to the threads that it starts, so each thread
//! confines itself.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::mpsc::channel;
use std::thread;

use super::filter::{self, Descriptors, Filter, Layer, Thread};
use super::harden::HardenError;
use super::landlock;
use super::status::{Status, StatusFile};
use super::support::Support;
use super::sys::Ruleset;

/// Nearly every system has one of these files. A thread that Landlock restricts can open none.
const TRIED: [&str; 4] = ["/", "/proc/self/status", "/dev/null", "/etc/passwd"];

/// A file that could be opened before Landlock was put in force.
pub struct Trial(Option<&'static str>);

impl Trial {
    /// Finds a file that can be opened.
    pub fn begin(paths: &[&'static str]) -> Trial {
        Trial(paths.iter().copied().find(|path| fs::File::open(path).is_ok()))
    }

    /// Whether Landlock denies it now; `None` if no file could be opened before.
    pub fn is_denied(&self) -> Option<bool> {
        self.0.map(|path| {
            fs::File::open(path).is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
        })
    }
}

/// Confines threads with the parts of the sandbox that this kernel has.
#[derive(Clone, Copy, Debug)]
pub struct Sandbox {
    landlock: Support,
    seccomp: Support,
    is_off: bool,
    /// The one port that the connector connects to.
    port: u16,
    descriptors: Descriptors,
    /// The status before anything was put in force; `None` where it cannot be read.
    before: Option<Status>,
}

/// The status of a confined thread, as read back from the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadBack {
    /// From `/proc`; `None` where it cannot be read.
    pub status: Option<Status>,
    /// A file could be opened before Landlock was in force and cannot be opened now.
    pub landlock_denies: bool,
}

impl Sandbox {
    /// Asks the kernel for its version of Landlock and for seccomp.
    pub fn new(port: u16) -> Sandbox {
        Sandbox {
            landlock: Support::of_landlock(),
            seccomp: Support::of_seccomp(),
            is_off: false,
            port,
            descriptors: Descriptors::default(),
            before: Status::read().ok(),
        }
    }

    /// `--no-sandbox`.
    pub fn off() -> Sandbox {
        Sandbox {
            landlock: Support::NotInKernel,
            seccomp: Support::NotInKernel,
            is_off: true,
            port: 0,
            descriptors: Descriptors::default(),
            before: Status::read().ok(),
        }
    }

    /// The same sandbox, with the descriptors that the filters allow.
    pub fn with_descriptors(self, descriptors: Descriptors) -> Sandbox {
        Sandbox { descriptors, ..self }
    }

    /// `--no-sandbox` was given.
    pub fn is_off(&self) -> bool {
        self.is_off
    }

    /// Whether the kernel has Landlock.
    pub fn landlock(&self) -> Support {
        self.landlock
    }

    /// Whether the kernel has seccomp.
    pub fn seccomp(&self) -> Support {
        self.seccomp
    }

    /// Starts a thread that runs `before`, confines itself, and only then begins its work. Returns
    /// once the thread is confined or has failed.
    pub fn thread(
        self,
        thread: Thread,
        name: &str,
        before: impl FnOnce() + Send + 'static,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let (tell, told) = channel();
        thread::Builder::new().name(name.into()).stack_size(256 * 1024).spawn(move || {
            before();
            let confined = self.confine(thread).map(|_| ());
            let begins = confined.is_ok();
            if tell.send(confined).is_ok() && begins {
                work();
            }
        })?;
        told.recv().unwrap_or(Err(HardenError::Seccomp)).map_err(io::Error::other)
    }

    /// Confines the calling thread, and reads back from the kernel that it is confined.
    pub fn confine(&self, thread: Thread) -> Result<ReadBack, HardenError> {
        // After this, no file can be opened. The log's thread may neither read nor close a file, so
        // another thread checks it: see `look_at_others`.
        let status = match thread {
            Thread::Log => None,
            Thread::Loop => StatusFile::open().ok(),
        };
        self.confine_by(status, &|| filter::of(thread, &self.descriptors))
    }

    /// Confines the calling process, which has one thread, by a filter of its own. Landlock takes
    /// every right away, as from each thread.
    pub fn confine_process(&self, layers: &[Layer<'_>]) -> Result<ReadBack, HardenError> {
        let status = StatusFile::open().ok();
        self.confine_by(status, &|| filter::compile(layers, &self.descriptors))
    }

    fn confine_by(
        &self,
        status: Option<StatusFile>,
        filter: &dyn Fn() -> Option<Filter>,
    ) -> Result<ReadBack, HardenError> {
        let mut landlock_denies = false;
        if let Support::Present(version) = self.landlock {
            let denial = restrict(version).map_err(|_| HardenError::Landlock)?;
            landlock_denies = denial == Denial::Seen;
        }
        if let Support::Present(_) = self.seccomp {
            let filter = filter().ok_or(HardenError::Seccomp)?;
            filter.put_in_force().map_err(|_| HardenError::Seccomp)?;
        }
        let status = status.and_then(|status| status.read().ok());
        if status.is_some_and(|status| !self.is_filtered(&status)) {
            return Err(HardenError::Seccomp);
        }
        Ok(ReadBack { status, landlock_denies })
    }

    /// Checks that every other thread of the process is confined. Call it before confining this
    /// one.
    pub fn look_at_others(&self) -> Result<(), HardenError> {
        match Status::of_other_threads() {
            Ok(others) if others.iter().any(|status| !self.is_filtered(status)) => {
                Err(HardenError::Seccomp)
            }
            _ => Ok(()),
        }
    }

    /// This program's filter is in force, unless the kernel has none or the sandbox is off.
    pub fn is_filtered(&self, now: &Status) -> bool {
        let before = self.before.and_then(|before| before.filters).unwrap_or(0);
        let one_more = now.filters.is_none_or(|filters| filters > before);
        self.seccomp.version().is_none() || now.seccomp && one_more
    }
}

/// Whether Landlock was seen to deny a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Denial {
    /// A file that could be opened before cannot be opened now.
    Seen,
    /// No file could be opened before.
    NotTried,
}

/// Takes every right away: no file and no port stays allowed. Then tries an access that must be
/// denied.
fn restrict(version: u32) -> io::Result<Denial> {
    let rights = landlock::rights(version);
    let ruleset = Ruleset::new(&rights)?;
    let knows_ports = rights.net & landlock::CONNECT_TCP != 0;
    let trial = Trial::begin(&TRIED);
    ruleset.restrict_thread()?;
    let port_is_denied = knows_ports.then(|| {
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
    });
    match (trial.is_denied(), port_is_denied) {
        (Some(false), _) | (_, Some(false)) => Err(ErrorKind::Other.into()),
        (None, _) => Ok(Denial::NotTried),
        (Some(true), _) => Ok(Denial::Seen),
    }
}

/// For the start line: each part that is in force.
impl fmt::Display for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_off {
            return f.write_str("SANDBOX OFF (--no-sandbox): no seccomp, no Landlock");
        }
        match self.seccomp {
            Support::Present(_) => f.write_str("seccomp")?,
            why => write!(f, "no seccomp ({why})")?,
        }
        match self.landlock {
            Support::Present(version @ 1..4) => {
                write!(f, "; Landlock {version} (no files; ports not restricted by this kernel)")
            }
            Support::Present(version) => {
                write!(
                    f,
                    "; Landlock {version} (no files; connector: TCP to port {} only",
                    self.port
                )?;
                if version > landlock::NEWEST {
                    write!(f, "; by the rights of version {}", landlock::NEWEST)?;
                }
                f.write_str(")")
            }
            why => write!(f, "; no Landlock ({why})"),
        }
    }
}
