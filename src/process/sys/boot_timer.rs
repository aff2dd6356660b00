//! A timer that goes on while the machine sleeps.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

use super::result::check;

/// A timer whose descriptor becomes readable when its time has come (timerfd_create(2)). By
/// CLOCK_BOOTTIME: a machine that wakes up after the time finds it readable at once.
pub struct BootTimer {
    fd: OwnedFd,
}

impl BootTimer {
    /// A timer that is not set.
    pub fn new() -> io::Result<BootTimer> {
        let flags = libc::TFD_CLOEXEC | libc::TFD_NONBLOCK;
        // SAFETY: no memory is involved.
        let fd = check(unsafe { libc::timerfd_create(libc::CLOCK_BOOTTIME, flags) })?;
        // SAFETY: the descriptor was just made and nobody else has it.
        Ok(BootTimer { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Sets the timer to this time from now. What it has announced before is forgotten.
    pub fn set(&self, after: Duration) -> io::Result<()> {
        // SAFETY: plain memory, of which zero is a legal value: the timer does not repeat.
        let mut once: libc::itimerspec = unsafe { std::mem::zeroed() };
        // A time of zero would stop the timer.
        let after = after.max(Duration::from_nanos(1));
        once.it_value.tv_sec = after.as_secs().try_into().unwrap_or(i32::MAX.into());
        once.it_value.tv_nsec = after.subsec_nanos().into();
        // SAFETY: the kernel reads one struct that outlives the call, and fills none.
        check(unsafe {
            libc::timerfd_settime(self.fd.as_raw_fd(), 0, ptr::from_ref(&once), ptr::null_mut())
        })
        .map(|_| ())
    }
}

impl AsRawFd for BootTimer {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::super::child::poll;
    use super::*;

    #[test]
    fn it_becomes_readable_when_its_time_has_come_and_not_before() {
        let timer = BootTimer::new().unwrap();
        let is_due = |wait| {
            let mut fds =
                [libc::pollfd { fd: timer.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
            poll(&mut fds, Some(wait)).unwrap();
            fds[0].revents != 0
        };
        assert!(!is_due(Duration::ZERO), "not set");
        timer.set(Duration::from_secs(3600)).unwrap();
        assert!(!is_due(Duration::ZERO), "in an hour");
        for after in [Duration::ZERO, Duration::from_millis(1)] {
            timer.set(after).unwrap();
            assert!(is_due(Duration::from_secs(20)));
            timer.set(Duration::from_secs(3600)).unwrap();
            assert!(!is_due(Duration::ZERO), "set again");
        }
    }
}
