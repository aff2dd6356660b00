//! What the threads of the process can still do once the relay runs: Landlock decides about files
//! and ports, seccomp about system calls. Both hold for one thread and those it starts, so each
//! thread confines itself.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::mpsc::channel;
use std::thread;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::harden::HardenError;
use super::sys::{self, Rights, Ruleset};
use super::system_calls::{self, Allowed};

/// What getaddrinfo(3) reads. Names are resolved when the rules are made: a file that is put in the
/// place of one of these later is not seen.
const RESOLVER_FILES: [&str; 8] = [
    "/etc/hosts",
    "/etc/resolv.conf",
    "/etc/nsswitch.conf",
    "/etc/host.conf",
    "/etc/gai.conf",
    "/etc/services",
    "/etc/protocols",
    "/etc/localtime",
];
/// DNS over TCP.
const DNS: u16 = 53;

const READ_FILE: u64 = 1 << 2;
const BIND_TCP: u64 = 1 << 0;
const CONNECT_TCP: u64 = 1 << 1;
const ABSTRACT_SOCKETS: u64 = 1 << 0;
const SIGNALS: u64 = 1 << 1;

/// The threads of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    /// The event loop, which holds the key.
    Loop,
    /// Looks names up.
    Resolver,
    /// Writes access lines.
    Log,
}

/// What this kernel offers, and what the relay needs.
#[derive(Clone, Copy, Debug)]
pub struct Sandbox {
    /// Landlock's version; 0: none.
    landlock: u32,
    seccomp: bool,
    off: bool,
    /// The one port that the loop connects to.
    port: u16,
}

impl Sandbox {
    /// Asks the kernel what there is.
    pub fn new(port: u16) -> Sandbox {
        let (landlock, seccomp) = (sys::landlock_version(), sys::has_seccomp());
        Sandbox { landlock, seccomp, off: false, port }
    }

    /// `--no-sandbox`.
    pub fn off() -> Sandbox {
        Sandbox { landlock: 0, seccomp: false, off: true, port: 0 }
    }

    /// Starts a thread that does what comes `before`, confines itself, and only then begins its
    /// work. Returns when that is settled.
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
            let confined = self.confine(thread);
            let begins = confined.is_ok();
            if tell.send(confined).is_ok() && begins {
                work();
            }
        })?;
        told.recv().unwrap_or(Err(HardenError::Seccomp)).map_err(io::Error::other)
    }

    /// Confines the thread that calls.
    pub fn confine(&self, thread: Thread) -> Result<(), HardenError> {
        if self.landlock > 0 {
            self.restrict(thread).map_err(|_| HardenError::Landlock)?;
        }
        if self.seccomp {
            let filter = filter(thread).ok_or(HardenError::Seccomp)?;
            seccompiler::apply_filter(&filter).map_err(|_| HardenError::Seccomp)?;
        }
        Ok(())
    }

    fn restrict(&self, thread: Thread) -> io::Result<()> {
        // Every right that the kernel's version knows, taken away.
        let files = match self.landlock {
            1 => (1 << 13) - 1,
            2 => (1 << 14) - 1,
            3 | 4 => (1 << 15) - 1,
            _ => (1 << 16) - 1,
        };
        let net = if self.landlock >= 4 { BIND_TCP | CONNECT_TCP } else { 0 };
        let scope = if self.landlock >= 6 { ABSTRACT_SOCKETS | SIGNALS } else { 0 };
        let ruleset = Ruleset::new(&Rights { files, net, scope })?;
        let port = match thread {
            Thread::Loop => Some(self.port),
            Thread::Resolver => Some(DNS),
            Thread::Log => None,
        };
        if let Some(port) = port.filter(|_| net != 0) {
            ruleset.allow_port(port, CONNECT_TCP)?;
        }
        if thread == Thread::Resolver {
            for path in RESOLVER_FILES {
                // One that is not there is not needed.
                let file = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path);
                if let Ok(file) = file {
                    ruleset.allow_file(file.as_fd(), READ_FILE)?;
                }
            }
        }
        ruleset.restrict_thread()
    }

    /// For the start line.
    pub fn describe(&self) -> String {
        if self.off {
            return "SANDBOX OFF (--no-sandbox): no seccomp, no Landlock".into();
        }
        let seccomp = if self.seccomp { "seccomp" } else { "no seccomp (this kernel has none)" };
        let landlock = match self.landlock {
            0 => "no Landlock (this kernel has none)".into(),
            n @ 1..4 => format!("Landlock {n} (no files; ports not restricted by this kernel)"),
            n => format!("Landlock {n} (no files, TCP to port {} only)", self.port),
        };
        format!("{seccomp}; {landlock}")
    }
}

/// The filter of a thread. `None`: the lists are wrong, which a test finds.
fn filter(thread: Thread) -> Option<BpfProgram> {
    let (allowed, otherwise) = match thread {
        Thread::Loop => (&system_calls::LOOP, SeccompAction::KillProcess),
        Thread::Log => (&system_calls::LOG, SeccompAction::KillProcess),
        // What NSS modules try is not ours to know: they are told no.
        Thread::Resolver => {
            (&system_calls::RESOLVER, SeccompAction::Errno(libc::EPERM.unsigned_abs()))
        }
    };
    let architecture = TargetArch::try_from(std::env::consts::ARCH).ok()?;
    SeccompFilter::new(rules(allowed)?, otherwise, SeccompAction::Allow, architecture)
        .ok()?
        .try_into()
        .ok()
}

fn rules(allowed: &Allowed) -> Option<BTreeMap<i64, Vec<SeccompRule>>> {
    let mut rules = BTreeMap::new();
    for call in allowed.any.iter().copied().flatten() {
        rules.insert(*call, Vec::new());
    }
    for limited in allowed.limited.iter().copied().flatten() {
        for form in limited.forms {
            let condition = |(argument, mask, value): &(u8, u32, u32)| {
                let fits = SeccompCmpOp::MaskedEq(u64::from(*mask));
                SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, fits, u64::from(*value))
                    .ok()
            };
            let conditions = form.iter().map(condition).collect::<Option<Vec<_>>>()?;
            let rule = SeccompRule::new(conditions).ok()?;
            rules.entry(limited.call).or_insert_with(Vec::new).push(rule);
        }
    }
    Some(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_list_makes_a_filter() {
        for thread in [Thread::Loop, Thread::Resolver, Thread::Log] {
            let filter = filter(thread).unwrap();
            assert!(filter.len() > 20, "{thread:?}");
        }
    }

    #[test]
    fn no_call_is_allowed_in_any_form_and_limited_too() {
        for allowed in [&system_calls::LOOP, &system_calls::RESOLVER, &system_calls::LOG] {
            for limited in allowed.limited.iter().copied().flatten() {
                assert!(!allowed.any.iter().copied().flatten().any(|call| *call == limited.call));
                assert!(!limited.forms.is_empty());
            }
        }
    }
}
