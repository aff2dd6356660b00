//! What the connector, and each lookup, can still do: Landlock decides about files and ports,
//! seccomp about system calls.

use std::cell::OnceCell;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::lookup::RESOLVER_FILES;
use super::system_calls::{CONNECTOR, CONNECTOR_LIVES, LOOKUP};
use crate::process::confine::{ReadBack, Sandbox, Trial};
use crate::process::filter::{self, Descriptors, Filter, Layer, Otherwise};
use crate::process::harden::HardenError;
use crate::process::landlock::{self, BIND_UDP, CONNECT_SEND_UDP, CONNECT_TCP, READ_FILE};
use crate::process::status::StatusFile;
use crate::process::sys::{Rights, Ruleset};

/// DNS over TCP.
const DNS: u16 = 53;

/// Where files that say how names are looked up come and go: a lookup may read those that stand
/// there then.
const FOLDERS: [&str; 2] = ["/etc", "/run"];

/// One of these can be opened nearly everywhere. None lies in [`FOLDERS`].
const TRIED: [&str; 3] = ["/", "/proc/self/status", "/dev/null"];

/// The rules. Those of a lookup are made once: each lookup has only to put them in force.
pub struct Confinement {
    sandbox: Sandbox,
    lookup: OnceCell<Filter>,
}

impl Confinement {
    /// What this kernel offers is in the sandbox.
    pub fn new(sandbox: Sandbox) -> Confinement {
        Confinement { sandbox, lookup: OnceCell::new() }
    }

    /// Makes what the first lookup would make otherwise, and every other too.
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

    /// Confines the connector, which connects to this port, and sees that it is confined. Its
    /// children may read, of the files in a few folders, what a rule of their own names, and ask
    /// name servers.
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

    /// Confines a lookup, which reads these files.
    pub fn lookup(&self, files: &[OwnedFd]) -> Result<(), HardenError> {
        if let Some(rights) = self.rights() {
            self.restrict(&rights, files, &[DNS]).map_err(|_| HardenError::Landlock)?;
        }
        if self.sandbox.seccomp().version().is_some() {
            apply(self.lookup_filter()?)?;
        }
        Ok(())
    }

    /// Every right that this kernel knows, but for UDP: name servers are asked from any port, and
    /// getaddrinfo(3) tries where an address leads.
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

/// The folders, as far as they are there. A link may lead to one of another kind, `/mnt/wsl` or
/// `/nix/store` for example: where it leads now, it may lead to a neighbour later.
fn folders() -> Vec<OwnedFd> {
    let targets = RESOLVER_FILES.iter().filter_map(|path| std::fs::canonicalize(path).ok());
    let folders = targets.filter_map(|target| Some(at_most_two_deep(target.parent()?)));
    let folders = FOLDERS.iter().map(PathBuf::from).chain(folders);
    let open = |path| OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path);
    folders.filter_map(|path| open(path).ok()).map(OwnedFd::from).collect()
}

fn at_most_two_deep(folder: &Path) -> PathBuf {
    folder.components().take(3).collect()
}

const CONNECTOR_LAYERS: &[Layer] = &[
    Layer { allowed: &CONNECTOR_LIVES, otherwise: Otherwise::Kill },
    Layer { allowed: &CONNECTOR, otherwise: Otherwise::Refuse },
];
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

    /// Refusing is what a lookup can take; it must not be killed for what the connector refuses.
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
