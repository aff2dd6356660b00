//! Reads the protections of a thread back from `/proc/PID/task/TID/status` (proc_pid_status(5)).

use std::fs::File;
use std::io::{self, Read};

/// The fields that describe protections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// `PR_SET_NO_NEW_PRIVS` is set.
    pub no_new_privileges: bool,
    /// `Seccomp` is 2: a seccomp filter is in force.
    pub seccomp: bool,
    /// The number of seccomp filters. Linux before 5.9 does not report the number.
    pub filters: Option<u64>,
    /// The union of the inheritable, permitted, effective and ambient capabilities.
    pub capabilities: u64,
    /// The bounding set, which limits the capabilities that execve(2) can give.
    pub bounding: u64,
    /// The number of supplementary groups.
    pub groups: usize,
    /// The process id of the tracer; 0 if the process is not traced.
    pub tracer: u64,
}

/// The open status file of a thread. The file can be read even after the thread has lost the right
/// to open files.
pub struct StatusFile {
    file: File,
}

impl StatusFile {
    /// Opens the status file of the calling thread.
    pub fn open() -> io::Result<StatusFile> {
        Ok(StatusFile { file: File::open("/proc/thread-self/status")? })
    }

    /// Reads and closes the file. A file that cannot be parsed is [`io::ErrorKind::InvalidData`].
    pub fn read(mut self) -> io::Result<Status> {
        let mut text = [0; 8192];
        let mut len = 0;
        while len < text.len() {
            match self.file.read(&mut text[len..])? {
                0 => break,
                n => len += n,
            }
        }
        Status::parse(&text[..len]).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

impl Status {
    /// Reads the status of the calling thread.
    pub fn read() -> io::Result<Status> {
        StatusFile::open()?.read()
    }

    /// Reads the status of every other thread that this process has now.
    pub fn of_other_threads() -> io::Result<Vec<Status>> {
        // The thread ids under `/proc` belong to the process namespace that `/proc` was mounted
        // for. That namespace may differ from the caller's, so the result of gettid(2) cannot be
        // used.
        let link = std::fs::read_link("/proc/thread-self")?;
        let own = link.file_name().ok_or(io::ErrorKind::InvalidData)?;
        let mut found = Vec::new();
        for thread in std::fs::read_dir("/proc/self/task")? {
            let thread = thread?;
            if thread.file_name() != own {
                match std::fs::read(thread.path().join("status")) {
                    Ok(text) => {
                        found.push(Status::parse(&text).ok_or(io::ErrorKind::InvalidData)?);
                    }
                    // The thread has ended meanwhile.
                    Err(error) if is_gone(&error) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(found)
    }

    /// Returns `None` when a required field is missing. A kernel without seccomp writes no
    /// `Seccomp:`, which counts as 0. Linux before 5.9 writes no `Seccomp_filters:`. Every other
    /// field is older than any kernel that this program supports.
    fn parse(text: &[u8]) -> Option<Status> {
        let field = |name: &[u8]| {
            let lines = text.split(|byte| *byte == b'\n');
            lines.filter_map(|line| line.strip_prefix(name)).next().map(<[u8]>::trim_ascii)
        };
        let hexadecimal = |name| number(field(name)?, 16);
        let capabilities = [b"CapInh:", b"CapPrm:", b"CapEff:", b"CapAmb:"];
        let capabilities = capabilities
            .iter()
            .try_fold(0, |all, name| Some(all | hexadecimal(name.as_slice())?))?;
        let groups = field(b"Groups:")?.split(u8::is_ascii_whitespace);
        Some(Status {
            no_new_privileges: field(b"NoNewPrivs:")? == b"1",
            seccomp: field(b"Seccomp:") == Some(b"2"),
            filters: field(b"Seccomp_filters:").and_then(|count| number(count, 10)),
            capabilities,
            bounding: hexadecimal(b"CapBnd:")?,
            groups: groups.filter(|group| !group.is_empty()).count(),
            tracer: number(field(b"TracerPid:")?, 10)?,
        })
    }
}

/// Reads a whole number in this base. Returns `None` for anything else.
fn number(digits: &[u8], base: u32) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |n, byte| {
        let digit = char::from(*byte).to_digit(base)?;
        n.checked_mul(base.into())?.checked_add(digit.into())
    })
}

/// Whether the error says that the thread no longer exists.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "Name:\tx\nTracerPid:\t7\nGroups:\t0 4 \nCapInh:\t0000000000000000\n\
        CapPrm:\t0000000000000001\nCapEff:\t0000000000000002\nCapBnd:\t000001ffffffffff\n\
        CapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n";

    #[test]
    fn what_the_kernel_writes_is_read() {
        let status = Status::parse(TEXT.as_bytes()).unwrap();
        let bounding = 0x1ff_ffff_ffff;
        let want = Status {
            no_new_privileges: true,
            seccomp: true,
            filters: Some(1),
            capabilities: 3,
            bounding,
            groups: 2,
            tracer: 7,
        };
        assert_eq!(status, want);
        let open = TEXT.replace("Privs:\t1", "Privs:\t0").replace("Seccomp:\t2", "Seccomp:\t0");
        let open = Status::parse(open.as_bytes()).unwrap();
        assert!(!open.no_new_privileges && !open.seccomp);
        assert_eq!(
            Status::parse(TEXT.replace("Groups:\t0 4", "Groups:\t").as_bytes()).unwrap().groups,
            0
        );
    }

    #[test]
    fn a_field_that_is_missing_is_not_taken_for_granted() {
        for field in ["NoNewPrivs", "CapEff", "CapBnd", "Groups", "TracerPid"] {
            let text = TEXT.replace(field, "Else");
            assert_eq!(Status::parse(text.as_bytes()), None, "{field}");
        }
        assert!(!Status::parse(TEXT.replace("Seccomp:", "E:").as_bytes()).unwrap().seccomp);
        assert_eq!(Status::parse(TEXT.replace("CapEff:\t0", "CapEff:\tg").as_bytes()), None);
    }

    #[test]
    fn this_process_is_read() {
        assert!(Status::read().is_ok());
        assert!(!Status::of_other_threads().unwrap().is_empty(), "tests run in a thread");
    }
}
