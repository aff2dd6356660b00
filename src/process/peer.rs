//! Which local user a loopback connection belongs to.
//!
//! The kernel is asked for the socket at the other end, the one whose own address is our peer's:
//! over netlink (sock_diag(7)), or, where that is not to be had, in `/proc/net/tcp`.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;

use super::sys;

/// `TCP_ESTABLISHED`. A socket in any other state may no longer have a user: the kernel then
/// answers 0, which is root's.
const ESTABLISHED: u8 = 1;

/// Users who may connect.
pub struct Peers {
    allowed: Vec<u32>,
    source: Source,
    asked: u32,
}

/// Whose a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// A user who may connect, by the position in the list.
    Allowed(usize),
    /// Another user, by id; `None` when the connection has none any more.
    Refused(Option<u32>),
}

enum Source {
    Netlink(OwnedFd),
    /// `/proc/net/tcp` and `tcp6`, which lists IPv6 sockets that talk to IPv4 addresses.
    Tables(Vec<File>),
}

impl Peers {
    /// Opens what can be asked; later no file and no such socket can be opened any more.
    pub fn new(allowed: Vec<u32>) -> io::Result<Peers> {
        let source = match sys::socket_diagnosis() {
            Ok(fd) if finds_a_listener(&fd).is_ok() => Source::Netlink(fd),
            _ => tables()?,
        };
        // Each user once: the position tells users apart.
        let mut users = Vec::new();
        for uid in allowed {
            if !users.contains(&uid) {
                users.push(uid);
            }
        }
        Ok(Peers { allowed: users, source, asked: 0 })
    }

    /// The kernel is read through `/proc/net/tcp`.
    pub fn reads_tables(&self) -> bool {
        matches!(self.source, Source::Tables(_))
    }

    /// How many users may connect.
    pub fn count(&self) -> usize {
        self.allowed.len()
    }

    /// Whose the connection from `peer` to `local` is: whoever holds the other end open.
    pub fn identify(&mut self, peer: SocketAddrV4, local: SocketAddrV4) -> Identity {
        let user = self.user(peer, local).ok().flatten();
        let position =
            user.and_then(|user| self.allowed.iter().position(|allowed| *allowed == user));
        match position {
            Some(position) => Identity::Allowed(position),
            None => Identity::Refused(user),
        }
    }

    /// The descriptors of the tables, for the filter of system calls, which names them.
    pub fn tables(&self) -> [Option<RawFd>; 2] {
        match &self.source {
            Source::Netlink(_) => [None; 2],
            Source::Tables(tables) => {
                [0, 1].map(|index| tables.get(index).map(|table: &File| table.as_raw_fd()))
            }
        }
    }

    fn user(&mut self, peer: SocketAddrV4, local: SocketAddrV4) -> io::Result<Option<u32>> {
        self.asked = self.asked.wrapping_add(1);
        match &self.source {
            Source::Netlink(fd) => match ask(fd, self.asked, peer, local) {
                Ok(socket) => Ok(socket.user()),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
                Err(error) => Err(error),
            },
            Source::Tables(tables) => look_up(tables, peer, local),
        }
    }
}

/// A kernel without the module `tcp_diag` says of every socket that there is none: so it is asked
/// for one that there is.
fn finds_a_listener(fd: &OwnedFd) -> io::Result<Socket> {
    let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
    let listener = TcpListener::bind(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    ask(fd, 0, SocketAddrV4::new(Ipv4Addr::LOCALHOST, port), any)
}

fn tables() -> io::Result<Source> {
    // Where IPv6 is off there is no second one.
    let mut tables = vec![File::open("/proc/net/tcp")?];
    tables.extend(File::open("/proc/net/tcp6"));
    Ok(Source::Tables(tables))
}

/// A socket as the kernel describes it.
struct Socket {
    state: u8,
    user: u32,
    inode: u32,
}

impl Socket {
    fn user(&self) -> Option<u32> {
        (self.state == ESTABLISHED && self.inode != 0).then_some(self.user)
    }
}

/// One `SOCK_DIAG_BY_FAMILY` question (`struct inet_diag_req_v2`), answered before send(2) returns.
fn ask(fd: &OwnedFd, number: u32, peer: SocketAddrV4, local: SocketAddrV4) -> io::Result<Socket> {
    const BY_FAMILY: u16 = 20;
    const REQUEST: u16 = 1;
    const ERROR: u16 = 2;
    let mut question = [0u8; 72];
    let mut put = |at: usize, bytes: &[u8]| question[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &72u32.to_ne_bytes());
    put(4, &BY_FAMILY.to_ne_bytes());
    put(6, &REQUEST.to_ne_bytes());
    put(8, &number.to_ne_bytes());
    put(16, &[libc::AF_INET as u8, libc::IPPROTO_TCP as u8]);
    put(20, &u32::MAX.to_ne_bytes());
    put(24, &peer.port().to_be_bytes());
    put(26, &local.port().to_be_bytes());
    put(28, &peer.ip().octets());
    put(44, &local.ip().octets());
    // No cookie.
    put(64, &[0xff; 8]);
    sys::send(fd.as_fd(), &question)?;
    let mut answer = [0u8; 512];
    loop {
        let len = sys::read(fd.as_fd(), &mut answer)?;
        let word = |at: usize| {
            let bytes = answer[..len].get(at..at + 4).ok_or(io::ErrorKind::InvalidData)?;
            Ok::<u32, io::Error>(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        };
        if word(8)? != number {
            continue;
        }
        let kind = (word(4)? & 0xffff) as u16;
        return match kind {
            BY_FAMILY => {
                let state = word(16)?.to_ne_bytes()[1];
                Ok(Socket { state, user: word(80)?, inode: word(84)? })
            }
            ERROR => Err(io::Error::from_raw_os_error((word(16)? as i32).wrapping_neg())),
            _ => Err(io::ErrorKind::InvalidData.into()),
        };
    }
}

/// Reads the kernel's tables from their beginning.
fn look_up(tables: &[File], peer: SocketAddrV4, local: SocketAddrV4) -> io::Result<Option<u32>> {
    for table in tables {
        let mut at = 0;
        let mut rest = Vec::new();
        let mut piece = [0; 16 * 1024];
        loop {
            let len = table.read_at(&mut piece, at)?;
            if len == 0 {
                break;
            }
            at += len as u64;
            rest.extend_from_slice(&piece[..len]);
            let whole = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            for line in rest[..whole].split(|byte| *byte == b'\n') {
                if let Some(user) = user_in(line, peer, local) {
                    return Ok(user);
                }
            }
            rest.drain(..whole);
        }
    }
    Ok(None)
}

/// `Some` when the line is about the connection, with its user if it still has one.
fn user_in(line: &[u8], peer: SocketAddrV4, local: SocketAddrV4) -> Option<Option<u32>> {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let is = |word: &[u8], address: SocketAddrV4| {
        let (ip, port) = (u32::from_ne_bytes(address.ip().octets()), address.port());
        let text = format!("{ip:08X}:{port:04X}");
        // An IPv4 address in an IPv6 socket: ::ffff:a.b.c.d, word by word.
        word == text.as_bytes()
            || word.strip_prefix(b"0000000000000000FFFF0000") == Some(text.as_bytes())
    };
    words.next()?;
    if !is(words.next()?, peer) || !is(words.next()?, local) {
        return None;
    }
    let state = words.next()?;
    let user = number(words.nth(3)?)?;
    let inode = number(words.nth(1)?)?;
    Some((state == b"01" && inode != 0).then_some(user as u32))
}

fn number(word: &[u8]) -> Option<u64> {
    word.iter().take(20).try_fold(0u64, |n, b| {
        b.is_ascii_digit().then(|| n.wrapping_mul(10).wrapping_add(u64::from(b - b'0')))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{SocketAddr, TcpStream};
    use std::os::unix::fs::MetadataExt;

    fn v4(address: SocketAddr) -> SocketAddrV4 {
        match address {
            SocketAddr::V4(address) => address,
            SocketAddr::V6(address) => {
                SocketAddrV4::new(address.ip().to_ipv4_mapped().unwrap(), address.port())
            }
        }
    }

    #[test]
    fn the_user_at_the_other_end_is_found_in_both_ways_until_he_has_gone() {
        let me = File::open("/proc/self/status").unwrap().metadata().unwrap().uid();
        let me = if me == 0 { sys_uid() } else { me };
        for source in [Some(tables().unwrap()), None] {
            let mut peers = Peers::new(vec![me]).unwrap();
            if let Some(source) = source {
                peers.source = source;
            }
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let local = listener.local_addr().unwrap();
            for target in [local, format!("[::ffff:127.0.0.1]:{}", local.port()).parse().unwrap()] {
                let Ok(client) = TcpStream::connect(target) else {
                    // No IPv6 here.
                    continue;
                };
                let (_server, peer) = listener.accept().unwrap();
                let (peer, local) = (v4(peer), v4(local));
                assert_eq!(peers.user(peer, local).unwrap(), Some(me));
                assert_eq!(peers.identify(peer, local), Identity::Allowed(0));
                peers.allowed = vec![me.wrapping_add(1)];
                assert_eq!(peers.identify(peer, local), Identity::Refused(Some(me)));
                peers.allowed = vec![me, 0];
                drop(client);
                assert_eq!(peers.user(peer, local).unwrap(), None, "gone: nobody's, not root's");
                assert_eq!(peers.identify(peer, local), Identity::Refused(None));
            }
        }
    }

    #[test]
    fn that_there_is_no_such_socket_is_no_proof_that_the_kernel_can_be_asked() {
        let Ok(fd) = sys::socket_diagnosis() else { return };
        let nobody = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        let missing = ask(&fd, 1, nobody, nobody).map(|_| ()).unwrap_err();
        assert_eq!(missing.raw_os_error(), Some(libc::ENOENT));
        assert_eq!(
            Peers::new(vec![0]).unwrap().reads_tables(),
            finds_a_listener(&fd).is_err(),
            "as without the module"
        );
    }

    /// The uid of a file that this process has made.
    fn sys_uid() -> u32 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("Uid:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[test]
    fn a_table_line_is_read_as_the_kernel_writes_it() {
        let peer = "127.0.0.1:40000".parse().unwrap();
        let local = "127.0.0.1:8080".parse().unwrap();
        let line = |state: &str, inode: &str| {
            format!(
                "   4: 0100007F:9C40 0100007F:1F90 {state} 00000000:00000000 00:00000000 00000000  \
                 1000        0 {inode} 1 0000000000000000 20 4 0 10 -1"
            )
        };
        assert_eq!(user_in(line("01", "77").as_bytes(), peer, local), Some(Some(1000)));
        assert_eq!(user_in(line("01", "0").as_bytes(), peer, local), Some(None));
        assert_eq!(user_in(line("04", "77").as_bytes(), peer, local), Some(None));
        assert_eq!(user_in(line("01", "77").as_bytes(), local, peer), None);
        assert_eq!(user_in(b"  sl  local_address rem_address   st", peer, local), None);
        assert_eq!(user_in(b"", peer, local), None);
    }
}
