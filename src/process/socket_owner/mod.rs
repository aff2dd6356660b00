//! Finds the user whose process holds a TCP socket of this machine.
//!
//! [`SocketTable`] asks the kernel over netlink (`sock_diag`). Where netlink is refused, it reads
//! `/proc/net/tcp` and `tcp6` (`proc_tables`). Both sources describe a socket in the same terms
//! (`socket`). Both know only the sockets of one network namespace: the one in which they were
//! opened.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use super::sys;

mod proc_tables;
mod sock_diag;
mod socket;

pub use proc_tables::Snapshot;
pub use socket::Owner;

use proc_tables::{Column, each_row};
use sock_diag::{ask, has_diagnosis, list_listeners};
use socket::{KernelSocket, LISTEN, canonical};

/// The kernel's table of TCP sockets.
pub struct SocketTable {
    source: Source,
    /// The sequence number of the last netlink request. The kernel repeats it in its response.
    sequence: u32,
}

enum Source {
    /// A netlink socket.
    Netlink(OwnedFd),
    /// `/proc/net/tcp` and `tcp6`.
    Proc(Vec<File>),
}

impl SocketTable {
    /// Opens the netlink socket or the files of `/proc`. Fails if neither can be opened. A confined
    /// thread may open neither, so call this before the thread is confined.
    pub fn open() -> io::Result<SocketTable> {
        let source = match sys::socket_diagnosis() {
            Ok(fd) if has_diagnosis(&fd) => Source::Netlink(fd),
            _ => Source::proc()?,
        };
        Ok(SocketTable { source, sequence: 0 })
    }

    /// Whether `/proc/net/tcp` is read. Otherwise netlink is used.
    pub fn is_proc(&self) -> bool {
        matches!(self.source, Source::Proc(_))
    }

    /// The descriptors of the files of `/proc`. The seccomp filter allows pread(2) on these files
    /// only.
    pub fn descriptors(&self) -> [Option<RawFd>; 2] {
        match &self.source {
            Source::Netlink(_) => [None; 2],
            Source::Proc(tables) => [0, 1].map(|index| tables.get(index).map(AsRawFd::as_raw_fd)),
        }
    }

    /// Who holds the socket whose own address is `end` and whose other end is `other`.
    pub fn owner(&mut self, end: SocketAddr, other: SocketAddr) -> io::Result<Owner> {
        let (end, other) = (canonical(end), canonical(other));
        self.sequence = self.sequence.wrapping_add(1);
        match &self.source {
            Source::Netlink(fd) => match ask(fd, self.sequence, end, other) {
                Ok(socket) => Ok(socket.owner()),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Owner::Missing),
                Err(error) => Err(error),
            },
            Source::Proc(tables) => Ok(Snapshot::read(tables, other)?.owner(end, other)),
        }
    }

    /// The users of all listeners that could accept a connection to this address, one entry for
    /// each listener. A listener that is bound to a network interface counts for every interface.
    pub fn listeners(&mut self, at: SocketAddr) -> io::Result<Vec<u32>> {
        let at = canonical(at);
        let mut users = Vec::new();
        let mut note = |socket: KernelSocket| {
            if socket.state == LISTEN && socket.is_listening_at(at) {
                users.push(socket.user);
            }
        };
        match &self.source {
            Source::Netlink(fd) => {
                for family in [libc::AF_INET, libc::AF_INET6] {
                    self.sequence = self.sequence.wrapping_add(1);
                    list_listeners(fd, self.sequence, family as u8, at.port(), &mut note)?;
                }
            }
            Source::Proc(tables) => each_row(tables, Column::End, at.port(), note)?,
        }
        Ok(users)
    }

    /// All connections whose other end is `other`, from one read of the tables. `None` with
    /// netlink, which is asked about each connection separately.
    pub fn snapshot(&mut self, other: SocketAddr) -> io::Result<Option<Snapshot>> {
        match &self.source {
            Source::Netlink(_) => Ok(None),
            Source::Proc(tables) => Snapshot::read(tables, canonical(other)).map(Some),
        }
    }

    #[cfg(test)]
    pub(super) fn of_proc() -> SocketTable {
        SocketTable { source: Source::proc().unwrap(), sequence: 0 }
    }
}

impl Source {
    fn proc() -> io::Result<Source> {
        // Without IPv6, `/proc/net/tcp6` does not exist.
        let mut tables = vec![File::open("/proc/net/tcp")?];
        tables.extend(File::open("/proc/net/tcp6"));
        Ok(Source::Proc(tables))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    /// The uid of this process.
    fn me() -> u32 {
        sys::user_ids().unwrap().effective
    }

    /// Both sources, where the kernel has both.
    fn tables() -> [SocketTable; 2] {
        [SocketTable::open().unwrap(), SocketTable::of_proc()]
    }

    #[test]
    fn an_accepted_socket_is_its_users_and_one_that_waits_is_nobodys() {
        for mut table in tables() {
            for at in ["127.0.0.1:0", "[::1]:0", "[::]:0", "0.0.0.0:0"] {
                // This machine has no IPv6, so the IPv4 rows remain.
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
}
