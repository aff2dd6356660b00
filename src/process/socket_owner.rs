//! Which user's process holds a socket of this machine.
//!
//! The kernel is asked over netlink (sock_diag(7)) or, where netlink is refused, through
//! `/proc/net/tcp` and `tcp6`. Both know the sockets of one network namespace: the one in which
//! they were opened.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;

use super::sys;
use crate::http1::digits;

const ESTABLISHED: u8 = 1;
const SYN_SENT: u8 = 2;
const SYN_RECV: u8 = 3;
const LISTEN: u8 = 10;

/// The kernel sends no larger part of a list.
const DUMP_PART: usize = 32 * 1024;

/// Who holds one end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A process of this user. For an accepted socket, the user that called accept(2).
    User(u32),
    /// No process yet: the socket waits to be accepted. The kernel then names uid 0 or the
    /// listener's, so no uid is reported here.
    Unaccepted,
    /// That end has sent its last byte or is closed.
    Closing,
    /// There is no such socket in this network namespace.
    Missing,
}

/// The kernel's table of TCP sockets.
pub struct SocketTable {
    source: Source,
    /// The number of the last question. The kernel repeats it in the answer.
    asked: u32,
}

enum Source {
    Netlink(OwnedFd),
    /// `/proc/net/tcp` and `tcp6`.
    Proc(Vec<File>),
}

/// The rows of `/proc/net/tcp` and `tcp6` whose other end has one address, as they were at one
/// time.
pub struct Snapshot {
    rows: Vec<Socket>,
}

/// A socket as the kernel describes it. Addresses are canonical: none is an IPv4 address in IPv6
/// form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Socket {
    state: u8,
    end: SocketAddr,
    other: SocketAddr,
    user: u32,
    inode: u64,
    takes: Families,
}

/// Which connections a listener on `[::]` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Families {
    /// Those over IPv6 (IPV6_V6ONLY).
    V6,
    /// Those over IPv4 too, or this is not known.
    Both,
}

impl SocketTable {
    /// Opens what can be asked. Call it before the thread is confined.
    pub fn open() -> io::Result<SocketTable> {
        let source = match sys::socket_diagnosis() {
            Ok(fd) if has_diagnosis(&fd) => Source::Netlink(fd),
            _ => Source::proc()?,
        };
        Ok(SocketTable { source, asked: 0 })
    }

    /// The kernel is asked through `/proc/net/tcp`.
    pub fn is_proc(&self) -> bool {
        matches!(self.source, Source::Proc(_))
    }

    /// The descriptors of the tables of `/proc`, for the filter of system calls, which names them.
    pub fn descriptors(&self) -> [Option<RawFd>; 2] {
        match &self.source {
            Source::Netlink(_) => [None; 2],
            Source::Proc(tables) => [0, 1].map(|index| tables.get(index).map(AsRawFd::as_raw_fd)),
        }
    }

    /// Who holds the socket whose own address is `end` and whose other end is `other`.
    pub fn owner(&mut self, end: SocketAddr, other: SocketAddr) -> io::Result<Owner> {
        let (end, other) = (canonical(end), canonical(other));
        self.asked = self.asked.wrapping_add(1);
        match &self.source {
            Source::Netlink(fd) => match ask(fd, self.asked, end, other) {
                Ok(socket) => Ok(socket.owner()),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Owner::Missing),
                Err(error) => Err(error),
            },
            Source::Proc(tables) => Ok(Snapshot::read(tables, other)?.owner(end, other)),
        }
    }

    /// The users of all listeners that could take a connection to this address, once for each
    /// listener. A listener on one network interface counts, whichever that is.
    pub fn listeners(&mut self, at: SocketAddr) -> io::Result<Vec<u32>> {
        let at = canonical(at);
        let mut users = Vec::new();
        let mut note = |socket: Socket| {
            if socket.state == LISTEN && socket.is_listening_at(at) {
                users.push(socket.user);
            }
        };
        match &self.source {
            Source::Netlink(fd) => {
                for family in [libc::AF_INET, libc::AF_INET6] {
                    self.asked = self.asked.wrapping_add(1);
                    list_listeners(fd, self.asked, family as u8, at.port(), &mut note)?;
                }
            }
            Source::Proc(tables) => each_row(tables, Column::End, at.port(), note)?,
        }
        Ok(users)
    }

    /// Where `/proc/net/tcp` is asked: all connections whose other end is `other`, with one read of
    /// the tables. `None` for netlink, which is asked about each.
    pub fn snapshot(&mut self, other: SocketAddr) -> io::Result<Option<Snapshot>> {
        match &self.source {
            Source::Netlink(_) => Ok(None),
            Source::Proc(tables) => Snapshot::read(tables, canonical(other)).map(Some),
        }
    }

    #[cfg(test)]
    pub(super) fn of_proc() -> SocketTable {
        SocketTable { source: Source::proc().unwrap(), asked: 0 }
    }
}

impl Source {
    fn proc() -> io::Result<Source> {
        // Where IPv6 is off there is no second table.
        let mut tables = vec![File::open("/proc/net/tcp")?];
        tables.extend(File::open("/proc/net/tcp6"));
        Ok(Source::Proc(tables))
    }
}

impl Snapshot {
    fn read(tables: &[File], other: SocketAddr) -> io::Result<Snapshot> {
        let mut rows = Vec::new();
        each_row(tables, Column::Other, other.port(), |socket| {
            if socket.other == other && socket.state != LISTEN {
                rows.push(socket);
            }
        })?;
        Ok(Snapshot { rows })
    }

    /// Who held the socket.
    pub fn owner(&self, end: SocketAddr, other: SocketAddr) -> Owner {
        let (end, other) = (canonical(end), canonical(other));
        let mut rows = self.rows.iter();
        rows.find(|row| row.end == end && row.other == other).map_or(Owner::Missing, Socket::owner)
    }
}

impl Socket {
    fn owner(&self) -> Owner {
        match self.state {
            // Half open and of a process: it has met our SYN with one of its own (RFC 9293 §3.5),
            // from a port on which another user's process may listen.
            ESTABLISHED | SYN_RECV if self.inode != 0 => Owner::User(self.user),
            ESTABLISHED | SYN_RECV => Owner::Unaccepted,
            // Where there is no such connection, netlink answers with the listener; and a
            // socket that only tries to connect from that address is no end of a connection.
            LISTEN | SYN_SENT => Owner::Missing,
            _ => Owner::Closing,
        }
    }

    fn is_listening_at(&self, at: SocketAddr) -> bool {
        self.end.port() == at.port()
            && match (self.end.ip(), at.ip()) {
                (mine, at) if mine == at => true,
                (IpAddr::V4(mine), IpAddr::V4(_)) => mine.is_unspecified(),
                (IpAddr::V6(mine), IpAddr::V6(_)) => mine.is_unspecified(),
                (IpAddr::V6(mine), IpAddr::V4(_)) => {
                    mine.is_unspecified() && self.takes == Families::Both
                }
                (IpAddr::V4(_), IpAddr::V6(_)) => false,
            }
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The kernel has the module `tcp_diag`. One without says of every socket that there is none, so it
/// is asked for one that there is.
fn has_diagnosis(fd: &OwnedFd) -> bool {
    let find = || {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        ask(fd, 0, listener.local_addr()?, (Ipv4Addr::UNSPECIFIED, 0).into())
    };
    find().is_ok()
}

const BY_FAMILY: u16 = 20;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const REQUEST: u16 = 1;
const DUMP: u16 = 0x300;
/// `struct nlmsghdr` with `struct inet_diag_req_v2`.
const QUESTION: usize = 72;
/// `struct nlmsghdr` with `struct inet_diag_msg`. Attributes follow.
const ANSWER: usize = 88;

/// The question for one socket, or for all with these states.
fn question(flags: u16, number: u32, family: u8, states: u32) -> [u8; QUESTION] {
    let mut question = [0; QUESTION];
    put(&mut question, 0, &(QUESTION as u32).to_ne_bytes());
    put(&mut question, 4, &BY_FAMILY.to_ne_bytes());
    put(&mut question, 6, &flags.to_ne_bytes());
    put(&mut question, 8, &number.to_ne_bytes());
    put(&mut question, 16, &[family, libc::IPPROTO_TCP as u8]);
    put(&mut question, 20, &states.to_ne_bytes());
    // No cookie.
    put(&mut question, 64, &[0xff; 8]);
    question
}

fn put(question: &mut [u8], at: usize, bytes: &[u8]) {
    question[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Asks for one socket. The kernel answers before send(2) returns.
fn ask(fd: &OwnedFd, number: u32, end: SocketAddr, other: SocketAddr) -> io::Result<Socket> {
    let family = if end.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut question = question(REQUEST, number, family as u8, u32::MAX);
    put(&mut question, 24, &end.port().to_be_bytes());
    put(&mut question, 26, &other.port().to_be_bytes());
    for (at, address) in [(28, end), (44, other)] {
        match address.ip() {
            IpAddr::V4(ip) => put(&mut question, at, &ip.octets()),
            IpAddr::V6(ip) => put(&mut question, at, &ip.octets()),
        }
    }
    sys::send(fd.as_fd(), &question)?;
    let mut part = [0; 1024];
    loop {
        let len = sys::read(fd.as_fd(), &mut part)?;
        let message = Message::first(&part[..len]).ok_or(io::ErrorKind::InvalidData)?;
        // What is left of a question that failed in its middle is not for us.
        if message.number == number {
            return message.socket();
        }
    }
}

/// Asks for all listeners of a family and port.
fn list_listeners(
    fd: &OwnedFd,
    number: u32,
    family: u8,
    port: u16,
    mut note: impl FnMut(Socket),
) -> io::Result<()> {
    let mut question = question(REQUEST | DUMP, number, family, 1 << LISTEN);
    put(&mut question, 24, &port.to_be_bytes());
    sys::send(fd.as_fd(), &question)?;
    let mut part = vec![0; DUMP_PART];
    loop {
        let len = sys::read(fd.as_fd(), &mut part)?;
        let mut rest = &part[..len];
        while !rest.is_empty() {
            let message = Message::first(rest).ok_or(io::ErrorKind::InvalidData)?;
            rest = rest.get(message.bytes.len().next_multiple_of(4)..).unwrap_or_default();
            match message.kind {
                _ if message.number != number => {}
                DONE => return Ok(()),
                _ => note(message.socket()?),
            }
        }
    }
}

/// A netlink message.
struct Message<'a> {
    kind: u16,
    number: u32,
    /// With its header.
    bytes: &'a [u8],
}

impl<'a> Message<'a> {
    fn first(part: &'a [u8]) -> Option<Message<'a>> {
        let bytes = part.get(..u32_at(part, 0)? as usize).filter(|bytes| bytes.len() >= 16)?;
        let kind = (u32_at(bytes, 4)?.to_ne_bytes()[..2]).try_into().map(u16::from_ne_bytes);
        Some(Message { kind: kind.ok()?, number: u32_at(bytes, 8)?, bytes })
    }

    fn socket(&self) -> io::Result<Socket> {
        match self.kind {
            BY_FAMILY => self.read_socket().ok_or(io::ErrorKind::InvalidData.into()),
            ERROR => {
                let error = u32_at(self.bytes, 16).ok_or(io::ErrorKind::InvalidData)? as i32;
                Err(io::Error::from_raw_os_error(error.wrapping_neg()))
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn read_socket(&self) -> Option<Socket> {
        let [family, state, ..] = u32_at(self.bytes, 16)?.to_ne_bytes();
        let address = |ip: usize, port: usize| {
            let ip = self.bytes.get(ip..ip + 16)?;
            let ip = if c_int(family) == libc::AF_INET {
                IpAddr::from(<[u8; 4]>::try_from(&ip[..4]).ok()?)
            } else {
                IpAddr::from(<[u8; 16]>::try_from(ip).ok()?)
            };
            let port = self.bytes.get(port..port + 2)?;
            Some(canonical(SocketAddr::new(ip, u16::from_be_bytes([port[0], port[1]]))))
        };
        Some(Socket {
            state,
            end: address(24, 20)?,
            other: address(40, 22)?,
            user: u32_at(self.bytes, 80)?,
            inode: u32_at(self.bytes, 84)?.into(),
            takes: self.families(),
        })
    }

    fn families(&self) -> Families {
        const V6ONLY: u16 = 11;
        let mut rest = self.bytes.get(ANSWER..).unwrap_or_default();
        while let [a, b, c, d, value, ..] = rest {
            let (len, kind) = (u16::from_ne_bytes([*a, *b]), u16::from_ne_bytes([*c, *d]));
            if kind == V6ONLY && *value == 1 {
                return Families::V6;
            }
            rest = rest.get(usize::from(len.max(4)).next_multiple_of(4)..).unwrap_or_default();
        }
        Families::Both
    }
}

fn c_int(family: u8) -> libc::c_int {
    family.into()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

/// A column of the tables, by the number of the colon in it.
#[derive(Clone, Copy)]
enum Column {
    /// `local_address`
    End = 1,
    /// `rem_address`
    Other = 2,
}

/// Reads the tables from their beginning to their end, for the rows with this port. There may be
/// tens of thousands of others, which are only skipped.
fn each_row(
    tables: &[File],
    column: Column,
    port: u16,
    mut note: impl FnMut(Socket),
) -> io::Result<()> {
    let port = format!("{port:04X}");
    let is_meant = |line: &&[u8]| {
        let mut colons = line.iter().enumerate().filter(|(_, byte)| **byte == b':');
        let colon = colons.nth(column as usize);
        colon.is_some_and(|(at, _)| line[at + 1..].starts_with(port.as_bytes()))
    };
    for table in tables {
        let mut at = 0;
        let mut rest = Vec::new();
        let mut part = [0; 16 * 1024];
        loop {
            let len = table.read_at(&mut part, at)?;
            if len == 0 {
                break;
            }
            at += len as u64;
            rest.extend_from_slice(&part[..len]);
            let whole = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            let lines = rest[..whole].split(|byte| *byte == b'\n');
            lines.filter(is_meant).filter_map(row).for_each(&mut note);
            rest.drain(..whole);
        }
    }
    Ok(())
}

/// A line of `/proc/net/tcp` or `tcp6`.
fn row(line: &[u8]) -> Option<Socket> {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    words.next()?;
    let (end, other) = (address(words.next()?)?, address(words.next()?)?);
    let state = hex(words.next()?)?.try_into().ok()?;
    let user = digits::decimal(words.nth(3)?, 19)?.try_into().ok()?;
    let inode = digits::decimal(words.nth(1)?, 19)?;
    Some(Socket { state, end, other, user, inode, takes: Families::Both })
}

/// `0100007F:1F90`: an address in words of the machine's own byte order, and a port.
fn address(word: &[u8]) -> Option<SocketAddr> {
    let colon = word.iter().position(|byte| *byte == b':')?;
    let word_at = |at: usize| hex(word[..colon].get(at..at + 8)?);
    let ip = match colon {
        8 => IpAddr::from(word_at(0)?.to_ne_bytes()),
        32 => {
            let mut octets = [0; 16];
            for (index, octets) in octets.chunks_exact_mut(4).enumerate() {
                octets.copy_from_slice(&word_at(index * 8)?.to_ne_bytes());
            }
            IpAddr::from(octets)
        }
        _ => return None,
    };
    let port = hex(&word[colon + 1..])?.try_into().ok()?;
    Some(canonical(SocketAddr::new(ip, port)))
}

/// 1 to 8 hexadecimal digits.
fn hex(word: &[u8]) -> Option<u32> {
    if !(1..=8).contains(&word.len()) {
        return None;
    }
    word.iter().try_fold(0, |n, byte| {
        let digit = char::from(*byte).to_digit(16)?;
        Some(n << 4 | digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    /// The uid of this process.
    fn me() -> u32 {
        sys::user_ids().unwrap().effective
    }

    /// Both ways of asking, where the kernel has both.
    fn tables() -> [SocketTable; 2] {
        [SocketTable::open().unwrap(), SocketTable::of_proc()]
    }

    #[test]
    fn an_accepted_socket_is_its_users_and_one_that_waits_is_nobodys() {
        for mut table in tables() {
            for at in ["127.0.0.1:0", "[::1]:0", "[::]:0", "0.0.0.0:0"] {
                // No IPv6 here: the IPv4 rows remain.
                let Ok(listener) = TcpListener::bind(at) else { continue };
                let port = listener.local_addr().unwrap().port();
                let targets = match at {
                    "127.0.0.1:0" | "0.0.0.0:0" => vec!["127.0.0.1", "::ffff:127.0.0.1"],
                    "[::1]:0" => vec!["::1"],
                    _ => vec!["::1", "127.0.0.1"],
                };
                for target in targets {
                    let target = SocketAddr::new(target.parse().unwrap(), port);
                    let ours = TcpStream::connect(target).unwrap();
                    let (local, peer) = (ours.local_addr().unwrap(), ours.peer_addr().unwrap());
                    assert_eq!(table.owner(peer, local).unwrap(), Owner::Unaccepted, "{target}");
                    assert_eq!(table.owner(local, peer).unwrap(), Owner::User(me()), "{target}");
                    assert_eq!(table.listeners(peer).unwrap(), [me()], "{target}");
                    let (accepted, _) = listener.accept().unwrap();
                    assert_eq!(table.owner(peer, local).unwrap(), Owner::User(me()), "{target}");
                    drop(accepted);
                    assert_eq!(table.owner(peer, local).unwrap(), Owner::Closing, "{target}");
                    drop(ours);
                    assert_eq!(table.owner(local, peer).unwrap(), Owner::Missing, "{target}");
                }
            }
        }
    }

    #[test]
    fn a_listener_for_ipv6_alone_takes_no_ipv4() {
        let Ok(v6) = TcpListener::bind("[::1]:0") else { return };
        let port = v6.local_addr().unwrap().port();
        for mut table in tables() {
            assert_eq!(table.listeners(([127, 0, 0, 1], port).into()).unwrap(), []);
            assert_eq!(table.listeners(([127, 0, 0, 1], 0).into()).unwrap(), []);
        }
    }

    #[test]
    fn that_there_is_no_such_socket_is_no_proof_that_the_kernel_can_be_asked() {
        let Ok(fd) = sys::socket_diagnosis() else { return };
        let nobody = (Ipv4Addr::LOCALHOST, 0).into();
        let missing = ask(&fd, 1, nobody, nobody).unwrap_err();
        assert_eq!(missing.raw_os_error(), Some(libc::ENOENT));
        let is_proc = SocketTable::open().unwrap().is_proc();
        assert_eq!(is_proc, !has_diagnosis(&fd), "as without the module");
    }

    #[test]
    fn a_table_line_is_read_as_the_kernel_writes_it() {
        let rest = |state: &str, inode: &str| {
            format!(
                "{state} 00000000:00000000 00:00000000 00000000  1000        0 {inode} 1 \
                 0000000000000000 20 4 0 10 -1"
            )
        };
        for (addresses, end, other) in [
            ("0100007F:9C40 0100007F:1F90", "127.0.0.1:40000", "127.0.0.1:8080"),
            (
                "0000000000000000FFFF00000100007F:9C40 0000000000000000FFFF00000100007F:1F90",
                "127.0.0.1:40000",
                "127.0.0.1:8080",
            ),
            (
                "00000000000000000000000001000000:9C40 00000000000000000000000001000000:1F90",
                "[::1]:40000",
                "[::1]:8080",
            ),
        ] {
            let (end, other) = (end.parse().unwrap(), other.parse().unwrap());
            let read = |state: &str, inode: &str| {
                let line = format!("   4: {addresses} {}", rest(state, inode));
                let row = row(line.as_bytes()).unwrap();
                assert_eq!((row.end, row.other), (end, other));
                row.owner()
            };
            assert_eq!(read("01", "77"), Owner::User(1000));
            assert_eq!(read("01", "0"), Owner::Unaccepted);
            assert_eq!(read("03", "0"), Owner::Unaccepted);
            assert_eq!(read("03", "77"), Owner::User(1000));
            assert_eq!(read("05", "77"), Owner::Closing);
            assert_eq!(read("02", "77"), Owner::Missing);
            assert_eq!(read("0A", "77"), Owner::Missing);
        }
        for line in ["  sl  local_address rem_address   st", "", " 1: 0:0 0:0 01"] {
            assert_eq!(row(line.as_bytes()), None);
        }
    }
}
