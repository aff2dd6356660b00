//! Confines the connector and each lookup. Landlock restricts files and ports; seccomp restricts
//! system calls.

use std::cell::OnceCell;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::system_calls::{CONNECTOR, CONNECTOR_LIVES, LOOKUP};
use crate::process::confine::{ReadBack, Sandbox, Trial};
use crate::process::filter::{self, Descriptors, Filter, Layer, Otherwise};
use crate::process::harden::HardenError;
use crate::process::landlock::{self, BIND_UDP, CONNECT_SEND_UDP, CONNECT_TCP, READ_FILE};
use crate::process::status::StatusFile;
use crate::process::sys::{Rights, Ruleset};

/// The files that getaddrinfo(3) reads; a lookup may read no others.
pub const RESOLVER_FILES: [&str; 5] =
    ["/etc/hosts", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf"];

/// The TCP port of DNS (RFC 1035 §4.2).
const DNS: u16 = 53;

/// The folders in which the resolver's files are created and replaced. A lookup may read the files
/// that are there when the lookup begins.
const FOLDERS: [&str; 2] = ["/etc", "/run"];

/// On nearly every system, one of these files can be opened before Landlock is in force. None of
/// them is in [`FOLDERS`], so Landlock must deny it afterwards.
const TRIED: [&str; 3] = ["/", "/proc/self/status", "/dev/null"];

/// The rules for the connector and its lookups. The filter of a lookup is compiled once; each
/// lookup only has to put it in force.
pub struct Confinement {
    sandbox: Sandbox,
    lookup: OnceCell<Filter>,
}

impl Confinement {
    /// `sandbox` says which versions of Landlock and seccomp the kernel has.
    pub fn new(sandbox: Sandbox) -> Confinement {
        Confinement { sandbox, lookup: OnceCell::new() }
    }

    /// Compiles the filter of the lookups ahead of the first one. Each child would otherwise
    /// compile a filter of its own. Fails with [`HardenError::Seccomp`].
    pub fn prepare_lookups(&self) -> Result<(), HardenError> {
        match self.sandbox.seccomp().version() {
            Some(_) => self.lookup_filter().map(|_| ()),
            None => Ok(()),
        }
    }

    fn lookup_filter(&self) -> Result<&Filter, HardenError> {
        if let Some(filter) = self.lookup.get() {
            return Ok(filter);
        }
        let filter = compile(LOOKUP_LAYERS)?;
        Ok(self.lookup.get_or_init(|| filter))
    }

    /// Confines the connector, which connects to this port, and reads back that it is confined. The
    /// rules also hold for its children, so they allow reading a few folders and DNS over TCP. Each
    /// lookup adds a rule of its own, which names the files that it reads. Fails with
    /// [`HardenError::Landlock`] or [`HardenError::Seccomp`].
    pub fn connector(&self, port: u16) -> Result<ReadBack, HardenError> {
        let status = StatusFile::open().ok();
        let mut landlock_denies = false;
        if let Some(rights) = self.rights() {
            let trial = Trial::begin(&TRIED);
            let restricted = self.restrict(&rights, &folders(), &[port, DNS]);
            restricted.map_err(|_| HardenError::Landlock)?;
            landlock_denies = match trial.is_denied() {
                Some(false) => return Err(HardenError::Landlock),
                Some(true) => true,
                None => false,
            };
        }
        if self.sandbox.seccomp().version().is_some() {
            apply(&compile(CONNECTOR_LAYERS)?)?;
        }
        let status = status.and_then(|status| status.read().ok());
        if status.is_some_and(|status| !self.sandbox.is_filtered(&status)) {
            return Err(HardenError::Seccomp);
        }
        Ok(ReadBack { status, landlock_denies })
    }

    /// Confines the calling process as a lookup, which reads these files. Fails with
    /// [`HardenError::Landlock`] or [`HardenError::Seccomp`].
    pub fn lookup(&self, files: &[OwnedFd]) -> Result<(), HardenError> {
        if let Some(rights) = self.rights() {
            self.restrict(&rights, files, &[DNS]).map_err(|_| HardenError::Landlock)?;
        }
        if self.sandbox.seccomp().version().is_some() {
            apply(self.lookup_filter()?)?;
        }
        Ok(())
    }

    /// The rights that Landlock handles: every right that this kernel knows, except those for UDP.
    /// A DNS query leaves from any port, and getaddrinfo(3) connects a UDP socket to each address
    /// to learn its source address. `None` if there is no Landlock.
    fn rights(&self) -> Option<Rights> {
        let mut rights = landlock::rights(self.sandbox.landlock().version()?);
        rights.net &= !(BIND_UDP | CONNECT_SEND_UDP);
        Some(rights)
    }

    fn restrict(&self, rights: &Rights, files: &[OwnedFd], ports: &[u16]) -> io::Result<()> {
        let ruleset = Ruleset::new(rights)?;
        for port in ports.iter().filter(|_| rights.net & CONNECT_TCP != 0) {
            ruleset.allow_port(*port, CONNECT_TCP)?;
        }
        for file in files {
            ruleset.allow_file(file.as_fd(), READ_FILE)?;
        }
        ruleset.restrict_thread()
    }
}

/// Opens the folders that exist: [`FOLDERS`], and those to which symbolic links of the resolver's
/// files lead, such as `/mnt/wsl` or `/nix/store`. A link may later lead to a neighbour of its
/// present target, so the rule names an ancestor of the target, at most two levels deep.
fn folders() -> Vec<OwnedFd> {
    let targets = RESOLVER_FILES.iter().filter_map(|path| std::fs::canonicalize(path).ok());
    let folders = targets.filter_map(|target| Some(at_most_two_deep(target.parent()?)));
    let folders = FOLDERS.iter().map(PathBuf::from).chain(folders);
    let open = |path| OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path);
    folders.filter_map(|path| open(path).ok()).map(OwnedFd::from).collect()
}

/// The first two levels of a path.
fn at_most_two_deep(folder: &Path) -> PathBuf {
    folder.components().take(3).collect()
}

/// A call outside [`CONNECTOR_LIVES`] kills the process; another call outside [`CONNECTOR`] fails.
const CONNECTOR_LAYERS: &[Layer] = &[
    Layer { allowed: &CONNECTOR_LIVES, otherwise: Otherwise::Kill },
    Layer { allowed: &CONNECTOR, otherwise: Otherwise::Refuse },
];
/// A call outside [`LOOKUP`] fails. The inherited layers of the connector decide what kills.
const LOOKUP_LAYERS: &[Layer] = &[Layer { allowed: &LOOKUP, otherwise: Otherwise::Refuse }];

fn compile(layers: &[Layer]) -> Result<Filter, HardenError> {
    filter::compile(layers, &Descriptors::default()).ok_or(HardenError::Seccomp)
}

fn apply(filter: &Filter) -> Result<(), HardenError> {
    filter.put_in_force().map_err(|_| HardenError::Seccomp)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::filter::probe;
    use crate::process::system_calls::Allowed;

    #[test]
    fn a_filter_says_what_its_lists_say() {
        for (layers, longest) in [(CONNECTOR_LAYERS, 540), (LOOKUP_LAYERS, 310)] {
            probe::says_what_the_lists_say(layers, &Descriptors::default(), longest);
        }
    }

    #[test]
    fn of_a_link_no_more_than_a_part_of_the_tree_is_opened() {
        for (path, want) in
            [("/mnt/wsl", "/mnt/wsl"), ("/nix/store/x/etc", "/nix/store"), ("/", "/")]
        {
            assert_eq!(at_most_two_deep(Path::new(path)), Path::new(want));
        }
        assert!(FOLDERS.iter().all(|folder| TRIED.iter().all(|tried| !tried.starts_with(folder))));
    }

    #[test]
    fn no_call_is_allowed_in_any_form_and_limited_too() {
        for allowed in [&CONNECTOR, &CONNECTOR_LIVES, &LOOKUP] {
            for limited in allowed.limited.iter().copied().flatten() {
                assert!(!allowed.any.iter().copied().flatten().any(|call| *call == limited.call));
                assert!(!limited.forms.is_empty());
            }
        }
    }

    /// A lookup can cope with a refused call, but not with a kill. So each call that `CONNECTOR` or
    /// `LOOKUP` lists must be on `CONNECTOR_LIVES` too.
    #[test]
    fn what_is_limited_by_refusal_does_not_kill() {
        let calls = |allowed: &'static Allowed| {
            let limited = allowed.limited.iter().copied().flatten().map(|limited| limited.call);
            limited.chain(allowed.any.iter().copied().flatten().copied()).collect::<Vec<_>>()
        };
        let lives = calls(&CONNECTOR_LIVES);
        for call in calls(&CONNECTOR).into_iter().chain(calls(&LOOKUP)) {
            assert!(lives.contains(&call), "{call}");
        }
    }
}
