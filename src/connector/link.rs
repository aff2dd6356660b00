//! The loop's end: asks the connector for connections and takes what comes.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use super::wire::{Outcome, REPLY, REQUEST, Reply, Request, SERVER_INFO, SHOWN};
use crate::http1::local_response::UpstreamFault;
use crate::process::sys;
use crate::process::sys::fd_passing::{Passed, receive_message, send_message};

/// The way to the connector.
pub struct Link {
    fd: OwnedFd,
    /// Requests that found no room.
    unsent: RefCell<VecDeque<[u8; REQUEST]>>,
    /// Dials without a reply. Each gets one.
    open: Cell<usize>,
    gone: Cell<bool>,
}

/// The connector is gone, or says what means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectorFailed;

/// What came of a dial.
pub struct Dialed {
    /// Its number.
    pub id: u64,
    /// The connected socket and whom it is connected to, or why there is none.
    pub result: Result<(TcpStream, SocketAddr), UpstreamFault>,
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
        Link { fd, unsent: RefCell::default(), open: Cell::new(0), gone: Cell::new(false) }
    }

    /// Has the connector empty the server-info file, if that still holds this line, when this
    /// process is gone: one that was killed cannot do so itself. Not before it has reported: a
    /// message that it has not read when it ends would take its report away.
    pub fn remember(&self, file: BorrowedFd<'_>, line: &[u8]) {
        let message = [&[SERVER_INFO], line].concat();
        // A connector that is gone shows that when the loop runs.
        let _ = send_message(self.fd.as_fd(), &message, Some(file));
    }

    /// Asks for a connection; no two that are waited for have the same number.
    pub fn dial(self: &Rc<Self>, id: u64) -> Result<Pending, UpstreamFault> {
        self.ask(Request::Dial(id));
        if self.gone.get() {
            return Err(UpstreamFault::ConnectorFailed);
        }
        self.open.set(self.open.get() + 1);
        Ok(Pending { link: self.clone(), id, waits: true })
    }

    /// What was connected to is not what was expected: the name is looked up again.
    pub fn doubt(&self) {
        self.ask(Request::Doubt);
    }

    fn ask(&self, request: Request) {
        if !self.gone.get() {
            self.enqueue(request);
            self.flush();
        }
    }

    /// No longer than there are connections that wait, however long the connector takes nothing.
    fn enqueue(&self, request: Request) {
        let mut unsent = self.unsent.borrow_mut();
        let withdrawn = match request {
            Request::Cancel(id) => Some(Request::Dial(id).encode()),
            Request::Doubt => Some(request.encode()),
            Request::Dial(_) => None,
        };
        if let Some(at) = unsent.iter().position(|other| Some(*other) == withdrawn) {
            unsent.remove(at);
            if request != Request::Doubt {
                // What was never asked for gets no reply.
                self.open.set(self.open.get().saturating_sub(1));
                return;
            }
        }
        unsent.push_back(request.encode());
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
        self.open.set(self.open.get().checked_sub(1).ok_or(ConnectorFailed)?);
        let result = match (reply.outcome, passed) {
            (Outcome::Connected(address), Passed::Descriptor(fd)) => {
                connected(fd, address)?.map(|stream| (stream, address))
            }
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

/// Takes a socket that leads to this address, and nothing else that a descriptor may be.
fn connected(
    fd: OwnedFd,
    address: SocketAddr,
) -> Result<Result<TcpStream, UpstreamFault>, ConnectorFailed> {
    let stream = TcpStream::from(fd);
    match stream.peer_addr() {
        Ok(peer) if (peer.ip(), peer.port()) == (address.ip(), address.port()) => Ok(Ok(stream)),
        // It has been reset on the way, or never was connected.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => {
            Ok(Err(UpstreamFault::Unreachable))
        }
        _ => Err(ConnectorFailed),
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Link {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// A connection that was asked for. Dropping it withdraws the request.
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

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::process::sys::fd_passing::{message_pair, send_message};

    /// A link, and the connector's end of it.
    fn link() -> (Rc<Link>, OwnedFd) {
        let (ours, theirs) = message_pair().unwrap();
        (Rc::new(Link::new(ours)), theirs)
    }

    fn reply(id: u64, outcome: Outcome) -> [u8; REPLY] {
        let resolved = [None; SHOWN];
        Reply { id, outcome, lookup: Duration::ZERO, connect: Duration::ZERO, resolved }.encode()
    }

    /// What the loop makes of a connection that the connector says leads there and that is this.
    fn received(fd: Option<OwnedFd>, address: SocketAddr) -> Result<Option<bool>, ConnectorFailed> {
        let (link, connector) = link();
        let mut pending = link.dial(7).unwrap_or_else(|_| panic!("the link stands"));
        pending.settle();
        let message = reply(7, Outcome::Connected(address));
        send_message(connector.as_fd(), &message, fd.as_ref().map(|fd| fd.as_fd())).unwrap();
        Ok(link.receive()?.map(|dialed| dialed.result.is_ok()))
    }

    #[test]
    fn a_descriptor_is_a_connection_to_where_it_is_said_to_lead_or_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connection = || OwnedFd::from(TcpStream::connect(address).unwrap());
        assert_eq!(received(Some(connection()), address), Ok(Some(true)));
        let other = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(received(Some(connection()), other), Err(ConnectorFailed));
        assert_eq!(received(None, address), Err(ConnectorFailed));
        // Refused, as is a connection that has been reset.
        assert_eq!(received(Some(listener.into()), address), Ok(Some(false)));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(received(Some(file.into()), address), Err(ConnectorFailed));
        let (pipe, _writer) = io::pipe().unwrap();
        assert_eq!(received(Some(pipe.into()), address), Err(ConnectorFailed));
        let (unix, _other) = UnixStream::pair().unwrap();
        assert_eq!(received(Some(unix.into()), address), Err(ConnectorFailed));
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        udp.connect(other).unwrap();
        assert_eq!(received(Some(udp.into()), address), Err(ConnectorFailed));
    }

    #[test]
    fn a_descriptor_beside_a_failure_and_a_message_of_another_kind_are_the_end() {
        let file = || std::fs::File::open("/dev/null").unwrap();
        let failed = reply(7, Outcome::Failed(UpstreamFault::Refused));
        for (message, file) in [
            (failed.to_vec(), Some(file())),
            (reply(7, Outcome::Cancelled).to_vec(), Some(file())),
            (failed[1..].to_vec(), None),
            (vec![0; REPLY + 1], None),
            (vec![0; REQUEST], Some(file())),
        ] {
            let (link, connector) = link();
            let _pending = link.dial(7);
            send_message(connector.as_fd(), &message, file.as_ref().map(|f| f.as_fd())).unwrap();
            assert!(link.receive().is_err());
            // From then on nothing is asked.
            assert!(matches!(link.dial(8), Err(UpstreamFault::ConnectorFailed)));
        }
    }

    #[test]
    fn more_replies_than_dials_are_the_end() {
        let (link, connector) = link();
        let message = reply(7, Outcome::Failed(UpstreamFault::Refused));
        let _pending = link.dial(7);
        for _ in 0..2 {
            send_message(connector.as_fd(), &message, None).unwrap();
        }
        assert!(link.receive().unwrap_or(None).is_some());
        assert!(link.receive().is_err());
    }

    #[test]
    fn a_connector_that_takes_nothing_is_asked_for_no_more_than_is_waited_for() {
        let (link, theirs) = link();
        let mut waiting = Vec::new();
        while !link.has_unsent() {
            waiting.push(link.dial(waiting.len() as u64).unwrap());
        }
        let full = waiting.len() as u64;
        for id in full..full + 1000 {
            drop(link.dial(id).unwrap());
            link.doubt();
        }
        assert_eq!(link.unsent.borrow().len(), 2, "the last dial and one doubt");
        drop(waiting);
        let mut message = [0; REQUEST];
        let (mut dials, mut cancels) = (0, 0);
        while receive_message(theirs.as_fd(), &mut message).is_ok_and(|(n, _)| n > 0) {
            match Request::decode(&message).unwrap() {
                Request::Dial(_) => dials += 1,
                Request::Cancel(_) => cancels += 1,
                Request::Doubt => {}
            }
            link.flush();
        }
        assert_eq!((cancels, link.has_unsent()), (dials, false));
        assert_eq!(link.open.get(), dials, "what was withdrawn gets no reply");
    }
}
