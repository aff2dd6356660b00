//! `--detach`: the relay starts in a child process. The parent ends when that listens, or says why
//! it does not.
//!
//! The fork comes before the key is read, because a child gets no copy of secret pages, and before
//! any thread is started. Until the child leaves, its stdout is the pipe to the parent, so that
//! everything else that was inherited can be closed as always.

use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;

use super::sys::{self, Child, Standard};

/// Which of the two processes this is.
pub enum Side {
    /// The one that was started.
    Parent(Start),
    /// The one that becomes the relay.
    Child(Starter),
}

/// Forks. Only while the process has one thread and no key.
pub fn fork() -> io::Result<Side> {
    let (report, tell) = io::pipe()?;
    if let Some(child) = sys::fork()? {
        return Ok(Side::Parent(Start { child, report }));
    }
    // A start that was called off leaves nothing behind, not even a terminal without echo.
    sys::end_with_parent(true)?;
    sys::replace(Standard::Output, tell.as_fd())?;
    Ok(Side::Child(Starter { waits: true, report: None }))
}

/// A start that is under way in a child.
pub struct Start {
    child: Child,
    report: PipeReader,
}

impl Start {
    /// Waits for the child's report, or for its end.
    pub fn outcome(mut self) -> Outcome {
        let mut report = Vec::new();
        let _ = self.report.read_to_end(&mut report);
        if let Some((code, text)) = report.split_first() {
            return Outcome::Told(*code, String::from_utf8_lossy(text).into_owned());
        }
        let reason = match self.child.wait() {
            // It has said why itself.
            Ok(status) if status.code().is_some_and(|code| code != 0) => {
                return Outcome::Told(status.code().map_or(1, |code| code as u8), String::new());
            }
            Ok(status) => match status.signal() {
                Some(signal) => format!("it was killed by signal {signal}"),
                None => "it ended".into(),
            },
            Err(error) => format!("its end is not known: {error}"),
        };
        Outcome::Died(format!("--detach: {reason} before it listened"))
    }
}

/// How a start in a child ended.
pub enum Outcome {
    /// The exit code to pass on, and the lines that stderr has not been told yet.
    Told(u8, String),
    /// The child ended without a word. Why the start failed.
    Died(String),
}

/// Who started the relay and is told how that went: a reader of stderr, or a waiting parent.
#[derive(Default)]
pub struct Starter {
    waits: bool,
    /// The way to the parent, once stderr has been left.
    report: Option<File>,
}

impl Starter {
    /// Leaves the session and the descriptors of the relay's starter; of these, a regular file
    /// stays as stderr. Nothing, without `--detach`. To be done before the process is confined.
    pub fn leave(&mut self) -> io::Result<()> {
        if !self.waits {
            return Ok(());
        }
        let report = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let null = File::options().read(true).write(true).open("/dev/null")?;
        sys::new_session()?;
        sys::replace(Standard::Input, null.as_fd())?;
        sys::replace(Standard::Output, null.as_fd())?;
        if !is_stderr_kept() {
            sys::replace(Standard::Error, null.as_fd())?;
        }
        sys::end_with_parent(false)?;
        self.report = Some(report);
        Ok(())
    }

    /// Tells how the start went: exit code and lines. Fails when a parent that waited is gone.
    pub fn tell(&mut self, code: u8, lines: &str) -> io::Result<()> {
        match self.report.take() {
            Some(mut report) => report.write_all(&[&[code], lines.as_bytes()].concat()),
            None => {
                // A starter that has closed stderr does not want to know.
                let _ = io::stderr().write_all(lines.as_bytes());
                Ok(())
            }
        }
    }
}

/// Stderr is a regular file, which a relay that leaves goes on writing to.
pub fn is_stderr_kept() -> bool {
    let stderr = io::stderr().as_fd().try_clone_to_owned();
    let file = |fd: OwnedFd| File::from(fd).metadata();
    stderr.and_then(file).is_ok_and(|metadata| metadata.is_file())
}
