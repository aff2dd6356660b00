//! The loop's end of the link: sends requests to the connector and receives its replies.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use super::wire::{DialOutcome, LinkRequest, REPLY, REQUEST, Reply, SERVER_INFO, SHOWN};
use crate::http1::local_response::UpstreamFault;
use crate::process::sys;
use crate::process::sys::fd_passing::{Passed, receive_message, send_message};

/// The link to the connector.
pub struct Link {
    fd: OwnedFd,
    /// Requests that the socket has not taken yet.
    unsent: RefCell<VecDeque<[u8; REQUEST]>>,
    /// Dials whose reply has not come. Each dial gets one reply, unless it is cancelled before it
    /// is sent.
    awaited: Cell<usize>,
    /// The connector has ended or violated the protocol. Nothing more is sent.
    has_ended: Cell<bool>,
}

/// The connector has ended, or has sent a message that violates the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectorFailed;

/// The result of a dial.
pub struct Dialed {
    /// The number of the dial.
    pub id: u64,
    /// The connected socket and its remote address, or the reason why there is none.
    pub result: Result<(TcpStream, SocketAddr), UpstreamFault>,
    /// How long the dial waited for the addresses, to the microsecond.
    pub lookup: Duration,
    /// How long the connection took after that, to the microsecond.
    pub connect: Duration,
    /// The first addresses of the host, in the order in which they are tried.
    pub resolved: [Option<IpAddr>; SHOWN],
}

impl Link {
    /// A link over a connected SOCK_SEQPACKET socket, which must be non-blocking.
    pub fn new(fd: OwnedFd) -> Link {
        Link { fd, unsent: RefCell::default(), awaited: Cell::new(0), has_ended: Cell::new(false) }
    }

    /// Passes the server-info file to the connector. When this process is gone, the connector
    /// empties the file if the file still holds this line; a killed process cannot do so itself.
    /// Call this only after the connector has reported. If the connector ended with this message
    /// unread, the kernel would reset the link and the report would be lost.
    pub fn remember(&self, file: BorrowedFd<'_>, line: &[u8]) {
        let message = [&[SERVER_INFO], line].concat();
        // The loop notices an ended connector when it runs.
        let _ = send_message(self.fd.as_fd(), &message, Some(file));
    }

    /// Asks for a connection. The number must differ from those of all other pending dials. Fails
    /// with [`UpstreamFault::ConnectorFailed`] once the connector has ended.
    pub fn dial(self: &Rc<Self>, id: u64) -> Result<Pending, UpstreamFault> {
        self.ask(LinkRequest::Dial(id));
        if self.has_ended.get() {
            return Err(UpstreamFault::ConnectorFailed);
        }
        self.awaited.set(self.awaited.get() + 1);
        Ok(Pending { link: self.clone(), id, waits: true })
    }

    /// Reports that a connection failed after it was received, or that connecting took too long.
    /// The name may lead elsewhere by now, so the next dial has it looked up again.
    pub fn doubt(&self) {
        self.ask(LinkRequest::Doubt);
    }

    fn ask(&self, request: LinkRequest) {
        if !self.has_ended.get() {
            self.enqueue(request);
            self.flush();
        }
    }

    /// Queues a request. The queue stays short even if the connector reads nothing. A dial has at
    /// most one entry: its cancellation removes an unsent dial, and is queued only for a sent one.
    /// There is at most one doubt.
    fn enqueue(&self, request: LinkRequest) {
        let mut unsent = self.unsent.borrow_mut();
        let withdrawn = match request {
            LinkRequest::Cancel(id) => Some(LinkRequest::Dial(id).encode()),
            LinkRequest::Doubt => Some(request.encode()),
            LinkRequest::Dial(_) => None,
        };
        if let Some(at) = unsent.iter().position(|other| Some(*other) == withdrawn) {
            unsent.remove(at);
            if request != LinkRequest::Doubt {
                // A dial that was never sent gets no reply.
                self.awaited.set(self.awaited.get().saturating_sub(1));
                return;
            }
        }
        unsent.push_back(request.encode());
    }

    /// Sends queued requests until the socket is full.
    pub fn flush(&self) {
        let mut unsent = self.unsent.borrow_mut();
        while let Some(request) = unsent.front() {
            match sys::send(self.fd.as_fd(), request) {
                Ok(_) => drop(unsent.pop_front()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.has_ended.set(true);
                    unsent.clear();
                }
            }
        }
    }

    /// Requests wait until the socket can take them.
    pub fn has_unsent(&self) -> bool {
        !self.unsent.borrow().is_empty()
    }

    /// The next reply, or `None` if none has arrived. Fails when the connector has ended or
    /// violated the protocol. No request is sent after that.
    pub fn receive(&self) -> Result<Option<Dialed>, ConnectorFailed> {
        let result = self.receive_strictly();
        if result.is_err() {
            self.has_ended.set(true);
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
        self.awaited.set(self.awaited.get().checked_sub(1).ok_or(ConnectorFailed)?);
        let result = match (reply.outcome, passed) {
            (DialOutcome::Connected(address), Passed::Descriptor(fd)) => {
                connected(fd, address)?.map(|stream| (stream, address))
            }
            (DialOutcome::Connected(_), Passed::Lost) => Err(UpstreamFault::OutOfDescriptors),
            (DialOutcome::Failed(fault), Passed::Nothing) => Err(fault),
            // The dial was cancelled, so its result is not used.
            (DialOutcome::Cancelled, Passed::Nothing) => Err(UpstreamFault::Unreachable),
            _ => return Err(ConnectorFailed),
        };
        let Reply { id, lookup, connect, resolved, .. } = reply;
        Ok(Some(Dialed { id, result, lookup, connect, resolved }))
    }
}

/// Accepts an internet socket whose remote address is this one (getpeername(2)). A socket that is
/// not connected is a failed dial. Any other descriptor is a protocol violation.
///
/// This does not prove which process is at the other end, nor even that the socket uses TCP. To
/// check that would take another system call and would not improve security. TLS authenticates the
/// upstream over any socket. For a connection in plaintext, the check of the far end finds only
/// sockets of TCP.
fn connected(
    fd: OwnedFd,
    address: SocketAddr,
) -> Result<Result<TcpStream, UpstreamFault>, ConnectorFailed> {
    let stream = TcpStream::from(fd);
    match stream.peer_addr() {
        Ok(peer) if (peer.ip(), peer.port()) == (address.ip(), address.port()) => Ok(Ok(stream)),
        // The connection was reset on the way, or the socket never was connected.
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

/// A dial under way. Dropping this cancels the dial, unless [`Pending::settle`] was called.
pub struct Pending {
    link: Rc<Link>,
    id: u64,
    waits: bool,
}

impl Pending {
    /// Records that the reply has come.
    pub fn settle(&mut self) {
        self.waits = false;
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.waits {
            self.link.ask(LinkRequest::Cancel(self.id));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::process::sys::fd_passing::{message_pair, send_message};

    /// A link and the connector's end of the link.
    fn link() -> (Rc<Link>, OwnedFd) {
        let (ours, theirs) = message_pair().unwrap();
        (Rc::new(Link::new(ours)), theirs)
    }

    fn reply(id: u64, outcome: DialOutcome) -> [u8; REPLY] {
        let resolved = [None; SHOWN];
        Reply { id, outcome, lookup: Duration::ZERO, connect: Duration::ZERO, resolved }.encode()
    }

    /// Receives a reply that claims a connection to `address` and carries `fd`. Returns whether the
    /// dial succeeded.
    fn received(fd: Option<OwnedFd>, address: SocketAddr) -> Result<Option<bool>, ConnectorFailed> {
        let (link, connector) = link();
        let mut pending = link.dial(7).unwrap_or_else(|_| panic!("the link stands"));
        pending.settle();
        let message = reply(7, DialOutcome::Connected(address));
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
        // A socket that is not connected fails the dial, as does a connection that was reset.
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
        let failed = reply(7, DialOutcome::Failed(UpstreamFault::Refused));
        for (message, file) in [
            (failed.to_vec(), Some(file())),
            (reply(7, DialOutcome::Cancelled).to_vec(), Some(file())),
            (failed[1..].to_vec(), None),
            (vec![0; REPLY + 1], None),
            (vec![0; REQUEST], Some(file())),
        ] {
            let (link, connector) = link();
            let _pending = link.dial(7);
            send_message(connector.as_fd(), &message, file.as_ref().map(|f| f.as_fd())).unwrap();
            assert!(link.receive().is_err());
            // No request is sent after that.
            assert!(matches!(link.dial(8), Err(UpstreamFault::ConnectorFailed)));
        }
    }

    #[test]
    fn more_replies_than_dials_are_the_end() {
        let (link, connector) = link();
        let message = reply(7, DialOutcome::Failed(UpstreamFault::Refused));
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
            match LinkRequest::decode(&message).unwrap() {
                LinkRequest::Dial(_) => dials += 1,
                LinkRequest::Cancel(_) => cancels += 1,
                LinkRequest::Doubt => {}
            }
            link.flush();
        }
        assert_eq!((cancels, link.has_unsent()), (dials, false));
        assert_eq!(link.awaited.get(), dials, "what was withdrawn gets no reply");
    }
}
