//! Which local user a loopback connection belongs to.
//!
//! The kernel is asked for the socket at the other end, the one whose own address is the client's.

use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use super::socket_owner::{Owner, Snapshot, SocketTable};

/// Reading the tables may take one part in so many of the loop's time.
const SHARE: u32 = 5;

/// Users who may connect.
pub struct Peers {
    allowed: Vec<u32>,
    table: SocketTable,
}

/// Whose a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// A user who may connect, by the position in the list.
    Allowed(usize),
    /// Another user, by id; `None` when the connection has none any more.
    Refused(Option<u32>),
}

/// Connections that have all been accepted before the first of them is judged: so one read of the
/// tables serves them all.
pub struct Batch<'a> {
    peers: &'a mut Peers,
    local: SocketAddr,
    snapshot: Option<Snapshot>,
    pause: Duration,
}

impl Peers {
    /// Opens what can be asked; later no file and no such socket can be opened any more.
    pub fn new(allowed: Vec<u32>) -> io::Result<Peers> {
        // Each user once: the position tells users apart.
        let mut users = Vec::new();
        for uid in allowed {
            if !users.contains(&uid) {
                users.push(uid);
            }
        }
        Ok(Peers { allowed: users, table: SocketTable::open()? })
    }

    /// The kernel is read through `/proc/net/tcp`.
    pub fn needs_tables(&self) -> bool {
        self.table.is_proc()
    }

    /// How many users may connect.
    pub fn count(&self) -> usize {
        self.allowed.len()
    }

    /// The user at a position of [`Identity::Allowed`].
    pub fn uid(&self, position: usize) -> Option<u32> {
        self.allowed.get(position).copied()
    }

    /// The descriptors of the tables, for the filter of system calls, which names them.
    pub fn tables(&self) -> [Option<RawFd>; 2] {
        self.table.descriptors()
    }

    /// Judges connections to `local` that have been accepted.
    pub fn batch(&mut self, local: SocketAddr) -> Batch<'_> {
        Batch { peers: self, local, snapshot: None, pause: Duration::ZERO }
    }
}

impl Batch<'_> {
    /// Whose the connection from `client` is: the user who holds the other end open. `is_connected`
    /// asks our own socket (getpeername(2)).
    pub fn identify(
        &mut self,
        client: SocketAddr,
        is_connected: impl FnOnce() -> bool,
    ) -> Identity {
        let user = self.user(client, is_connected);
        let mut allowed = self.peers.allowed.iter();
        match user.and_then(|user| allowed.position(|allowed| *allowed == user)) {
            Some(position) => Identity::Allowed(position),
            None => Identity::Refused(user),
        }
    }

    fn user(&mut self, client: SocketAddr, is_connected: impl FnOnce() -> bool) -> Option<u32> {
        let owner = self.owner(client).ok()?;
        // The kernel was asked for two addresses, not for this connection. When a client resets its
        // connection, another user's may be given its port. But as long as our own socket is
        // connected, no other connection can have the two addresses; so that is asked last.
        match owner {
            Owner::User(user) if is_connected() => Some(user),
            _ => None,
        }
    }

    /// How long after this batch the next one may be accepted, so that a flood of connections does
    /// not have the loop read tables all the time.
    pub fn pause(&self) -> Duration {
        self.pause
    }

    fn owner(&mut self, client: SocketAddr) -> io::Result<Owner> {
        if self.peers.needs_tables() && self.snapshot.is_none() {
            let begun = Instant::now();
            self.snapshot = self.peers.table.snapshot(self.local)?;
            self.pause = begun.elapsed() * SHARE;
        }
        match &self.snapshot {
            Some(snapshot) => Ok(snapshot.owner(client, self.local)),
            None => self.peers.table.owner(client, self.local),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::sys;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn the_user_at_the_other_end_is_found_in_both_ways_until_he_has_gone() {
        let me = sys::user_ids().unwrap().effective;
        for source in [SocketTable::open as fn() -> _, || Ok(SocketTable::of_proc())] {
            let mut peers = Peers { allowed: vec![], table: source().unwrap() };
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let local = listener.local_addr().unwrap();
            for target in [local, format!("[::ffff:127.0.0.1]:{}", local.port()).parse().unwrap()] {
                let Ok(client) = TcpStream::connect(target) else {
                    // No IPv6 here.
                    continue;
                };
                let (_server, peer) = listener.accept().unwrap();
                let identify = |peers: &mut Peers, is_connected: bool| {
                    peers.batch(local).identify(peer, || is_connected)
                };
                peers.allowed = vec![me.wrapping_add(1), me];
                assert_eq!(identify(&mut peers, true), Identity::Allowed(1));
                let before = identify(&mut peers, false);
                assert_eq!(before, Identity::Refused(None), "a connection of before");
                peers.allowed = vec![me.wrapping_add(1)];
                assert_eq!(identify(&mut peers, true), Identity::Refused(Some(me)));
                peers.allowed = vec![me, 0];
                drop(client);
                assert_eq!(identify(&mut peers, true), Identity::Refused(None), "gone: not root's");
            }
        }
    }
}
