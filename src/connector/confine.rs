//! What the connector, and each lookup, can still do: Landlock decides about files and ports, seccomp
//! about system calls.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use seccompiler::{BpfProgram, SeccompAction};

use super::system_calls::{CONNECTOR, CONNECTOR_LIVES, LOOKUP};
use crate::process::confine::Sandbox;
use crate::process::filter::{Descriptors, compile};
use crate::process::harden::HardenError;
use crate::process::landlock::{self, BIND_UDP, CONNECT_SEND_UDP, CONNECT_TCP, READ_FILE};
use crate::process::sys::{Rights, Ruleset};
use crate::process::system_calls::Allowed;

/// DNS over TCP.
const DNS: u16 = 53;

/// The rules, made before they are needed: a lookup has only to put them in force.
pub struct Confinement {
    sandbox: Sandbox,
    lookup: BpfProgram,
}

impl Confinement {
    /// Makes the filters.
    pub fn new(sandbox: Sandbox) -> Result<Confinement, HardenError> {
        let lookup =
            if sandbox.seccomp().version().is_some() { refusing(&LOOKUP)? } else { Vec::new() };
        Ok(Confinement { sandbox, lookup })
    }

    /// Confines the connector, which connects to this port. Its children may read what a rule of their
    /// own names, and ask name servers.
    pub fn connector(&self, port: u16) -> Result<(), HardenError> {
        if let Some(mut rights) = self.rights() {
            rights.files &= !READ_FILE;
            self.restrict(&rights, &[], &[port, DNS]).map_err(|_| HardenError::Landlock)?;
        }
        if self.sandbox.seccomp().version().is_some() {
            let lives =
                compile(&CONNECTOR_LIVES, SeccompAction::KillProcess, &Descriptors::default());
            apply(&refusing(&CONNECTOR)?)?;
            apply(&lives.ok_or(HardenError::Seccomp)?)?;
        }
        Ok(())
    }

    /// Confines a lookup, which reads these files.
    pub fn lookup(&self, files: &[OwnedFd]) -> Result<(), HardenError> {
        if let Some(rights) = self.rights() {
            self.restrict(&rights, files, &[DNS]).map_err(|_| HardenError::Landlock)?;
        }
        if self.sandbox.seccomp().version().is_some() {
            apply(&self.lookup)?;
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

fn refusing(allowed: &Allowed) -> Result<BpfProgram, HardenError> {
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    compile(allowed, refused, &Descriptors::default()).ok_or(HardenError::Seccomp)
}

fn apply(filter: &BpfProgram) -> Result<(), HardenError> {
    seccompiler::apply_filter(filter).map_err(|_| HardenError::Seccomp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_list_makes_a_filter() {
        for allowed in [&CONNECTOR, &CONNECTOR_LIVES, &LOOKUP] {
            assert!(refusing(allowed).unwrap().len() > 20);
        }
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
