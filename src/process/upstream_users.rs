//! Who may hold the other end of a connection over which a secret goes in the clear, when that end
//! is on this machine. On loopback every local user can listen on a port that is free.

use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;

use super::overflow_uid::overflow_uid;
use super::socket_owner::{Owner, SocketTable};
use super::sys::{self, UserIds};

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FarEnd {
    /// A process of a trusted user holds it.
    Trusted,
    /// It is not on this machine.
    Elsewhere,
    /// A process of another user holds it, or the kernel does not say whose process does.
    NotTrusted,
    /// The other end has closed the connection: no process will read what is sent.
    Closed,
}

/// Where the other end may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// On this machine only.
    Here,
    /// On other machines too.
    Anywhere,
}

/// The users that are trusted, and the kernel's table of sockets.
pub struct UpstreamUsers {
    reach: Reach,
    trusted: Vec<u32>,
    table: SocketTable,
}

impl UpstreamUsers {
    /// Trusts uid 0, the users that this process has, `becomes` (of `--user`) and those that are
    /// `named`. The uid that stands for all users who are not mapped is never trusted. Call it
    /// before the thread is confined.
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

    /// The descriptors of the files of `/proc`: the seccomp filter allows reads of these alone.
    pub fn tables(&self) -> [Option<RawFd>; 2] {
        self.table.descriptors()
    }

    /// For the start line.
    pub fn describe(&self) -> String {
        let uids: Vec<String> = self.trusted.iter().map(u32::to_string).collect();
        let way = if self.table.is_proc() { " (by /proc/net/tcp)" } else { "" };
        format!("a local upstream must be of uid {}{way}", uids.join(" or "))
    }

    /// Judges who holds the other end of a connected socket of ours, by the socket's two addresses.
    /// Ask before the first byte is sent. The verdict stays true as long as the connection lasts:
    /// only its owner can pass that end on to another process.
    pub fn far_end(&mut self, local: SocketAddr, peer: SocketAddr) -> FarEnd {
        // A connection of the relay with itself, to a port where nothing listens.
        if local == peer {
            return FarEnd::Closed;
        }
        self.judge(local, peer).unwrap_or(FarEnd::NotTrusted)
    }

    fn judge(&mut self, local: SocketAddr, peer: SocketAddr) -> io::Result<FarEnd> {
        let mut owner = self.table.owner(peer, local)?;
        let mut listeners = Vec::new();
        if owner == Owner::Unaccepted {
            listeners = self.table.listeners(peer)?;
            // If the connection still waits, then its listener was there in between: a listener
            // that is closed takes the connections of its queue with it.
            owner = self.table.owner(peer, local)?;
        }
        Ok(match owner {
            Owner::User(uid) => self.verdict(&[uid]),
            Owner::Unaccepted => self.verdict(&listeners),
            Owner::Closing => FarEnd::Closed,
            Owner::Missing if self.reach == Reach::Anywhere && !is_here(local, peer) => {
                FarEnd::Elsewhere
            }
            // In another network namespace, behind address translation, or gone.
            Owner::Missing => FarEnd::NotTrusted,
        })
    }

    /// Trusted if there is a user and all of them are trusted.
    fn verdict(&self, uids: &[u32]) -> FarEnd {
        match uids {
            [_, ..] if uids.iter().all(|uid| self.trusted.contains(uid)) => FarEnd::Trusted,
            _ => FarEnd::NotTrusted,
        }
    }
}

/// Whether the addresses alone show that the other end is on this machine.
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
