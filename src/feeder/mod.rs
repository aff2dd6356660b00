//! The feeder (`--github-oidc`): a process that gets access tokens and writes each as a line to the
//! relay's stdin, so that the relay's key is rotated.
//!
//! ```text
//!  stdin ─ request token ─►  feeder  ── token, lifetime ──►  relay (its stdin)
//!                            │    ▲
//!                       Dial │    │ descriptor
//!                            ▼    │
//!                 two connectors, one for each host
//! ```
//!
//! The feeder is forked before the relay reads any secret, and the relay's stdin is then the feeder's
//! pipe. So the relay never has GitHub's request token, and the feeder never has a byte of a client.
//! Each connector knows one host and no token. The feeder ends with the relay.

mod exchange;
mod memory;
mod plan;
mod renewal;
mod start;
mod system_calls;

pub use plan::{Hop, Plan, Stderr};

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::connector::{self, report::REPORT};
use crate::oidc::notice::{Failure, NOTICE, Notice, SetupFault};
use crate::process::harden::HardenError;
use crate::process::protections::ProcessProtections;
use crate::process::sys::child::{self, Disposition};
use crate::process::sys::fd_passing::message_pair;
use crate::process::sys::{self, Standard};

/// A feeder that starts.
pub struct Feeder {
    link: OwnedFd,
}

/// The processes of the feeder: itself, and the connector of each step.
pub type FeederProtections = [ProcessProtections; 3];

/// Why the feeder did not start.
#[derive(Debug)]
pub enum FeederError {
    /// A step of the hardening of one of its processes failed.
    Harden(HardenError),
    /// There is no token.
    Failed(Failure),
    /// The feeder ended, or sent a malformed message.
    Gone,
}

/// Forks the feeder, which sandboxes itself if `sandbox` is true and begins with `prepare`. The
/// feeder reads GitHub's request token from stdin; in this process stdin is from here on the pipe
/// that the feeder writes to. Call it only while the process has one thread and no secret. Fails when
/// the kernel refuses a pipe, a socket pair or a process.
pub fn fork<'a>(
    sandbox: bool,
    prepare: impl FnOnce() -> Result<Plan<'a>, SetupFault>,
) -> io::Result<Feeder> {
    let (ours, theirs) = message_pair()?;
    let (reader, writer) = io::pipe()?;
    let parent = std::process::id();
    child::set_disposition(libc::SIGCHLD, Disposition::Ignored);
    if sys::fork()?.is_none() {
        drop((ours, reader));
        // Even after a panic, the child must not go on as a second relay.
        let life = || start::live(theirs, writer, parent, sandbox, prepare);
        let ended = catch_unwind(AssertUnwindSafe(life));
        child::end_now(i32::from(ended.is_err()));
    }
    sys::replace(Standard::Input, reader.as_fd())?;
    Ok(Feeder { link: ours })
}

/// What the feeder sends at its start, in the order of [`Feeder::wait`].
enum Message {
    Report(ProcessProtections),
    Fetched,
}

impl Feeder {
    /// This process's end of the link.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }

    /// Waits until the first token is on its way through the pipe. The link is then closed.
    pub fn wait(self) -> Result<FeederProtections, FeederError> {
        let mut protections = [None; 3];
        for protections in &mut protections {
            match self.receive()? {
                Message::Report(report) => *protections = Some(report),
                Message::Fetched => return Err(FeederError::Gone),
            }
        }
        match (self.receive()?, protections) {
            (Message::Fetched, [Some(feeder), Some(first), Some(second)]) => {
                Ok([feeder, first, second])
            }
            _ => Err(FeederError::Gone),
        }
    }

    /// There is no deadline: stdin may take its time, and the feeder has deadlines of its own.
    #[inline(never)]
    fn receive(&self) -> Result<Message, FeederError> {
        let mut message = [0; if NOTICE > REPORT { NOTICE } else { REPORT }];
        let len = connector::receive(self.link.as_fd(), &mut message, None);
        let message = &message[..len.ok_or(FeederError::Gone)?];
        if message.len() == REPORT {
            let report = connector::report::decode(message).map_err(|_| FeederError::Gone)?;
            return report.map(Message::Report).map_err(FeederError::Harden);
        }
        match Notice::decode(message).map_err(|_| FeederError::Gone)? {
            Notice::Failed(failure) => Err(FeederError::Failed(failure)),
            Notice::Fetched => Ok(Message::Fetched),
        }
    }
}
