//! Name lookups. Each lookup runs in a child process of its own, which confines itself, calls
//! getaddrinfo(3), writes the result to a pipe and ends. So the C library reads the current
//! configuration at every lookup, and parses foreign data in a process that does nothing else.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, PipeReader, Read, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::confine::{Confinement, RESOLVER_FILES};
use super::wire::{ADDRESS, decode_address, encode_address};
use crate::process::sys;
use crate::process::sys::child::{self, end_now};

/// The file that says which modules glibc uses (nsswitch.conf(5)).
const NSSWITCH: &str = "/etc/nsswitch.conf";
/// The most bytes that are read of [`NSSWITCH`].
const NSSWITCH_BYTES: u64 = 64 * 1024;

/// Seconds after which a lookup is killed. Name servers that do not respond take up to half of
/// that.
const LOOKUP: u32 = 60;

/// The most addresses in one message.
const ADDRESSES: usize = 16;
/// Bytes of the longest message.
const LONGEST: usize = 1 + ADDRESSES * ADDRESS;

/// The first byte of a message: the addresses follow, each as [`encode_address`] writes it.
const FOUND: u8 = 1;
/// The only byte of a message: a resolver file was replaced during the lookup, so the lookup may
/// have used no configuration.
const REPLACED: u8 = 2;

/// How long the connector waits for a lookup to end. A child outlives its timer while it hangs in a
/// file system, and has no timer if it is stopped before it sets the timer.
const OVERDUE: Duration = Duration::from_secs(LOOKUP as u64 + 5);

/// A lookup under way.
pub(super) struct Lookup {
    message: PipeReader,
    begun: Instant,
}

/// The result of a lookup.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LookupResult {
    /// These addresses. The list is empty if the lookup failed or the name has no address.
    Addresses(Vec<SocketAddr>),
    /// A resolver file was replaced during the lookup, which must be repeated.
    Again,
}

impl Lookup {
    /// Forks a child that looks the name up. Fails when the kernel refuses a pipe or a process.
    pub(super) fn begin(
        name: &str,
        port: u16,
        confinement: &Confinement,
        now: Instant,
    ) -> io::Result<Lookup> {
        let (message, tell) = io::pipe()?;
        let connector = std::process::id();
        if sys::fork()?.is_none() {
            let work = || in_child(name, port, confinement, connector, tell.into());
            let done = catch_unwind(AssertUnwindSafe(work));
            end_now(i32::from(!matches!(done, Ok(Some(())))));
        }
        Ok(Lookup { message, begun: now })
    }

    /// The child has not ended in time, so no result is expected any more.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        now >= self.begun + OVERDUE
    }

    /// The descriptor to poll for reading. Readiness means a result, or the end of the child.
    pub(super) fn fd(&self) -> RawFd {
        self.message.as_raw_fd()
    }

    /// Reads the result. Call this once [`Lookup::fd`] is ready. A child that ended without a
    /// well-formed message has found no address.
    pub(super) fn finish(mut self) -> LookupResult {
        let mut message = [0; LONGEST + 1];
        // One read is enough: the child writes the message at once, in fewer than PIPE_BUF bytes
        // (pipe(7)).
        let n = self.message.read(&mut message).unwrap_or(0);
        decode(&message[..n]).unwrap_or(LookupResult::Addresses(Vec::new()))
    }
}

/// Decodes a message; `None` if it is malformed.
fn decode(message: &[u8]) -> Option<LookupResult> {
    match message.split_first()? {
        (&FOUND, addresses) if message.len() <= LONGEST => {
            let addresses = addresses.chunks(ADDRESS).map(|bytes| decode_address(bytes).ok()?);
            Some(LookupResult::Addresses(addresses.collect::<Option<_>>()?))
        }
        (&REPLACED, []) => Some(LookupResult::Again),
        _ => None,
    }
}

/// Everything that the child does; `None` if a step fails.
fn in_child(
    name: &str,
    port: u16,
    confinement: &Confinement,
    connector: u32,
    tell: OwnedFd,
) -> Option<()> {
    let mut tell = File::from(child::keep_only(tell).ok()?);
    child::end_after(LOOKUP).ok()?;
    child::end_with(connector).ok()?;
    let (files, before) = resolver_files();
    confinement.lookup(&files).ok()?;
    drop(files);
    let found = (name, port).to_socket_addrs();
    let mut message = vec![FOUND];
    for address in found.into_iter().flatten().take(ADDRESSES) {
        message.extend(encode_address(Some(address)));
    }
    // The Landlock rule names the files as they were before the lookup. A file that has replaced
    // one of them cannot be read, and the C library treats it as empty.
    if file_ids() != before {
        message = vec![REPLACED];
    }
    tell.write_all(&message).ok()
}

/// The device and inode number of a file; `None` if they cannot be read.
type FileId = Option<(u64, u64)>;

/// Opens the resolver's files for a Landlock rule, and returns their ids.
fn resolver_files() -> (Vec<OwnedFd>, [FileId; RESOLVER_FILES.len()]) {
    let mut files = Vec::new();
    let before = RESOLVER_FILES.map(|path| {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path).ok()?;
        let metadata = file.metadata().ok()?;
        files.push(file.into());
        Some((metadata.dev(), metadata.ino()))
    });
    (files, before)
}

/// The ids of the resolver's files at this moment.
fn file_ids() -> [FileId; RESOLVER_FILES.len()] {
    RESOLVER_FILES.map(|path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino())))
}

/// Loads the modules with which glibc looks names up. All later children inherit them, because a
/// confined child can load none. No name is looked up here, so no packet is sent.
pub(super) fn load_modules() {
    if cfg!(not(target_env = "gnu")) {
        return;
    }
    // Neither a FIFO nor an endless file may block the start.
    let mut configuration = Vec::new();
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(NSSWITCH);
    let _ = file.and_then(|file| file.take(NSSWITCH_BYTES).read_to_end(&mut configuration));
    for service in services(&String::from_utf8_lossy(&configuration)) {
        if let Ok(library) = CString::new(format!("libnss_{service}.so.2")) {
            child::load_library(&library);
        }
    }
}

/// The services that the first `hosts` line names (nsswitch.conf(5)), after `files` and `dns`,
/// which glibc uses without such a line. Actions in brackets are left out. A name with other
/// characters is left out too, because it could be a path.
fn services(configuration: &str) -> Vec<&str> {
    let mut services = vec!["files", "dns"];
    let line = configuration.lines().find_map(|line| line.trim().strip_prefix("hosts:"));
    let mut line = line.unwrap_or_default().split('#').next().unwrap_or_default();
    while let Some((before, after)) = line.split_once('[') {
        services.extend(before.split_whitespace());
        line = after.split_once(']').map_or("", |(_, after)| after);
    }
    services.extend(line.split_whitespace());
    services.retain(|name| {
        name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
    });
    services
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lookup_is_waited_for_until_it_is_overdue_and_longer_than_it_may_take() {
        let now = Instant::now();
        let (message, _writer) = io::pipe().unwrap();
        let lookup = Lookup { message, begun: now };
        assert!(!lookup.is_overdue(now + OVERDUE - Duration::from_nanos(1)));
        assert!(lookup.is_overdue(now + OVERDUE));
        assert!(OVERDUE > Duration::from_secs(LOOKUP.into()));
    }

    #[test]
    fn services_are_those_of_the_hosts_line() {
        assert_eq!(services(""), ["files", "dns"]);
        let text = "passwd: files sss\n hosts:\tfiles mdns4_minimal [NOTFOUND=return] resolve \
                    [!UNAVAIL=return success=merge] dns myhostname # last\nhosts: other\n";
        let want = ["files", "dns", "files", "mdns4_minimal", "resolve", "dns", "myhostname"];
        assert_eq!(services(text), want);
        assert_eq!(services("hosts: ../../x [a b"), ["files", "dns"]);
        assert_eq!(services("#hosts: nis"), ["files", "dns"]);
    }

    #[test]
    fn an_answer_is_read_strictly() {
        let address: SocketAddr = "[2001:db8::1]:443".parse().unwrap();
        let one = [&[FOUND][..], &encode_address(Some(address))].concat();
        assert_eq!(decode(&one), Some(LookupResult::Addresses(vec![address])));
        assert_eq!(decode(&[FOUND]), Some(LookupResult::Addresses(vec![])));
        assert_eq!(decode(&[REPLACED]), Some(LookupResult::Again));
        for wrong in [&[][..], &[0], &[REPLACED, 0], &one[..9], &[FOUND, 0]] {
            assert_eq!(decode(wrong), None);
        }
        let none = [&[FOUND][..], &encode_address(None)].concat();
        assert_eq!(decode(&none), None);
        let many = [&[FOUND][..], &encode_address(Some(address)).repeat(ADDRESSES)].concat();
        assert!(decode(&many).is_some());
        let more = [&many[..], &encode_address(Some(address))].concat();
        assert_eq!(decode(&more), None);
    }
}
