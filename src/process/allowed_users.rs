//! Finds the local user of a loopback connection, and decides whether this user may connect
//! (`--allow-uid`).
//!
//! The kernel says who holds the client's end: the socket whose own address is the client's
//! address.

use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use super::socket_owner::{Owner, Snapshot, SocketTable};

/// The pause after a read of the tables, as a multiple of the time that the read took. Reading thus
/// takes at most a sixth of the event loop's time.
const PAUSE_FACTOR: u32 = 5;

/// The users who may connect, and the kernel's table of sockets.
pub struct AllowedUsers {
    allowed: Vec<u32>,
    table: SocketTable,
}

/// The user of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// A user who may connect, by position in the list of allowed users.
    Allowed(usize),
    /// The uid of a user who may not connect. `None` when the user is not known, for example
    /// because the client has closed the connection.
    Refused(Option<u32>),
}

/// A batch of connections. All of them are accepted before the first one is identified, so that one
/// read of the tables serves the whole batch.
pub struct Batch<'a> {
    users: &'a mut AllowedUsers,
    local: SocketAddr,
    snapshot: Option<Snapshot>,
    pause: Duration,
}

impl AllowedUsers {
    /// Opens the kernel's table of sockets. Fails if neither netlink nor `/proc` can be opened. A
    /// confined thread can open neither, so call this before the thread is confined.
    pub fn new(allowed: Vec<u32>) -> io::Result<AllowedUsers> {
        // Each user is listed once, because a position identifies a user.
        let mut unique = Vec::new();
        for uid in allowed {
            if !unique.contains(&uid) {
                unique.push(uid);
            }
        }
        Ok(AllowedUsers { allowed: unique, table: SocketTable::open()? })
    }

    /// Whether `/proc/net/tcp` is read. Otherwise netlink is used.
    pub fn needs_tables(&self) -> bool {
        self.table.is_proc()
    }

    /// The number of users who may connect.
    pub fn count(&self) -> usize {
        self.allowed.len()
    }

    /// The uid at a position of [`Identity::Allowed`].
    pub fn uid(&self, position: usize) -> Option<u32> {
        self.allowed.get(position).copied()
    }

    /// The descriptors of the files of `/proc`. The seccomp filter allows pread(2) on these files
    /// only.
    pub fn tables(&self) -> [Option<RawFd>; 2] {
        self.table.descriptors()
    }

    /// Begins a batch of accepted connections to `local`.
    pub fn batch(&mut self, local: SocketAddr) -> Batch<'_> {
        Batch { users: self, local, snapshot: None, pause: Duration::ZERO }
    }
}

impl Batch<'_> {
    /// Identifies the user who holds the client's end of the connection from `client`.
    /// `is_connected` says whether this process's own socket is still connected (getpeername(2)).
    pub fn identify(
        &mut self,
        client: SocketAddr,
        is_connected: impl FnOnce() -> bool,
    ) -> Identity {
        let user = self.user(client, is_connected);
        let mut allowed = self.users.allowed.iter();
        match user.and_then(|user| allowed.position(|allowed| *allowed == user)) {
            Some(position) => Identity::Allowed(position),
            None => Identity::Refused(user),
        }
    }

    fn user(&mut self, client: SocketAddr, is_connected: impl FnOnce() -> bool) -> Option<u32> {
        let owner = self.owner(client).ok()?;
        // The kernel reports the owner for two addresses, not for this connection. When a client
        // resets its connection, the kernel may give the port to another user. While this process's
        // own socket is connected, no other connection can have the same two addresses. So
        // `is_connected` is called last.
        match owner {
            Owner::User(user) if is_connected() => Some(user),
            _ => None,
        }
    }

    /// The time to wait before the next batch is accepted. Without this pause, a flood of
    /// connections would keep the loop busy with reading the tables.
    pub fn pause(&self) -> Duration {
        self.pause
    }

    fn owner(&mut self, client: SocketAddr) -> io::Result<Owner> {
        if self.users.needs_tables() && self.snapshot.is_none() {
            let begun = Instant::now();
            self.snapshot = self.users.table.snapshot(self.local)?;
            self.pause = begun.elapsed() * PAUSE_FACTOR;
        }
        match &self.snapshot {
            Some(snapshot) => Ok(snapshot.owner(client, self.local)),
            None => self.users.table.owner(client, self.local),
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
            let mut users = AllowedUsers { allowed: vec![], table: source().unwrap() };
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let local = listener.local_addr().unwrap();
            for target in [local, format!("[::ffff:127.0.0.1]:{}", local.port()).parse().unwrap()] {
                let Ok(client) = TcpStream::connect(target) else {
                    // This machine has no IPv6.
                    continue;
                };
                let (_server, peer) = listener.accept().unwrap();
                let identify = |users: &mut AllowedUsers, is_connected: bool| {
                    users.batch(local).identify(peer, || is_connected)
                };
                users.allowed = vec![me.wrapping_add(1), me];
                assert_eq!(identify(&mut users, true), Identity::Allowed(1));
                let before = identify(&mut users, false);
                assert_eq!(before, Identity::Refused(None), "a connection of before");
                users.allowed = vec![me.wrapping_add(1)];
                assert_eq!(identify(&mut users, true), Identity::Refused(Some(me)));
                users.allowed = vec![me, 0];
                drop(client);
                assert_eq!(identify(&mut users, true), Identity::Refused(None), "gone: not root's");
            }
        }
    }
}
