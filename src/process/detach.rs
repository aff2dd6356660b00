//! `--detach`: the relay starts in a child process. The parent ends when the child listens, or
//! reports why the child does not.
//!
//! The fork comes before the key is read, because a child inherits no secret pages, and before any
//! thread is started. Until [`ParentReport::go_to_background`] the child's stdout is the pipe to
//! the parent, so that all other inherited descriptors can be closed as in a start without
//! `--detach`.

use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;

use super::sys::{self, Child, Standard};

/// Which of the two processes returned from the fork.
pub enum ForkSide {
    /// The process that the user started.
    Parent(PendingStart),
    /// The process that becomes the relay.
    Child(ParentReport),
}

/// Forks. Only while the process has one thread and no key.
pub fn fork() -> io::Result<ForkSide> {
    let (report, tell) = io::pipe()?;
    if let Some(child) = sys::fork()? {
        return Ok(ForkSide::Parent(PendingStart { child, report }));
    }
    // If the user stops the parent (Ctrl-C) the child ends too, and restores the terminal's echo.
    sys::end_with_parent(true)?;
    sys::replace(Standard::Output, tell.as_fd())?;
    Ok(ForkSide::Child(ParentReport { has_parent: true, report: None }))
}

/// The parent's view of a start that continues in the child.
pub struct PendingStart {
    child: Child,
    report: PipeReader,
}

impl PendingStart {
    /// Waits for the child's report, or for its end.
    pub fn outcome(mut self) -> StartOutcome {
        let mut report = Vec::new();
        let _ = self.report.read_to_end(&mut report);
        if let Some((code, text)) = report.split_first() {
            return StartOutcome::Told(*code, String::from_utf8_lossy(text).into_owned());
        }
        let reason = match self.child.wait() {
            // The child has written the reason to stderr itself.
            Ok(status) if status.code().is_some_and(|code| code != 0) => {
                return StartOutcome::Told(
                    status.code().map_or(1, |code| code as u8),
                    String::new(),
                );
            }
            Ok(status) => match status.signal() {
                Some(signal) => format!("it was killed by signal {signal}"),
                None => "it ended".into(),
            },
            Err(error) => format!("its end is not known: {error}"),
        };
        StartOutcome::Died(format!("--detach: {reason} before it listened"))
    }
}

/// How a start in a child ended.
pub enum StartOutcome {
    /// The exit code to pass on, and the lines to write to stderr.
    Told(u8, String),
    /// The child ended without a report. The reason.
    Died(String),
}

/// The treatment of stdin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stdin {
    /// It is replaced by `/dev/null`.
    Left,
    /// Further keys come from it (`--rotate`).
    Kept,
}

/// Where the result of the start is reported: stderr or, with `--detach`, the waiting parent.
#[derive(Default)]
pub struct ParentReport {
    has_parent: bool,
    /// The pipe to the parent, once stdout has been replaced by `/dev/null`.
    report: Option<File>,
}

impl ParentReport {
    /// With `--detach`, begins a session of its own and replaces the standard descriptors by
    /// `/dev/null`; stderr stays if it is a regular file, and stdin if keys come from there. Call
    /// this before the process is confined.
    pub fn go_to_background(&mut self, stdin: Stdin) -> io::Result<()> {
        if !self.has_parent {
            return Ok(());
        }
        let report = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let null = File::options().read(true).write(true).open("/dev/null");
        let null = null.map_err(|error| io::Error::other(format!("/dev/null: {error}")))?;
        sys::new_session()?;
        match stdin {
            Stdin::Left => sys::replace(Standard::Input, null.as_fd())?,
            Stdin::Kept => {}
        }
        sys::replace(Standard::Output, null.as_fd())?;
        if !is_stderr_kept() {
            sys::replace(Standard::Error, null.as_fd())?;
        }
        sys::end_with_parent(false)?;
        self.report = Some(report);
        Ok(())
    }

    /// Reports the result of the start: an exit code, and lines for stderr. Fails if the waiting
    /// parent has ended.
    pub fn tell(&mut self, code: u8, lines: &str) -> io::Result<()> {
        match self.report.take() {
            Some(mut report) => report.write_all(&[&[code], lines.as_bytes()].concat()),
            None => {
                // A caller that closed stderr does not want the lines: no reason to fail.
                let _ = io::stderr().write_all(lines.as_bytes());
                Ok(())
            }
        }
    }
}

/// Whether stderr is a regular file: a detached relay continues to write to it.
pub fn is_stderr_kept() -> bool {
    let stderr = io::stderr().as_fd().try_clone_to_owned();
    let file = |fd: OwnedFd| File::from(fd).metadata();
    stderr.and_then(file).is_ok_and(|metadata| metadata.is_file())
}
