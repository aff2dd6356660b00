//! The loop's end: asks the connector for connections and takes what comes.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use super::wire::{Outcome, REPLY, REQUEST, Reply, Request, SHOWN};
use crate::http1::response::UpstreamFault;
use crate::process::sys;
use crate::process::sys::fd_passing::{Passed, receive_message};

/// The way to the connector.
pub struct Link {
    fd: OwnedFd,
    /// Requests that found no room.
    unsent: RefCell<VecDeque<[u8; REQUEST]>>,
    gone: Cell<bool>,
}

/// The connector is gone, or says what means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectorFailed;

/// What came of a dial.
pub struct Dialed {
    /// Its number.
    pub id: u64,
    /// The connected socket, or why there is none.
    pub result: Result<std::net::TcpStream, UpstreamFault>,
    /// How long the addresses were waited for.
    pub lookup: Duration,
    /// How long the connection took after that.
    pub connect: Duration,
    /// The first addresses of the name.
    pub resolved: [Option<IpAddr>; SHOWN],
}

impl Link {
    /// By a connected socket, which does not block.
    pub fn new(fd: OwnedFd) -> Link {
        Link { fd, unsent: RefCell::default(), gone: Cell::new(false) }
    }

    /// Asks for a connection; no two that are waited for have the same number.
    pub fn dial(self: &Rc<Self>, id: u64) -> Result<Pending, UpstreamFault> {
        self.ask(Request::Dial(id));
        if self.gone.get() {
            return Err(UpstreamFault::ConnectorFailed);
        }
        Ok(Pending { link: self.clone(), id, waits: true })
    }

    /// What was connected to is not what was expected: the name is looked up again.
    pub fn doubt(&self) {
        self.ask(Request::Doubt);
    }

    fn ask(&self, request: Request) {
        if !self.gone.get() {
            self.unsent.borrow_mut().push_back(request.encode());
            self.flush();
        }
    }

    /// Sends what found no room before.
    pub fn flush(&self) {
        let mut unsent = self.unsent.borrow_mut();
        while let Some(request) = unsent.front() {
            match sys::send(self.fd.as_fd(), request) {
                Ok(_) => drop(unsent.pop_front()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.gone.set(true);
                    unsent.clear();
                }
            }
        }
    }

    /// Requests wait for room.
    pub fn has_unsent(&self) -> bool {
        !self.unsent.borrow().is_empty()
    }

    /// The next reply that is there.
    pub fn receive(&self) -> Result<Option<Dialed>, ConnectorFailed> {
        let result = self.receive_strictly();
        if result.is_err() {
            self.gone.set(true);
        }
        result
    }

    fn receive_strictly(&self) -> Result<Option<Dialed>, ConnectorFailed> {
        let mut message = [0; REPLY];
        let (n, passed) = loop {
            match receive_message(self.fd.as_fd(), &mut message) {
                Ok(received) => break received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(ConnectorFailed),
            }
        };
        let reply = Reply::decode(&message[..n]).map_err(|_| ConnectorFailed)?;
        let result = match (reply.outcome, passed) {
            (Outcome::Connected(_), Passed::Descriptor(fd)) => Ok(fd.into()),
            (Outcome::Connected(_), Passed::Lost) => Err(UpstreamFault::OutOfDescriptors),
            (Outcome::Failed(fault), Passed::Nothing) => Err(fault),
            // Told to somebody who has gone.
            (Outcome::Cancelled, Passed::Nothing) => Err(UpstreamFault::Unreachable),
            _ => return Err(ConnectorFailed),
        };
        let Reply { id, lookup, connect, resolved, .. } = reply;
        Ok(Some(Dialed { id, result, lookup, connect, resolved }))
    }
}

impl AsRawFd for Link {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// A connection that was asked for. Whoever lets go of it wants it no more.
pub struct Pending {
    link: Rc<Link>,
    id: u64,
    waits: bool,
}

impl Pending {
    /// The reply has come.
    pub fn settle(&mut self) {
        self.waits = false;
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.waits {
            self.link.ask(Request::Cancel(self.id));
        }
    }
}
