//! Checks who holds the other end of an upstream connection that carries a secret in plaintext, if
//! that end is on this machine. On loopback, every local user can listen on a free port.

use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;

use super::overflow_uid::overflow_uid;
use super::socket_owner::{Owner, SocketTable};
use super::sys::{self, UserIds};

/// The other end of an upstream connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FarEnd {
    /// A process of a trusted user holds it.
    Trusted,
    /// The other end is not on this machine.
    Elsewhere,
    /// A process of another user holds it, or the kernel does not say whose process holds it.
    NotTrusted,
    /// The other end has closed the connection. No process will read the data.
    Closed,
}

/// The machines on which the other end may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// This machine only.
    Here,
    /// Other machines too.
    Anywhere,
}

/// The trusted users, and the kernel's table of sockets.
pub struct UpstreamUsers {
    reach: Reach,
    trusted: Vec<u32>,
    table: SocketTable,
}

impl UpstreamUsers {
    /// Trusts uid 0, the real and effective user of this process, the user that `--user` changes to
    /// (`becomes`), and the users of `--upstream-uid` (`named`). The overflow uid, which represents
    /// every unmapped user, is never trusted. Fails if neither netlink nor `/proc` can be opened.
    /// Call this before the thread is confined.
    pub fn new(reach: Reach, named: &[u32], becomes: Option<u32>) -> io::Result<UpstreamUsers> {
        let UserIds { real, effective } = sys::user_ids()?;
        let mut trusted = vec![0, real, effective];
        trusted.extend(becomes);
        trusted.extend(named);
        let unmapped = overflow_uid();
        trusted.retain(|uid| Some(*uid) != unmapped);
        trusted.sort_unstable();
        trusted.dedup();
        Ok(UpstreamUsers { reach, trusted, table: SocketTable::open()? })
    }

    /// The descriptors of the files of `/proc`. The seccomp filter allows pread(2) on these files
    /// only.
    pub fn tables(&self) -> [Option<RawFd>; 2] {
        self.table.descriptors()
    }

    /// The text for the start line.
    pub fn describe(&self) -> String {
        let uids: Vec<String> = self.trusted.iter().map(u32::to_string).collect();
        let way = if self.table.is_proc() { " (by /proc/net/tcp)" } else { "" };
        format!("a local upstream must be of uid {}{way}", uids.join(" or "))
    }

    /// Finds out who holds the other end of a connected socket of this process, by the socket's two
    /// addresses. Call this before the first byte is sent. The result stays true as long as the
    /// connection lasts: only the owner of that end can pass it on to another process.
    pub fn far_end(&mut self, local: SocketAddr, peer: SocketAddr) -> FarEnd {
        // The relay has connected to itself, to a port where no process listens.
        if local == peer {
            return FarEnd::Closed;
        }
        self.find_far_end(local, peer).unwrap_or(FarEnd::NotTrusted)
    }

    fn find_far_end(&mut self, local: SocketAddr, peer: SocketAddr) -> io::Result<FarEnd> {
        let mut owner = self.table.owner(peer, local)?;
        let mut listeners = Vec::new();
        if owner == Owner::Unaccepted {
            listeners = self.table.listeners(peer)?;
            // If the connection still waits to be accepted, its listener existed when the listeners
            // were read. A listener that is closed closes the connections of its queue.
            owner = self.table.owner(peer, local)?;
        }
        Ok(match owner {
            Owner::User(uid) => self.verdict(&[uid]),
            Owner::Unaccepted => self.verdict(&listeners),
            Owner::Closing => FarEnd::Closed,
            Owner::Missing if self.reach == Reach::Anywhere && !is_here(local, peer) => {
                FarEnd::Elsewhere
            }
            // The other end is in another network namespace, behind address translation, or gone.
            Owner::Missing => FarEnd::NotTrusted,
        })
    }

    /// Trusted if there is at least one user and every user is trusted.
    fn verdict(&self, uids: &[u32]) -> FarEnd {
        match uids {
            [_, ..] if uids.iter().all(|uid| self.trusted.contains(uid)) => FarEnd::Trusted,
            _ => FarEnd::NotTrusted,
        }
    }
}

/// Whether the addresses by themselves show that the other end is on this machine.
fn is_here(local: SocketAddr, peer: SocketAddr) -> bool {
    let (local, peer) = (local.ip().to_canonical(), peer.ip().to_canonical());
    local.is_loopback() || peer.is_loopback() || local == peer
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    fn users(trusted: &[u32], table: SocketTable) -> UpstreamUsers {
        UpstreamUsers { reach: Reach::Anywhere, trusted: trusted.to_vec(), table }
    }

    #[test]
    fn before_and_after_accept_the_same_user_is_found_by_both_ways() {
        let me = sys::user_ids().unwrap().effective;
        for source in [SocketTable::open as fn() -> _, || Ok(SocketTable::of_proc())] {
            for (trusted, want) in [(me, FarEnd::Trusted), (me.wrapping_add(1), FarEnd::NotTrusted)]
            {
                let mut users = users(&[trusted], source().unwrap());
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                let (local, peer) = (ours.local_addr().unwrap(), ours.peer_addr().unwrap());
                assert_eq!(users.far_end(local, peer), want);
                let (accepted, _) = listener.accept().unwrap();
                assert_eq!(users.far_end(local, peer), want);
                drop(accepted);
                assert_eq!(users.far_end(local, peer), FarEnd::Closed);
            }
        }
    }

    #[test]
    fn what_is_not_found_is_not_trusted_on_loopback_and_elsewhere_otherwise() {
        let mut users = users(&[0], SocketTable::open().unwrap());
        let mut ask =
            |local: &str, peer: &str| users.far_end(local.parse().unwrap(), peer.parse().unwrap());
        assert_eq!(ask("127.0.0.1:1", "127.0.0.1:2"), FarEnd::NotTrusted);
        assert_eq!(ask("[::1]:1", "[::1]:2"), FarEnd::NotTrusted);
        assert_eq!(ask("[::ffff:127.0.0.1]:1", "[::ffff:127.0.0.1]:2"), FarEnd::NotTrusted);
        assert_eq!(ask("192.0.2.1:1", "192.0.2.1:2"), FarEnd::NotTrusted);
        assert_eq!(ask("192.0.2.1:1", "192.0.2.2:2"), FarEnd::Elsewhere);
        assert_eq!(ask("127.0.0.1:1", "127.0.0.1:1"), FarEnd::Closed);
        users.reach = Reach::Here;
        let far = users.far_end("192.0.2.1:1".parse().unwrap(), "192.0.2.2:2".parse().unwrap());
        assert_eq!(far, FarEnd::NotTrusted);
    }

    #[test]
    fn every_listener_has_to_be_trusted_and_there_has_to_be_one() {
        let users = users(&[1, 2], SocketTable::open().unwrap());
        assert_eq!(users.verdict(&[]), FarEnd::NotTrusted);
        assert_eq!(users.verdict(&[1, 2]), FarEnd::Trusted);
        assert_eq!(users.verdict(&[1, 3]), FarEnd::NotTrusted);
    }
}
