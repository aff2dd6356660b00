//! Which protections are in force, and which are not: for the start line, and for
//! `--require-hardening`.

use std::fmt;

use super::confine::{ReadBack, Sandbox};
use super::harden::{Beginning, HardenError};
use super::key_readers::KeyReaders;
use super::sys::{ProtectionKey, Sealed, SecretMemory};

/// The protections that the start line reports.
#[derive(Debug)]
pub struct Protections {
    /// The findings at the beginning of the process.
    pub beginning: Beginning,
    /// The kind of memory that holds the key.
    pub memory: SecretMemory,
    /// Whether a protection key closes the key's pages between two uses.
    pub protection_key: ProtectionKey,
    /// Whether responses are searched for the key, in words.
    pub search: Option<&'static str>,
    /// The users that may use the relay.
    pub callers: Callers,
    /// The user of `--user`.
    pub user: Option<(u32, u32)>,
    /// The user that the process runs as.
    pub uid: u32,
    /// Which parts of the sandbox the kernel has.
    pub sandbox: Sandbox,
    /// The status that was read back once the loop was confined.
    pub read_back: ReadBack,
    /// Whether the program's own memory is sealed.
    pub sealed: Sealed,
    /// The protections of the connector.
    pub connector: ProcessProtections,
    /// With `--github-oidc`: what the feeder reports about itself and its two connectors.
    pub feeder: Option<[ProcessProtections; 3]>,
    /// Further remarks for the start line.
    pub notes: Vec<String>,
}

/// The protections of the connector, as it reports them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessProtections {
    /// The user that it runs as.
    pub uid: u32,
    /// The status of its process, as read back.
    pub read_back: ReadBack,
    /// Whether its copy of the program is sealed.
    pub sealed: Sealed,
    /// No memory can be made executable.
    pub executable_memory_denied: bool,
}

/// The users that may use the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callers {
    /// Every local user.
    Everybody,
    /// Every local user who shows the token.
    Token,
    /// The users of `--allow-uid`.
    Users,
    /// The users of `--allow-uid`, with the token.
    UsersWithToken,
}

impl Callers {
    /// From what the command line asks for.
    pub fn new(has_users: bool, has_token: bool) -> Callers {
        match (has_users, has_token) {
            (false, false) => Callers::Everybody,
            (false, true) => Callers::Token,
            (true, false) => Callers::Users,
            (true, true) => Callers::UsersWithToken,
        }
    }
}

impl fmt::Display for Callers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Callers::Everybody => "every local user",
            Callers::Token => "every local user who has the token",
            Callers::Users => "the users of --allow-uid",
            Callers::UsersWithToken => "the users of --allow-uid who have the token",
        })
    }
}

/// The kind of memory that holds the key, in words.
pub fn describe(memory: SecretMemory) -> &'static str {
    match memory {
        SecretMemory::MemfdSecret => "key in memfd_secret pages",
        SecretMemory::Locked => "key in locked pages (no memfd_secret here)",
    }
}

/// What must be in force for the relay to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// The protections that this kernel has.
    WhatTheKernelHas,
    /// `--require-secret-memory`.
    SecretMemory,
    /// `--require-hardening`.
    Everything,
}

/// A protection that must be in force and is not.
#[derive(Debug)]
pub enum Unmet {
    /// A step had no effect although it succeeded, or a flag of its own requires it.
    Step(HardenError),
    /// `--require-hardening` was given, and these are missing.
    Missing(Vec<String>),
}

impl Unmet {
    /// The exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Unmet::Step(error) => error.exit_code(),
            Unmet::Missing(_) => HardenError::Incomplete.exit_code(),
        }
    }
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unmet::Step(error) => error.fmt(f),
            Unmet::Missing(missing) => {
                write!(f, "{}: {}", HardenError::Incomplete, missing.join("; "))
            }
        }
    }
}

impl Requirement {
    fn missing(self, missing: Vec<String>) -> Result<(), Unmet> {
        match self {
            Requirement::Everything if !missing.is_empty() => Err(Unmet::Missing(missing)),
            _ => Ok(()),
        }
    }

    /// Checks what is known before the key is read.
    pub fn before_the_key(self, beginning: &Beginning, sandbox: &Sandbox) -> Result<(), Unmet> {
        self.missing(before_the_key(beginning, sandbox))
    }

    /// Checks that neither every local user nor a user who needs no key can read the key file.
    pub fn key_file(self, readers: KeyReaders) -> Result<(), Unmet> {
        let missing = match readers {
            KeyReaders::Nobody | KeyReaders::Group => return Ok(()),
            KeyReaders::User(uid) => {
                format!("a key file that user {uid} cannot read (chown or setfacl it)")
            }
            KeyReaders::Everyone => "a key file that not everybody can read (chmod o-r it)".into(),
        };
        self.missing(vec![missing])
    }

    /// Checks that no inherited descriptor is left open.
    pub fn inherited(self, left_open: Option<&str>) -> Result<(), Unmet> {
        self.missing(left_open.map(str::to_owned).into_iter().collect())
    }

    /// Checks the kind of memory that holds the key.
    pub fn memory(self, memory: SecretMemory) -> Result<(), Unmet> {
        match (self, memory) {
            (Requirement::SecretMemory, SecretMemory::Locked) => {
                Err(Unmet::Step(HardenError::SecretMemory))
            }
            (Requirement::Everything, SecretMemory::Locked) => {
                Err(Unmet::Missing(vec![NO_SECRET_MEMORY.into()]))
            }
            _ => Ok(()),
        }
    }
}

/// The name of the feeder. It holds a secret, and runs as the relay's own user.
const FEEDER: &str = "feeder";
const NO_SECRET_MEMORY: &str = "secret memory (no memfd_secret here)";

impl Protections {
    /// Checks everything that was promised or is required.
    pub fn fulfil(&self, requirement: Requirement) -> Result<(), Unmet> {
        let others = self.others();
        let others = others.iter().map(|(_, process)| process.read_back);
        for status in others.chain([self.read_back]).filter_map(|read_back| read_back.status) {
            if !status.no_new_privileges {
                return Err(Unmet::Step(HardenError::NewPrivileges));
            }
            if status.capabilities != 0 {
                return Err(Unmet::Step(HardenError::Capabilities));
            }
            if status.groups != 0 && self.user.is_some() {
                return Err(Unmet::Step(HardenError::User));
            }
        }
        requirement.missing(self.missing())
    }

    /// The protections that `--require-hardening` requires and that are not in force. Protections
    /// that the relay never starts without are not in this list.
    fn missing(&self) -> Vec<String> {
        let mut missing = before_the_key(&self.beginning, &self.sandbox);
        if self.memory != SecretMemory::MemfdSecret {
            missing.push(NO_SECRET_MEMORY.into());
        }
        if self.read_back.status.is_none() {
            missing.push("a readable /proc, to see what is in force".into());
        }
        if self.sandbox.landlock().version().is_some() && !self.read_back.landlock_denies {
            missing.push("Landlock (no file was found to test it with)".into());
        }
        for (name, process) in self.others() {
            if process.uid == 0 && self.user.is_none() && name != FEEDER {
                missing.push(format!(
                    "a user of its own for the {name} (let setresuid(2) through, map id 65520, or use \
                     --user)"
                ));
            }
            if process.read_back.status.is_none() {
                missing.push(format!("a /proc that the {name} can read"));
            }
            if self.sandbox.landlock().version().is_some() && !process.read_back.landlock_denies {
                missing.push(format!("Landlock in the {name} (no file was found to test it with)"));
            }
        }
        missing
    }

    /// The other processes, each with its name.
    fn others(&self) -> Vec<(&'static str, ProcessProtections)> {
        let mut others = vec![("connector", self.connector)];
        if let Some([feeder, first, second]) = self.feeder {
            others.push((FEEDER, feeder));
            others.push(("feeder's first connector", first));
            others.push(("feeder's second connector", second));
        }
        others
    }

    fn not_in_force(&self) -> Vec<String> {
        let mut list = Vec::new();
        match self.callers {
            Callers::Everybody => list.push("every local user may use it (no --allow-uid)".into()),
            Callers::Token => {
                list.push("every local user who has the token may use it (no --allow-uid)".into());
            }
            Callers::Users | Callers::UsersWithToken => {}
        }
        if self.uid == 0 {
            list.push("it runs as uid 0 (no --user)".into());
        }
        if let Some(user) = self.beginning.open_to {
            list.push(format!(
                "processes of uid {user} could attach until it was non-dumpable (the program file is \
                 readable: install it with mode 711; no Yama)"
            ));
        }
        if let Some(tracer) = self.beginning.tracer {
            list.push(format!("process {tracer} traces it"));
        }
        match self.read_back.status {
            None => list.push("what is in force was not read back (no /proc)".into()),
            Some(status) => {
                if status.bounding != 0 {
                    list.push(
                        "the bounding set is not empty (it has no effect with no new privileges)"
                            .into(),
                    );
                }
            }
        }
        if !self.sealed.relro {
            list.push("relocated constants are writable".into());
        }
        for (name, process) in self.others() {
            self.lacks(name, process, &mut list);
        }
        list
    }

    /// The protections that are in force in the relay and not in another process.
    fn lacks(&self, name: &str, process: ProcessProtections, list: &mut Vec<String>) {
        let ProcessProtections { uid, read_back, sealed, executable_memory_denied } = process;
        for (is_lacking, what) in [
            (uid == 0 && (name != FEEDER || self.uid != 0), "it runs as uid 0"),
            (read_back.status.is_none(), "what is in force was not read back (no /proc)"),
            (self.sealed.relro && !sealed.relro, "relocated constants are writable"),
            (self.sealed.mseal && !sealed.mseal, "the program is not sealed"),
            (
                self.beginning.executable_memory_denied && !executable_memory_denied,
                "memory can be made executable",
            ),
        ] {
            if is_lacking {
                list.push(format!("{name}: {what}"));
            }
        }
    }
}

/// The protections that `--require-hardening` requires and that are known to be missing before the
/// key is read.
fn before_the_key(beginning: &Beginning, sandbox: &Sandbox) -> Vec<String> {
    let mut missing = Vec::new();
    if sandbox.is_off() {
        missing.push("seccomp and Landlock (--no-sandbox)".into());
    } else {
        if sandbox.seccomp().version().is_none() {
            missing.push(format!("seccomp ({})", sandbox.seccomp()));
        }
        if sandbox.landlock().version().is_none() {
            missing.push(format!("Landlock ({})", sandbox.landlock()));
        }
    }
    if let Some(user) = beginning.open_to {
        missing.push(format!(
            "a start that uid {user} cannot attach to (install the program file with mode 711, or set \
             kernel.yama.ptrace_scope)"
        ));
    }
    if let Some(tracer) = beginning.tracer {
        missing.push(format!("a start without a tracer (process {tracer} traces it)"));
    }
    missing
}

/// Two lists: what is in force, and what is not.
impl fmt::Display for Protections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", describe(self.memory), self.protection_key)?;
        if let Some(search) = self.search {
            write!(f, "; {search}")?;
        }
        f.write_str("; not dumpable; no core files; LD_* removed; no new privileges")?;
        if let Some((uid, gid)) = self.user {
            write!(f, "; user {uid}:{gid}")?;
        }
        write!(f, "; no capabilities; {}", self.sandbox)?;
        for (is_in_force, what) in [
            (self.beginning.executable_memory_denied, "no new executable memory (MDWE)"),
            (self.sealed.relro, "RELRO"),
            (self.sealed.mseal, "program sealed (mseal)"),
        ] {
            if is_in_force {
                write!(f, "; {what}")?;
            }
        }
        write!(f, "; connector: uid {}, with the same protections", self.connector.uid)?;
        if let Some([feeder, first, second]) = &self.feeder {
            let (uid, first, second) = (feeder.uid, first.uid, second.uid);
            write!(
                f,
                "; feeder: uid {uid}, and its connectors: uid {first} and {second}, likewise"
            )?;
        }
        for note in &self.notes {
            write!(f, "; {note}")?;
        }
        let list = self.not_in_force();
        if !list.is_empty() {
            write!(f, ". NOT in force: {}", list.join("; "))?;
        }
        Ok(())
    }
}
