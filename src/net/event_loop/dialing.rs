//! Messages to and from the connector: the server-info file, connections that it has made or could
//! not make, and its end.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;

use mio::Token;

use super::EventLoop;
use crate::connector::link::{ConnectorFailed, Link};
use crate::http1::local_response::UpstreamFault;
use crate::net::slots::{Side, SlotId};
use crate::process::sys;

impl EventLoop {
    /// The link to the connector.
    pub fn link(&self) -> &Link {
        &self.state.origin.link
    }

    /// Writes the port to the `--server-info` file, and passes the file to the connector. The order
    /// matters: writing may replace the file by another one.
    pub fn publish(&mut self) -> io::Result<()> {
        let Some(info) = &mut self.server_info else {
            return Ok(());
        };
        info.publish()?;
        if info.is_file() {
            self.state.origin.link.remember(info.as_fd(), info.line());
        }
        Ok(())
    }

    /// Takes the replies of the connector, or notes that it has ended.
    pub(super) fn receive_replies(&mut self) {
        loop {
            match self.state.origin.link.receive() {
                Ok(None) => return,
                Ok(Some(dialed)) => match SlotId::of(Token(dialed.id as usize)) {
                    (id, Side::Upstream) => self.settle(id, dialed.result),
                    // The loop asks for upstream connections only.
                    (_, Side::Client) => {}
                },
                Err(failed) => return self.connector_failed(failed),
            }
        }
    }

    /// A dial has ended. If its request was cancelled meanwhile, the connection is reset, so that
    /// cancelled requests leave no ports in TIME_WAIT.
    fn settle(&mut self, id: SlotId, result: Result<(TcpStream, SocketAddr), UpstreamFault>) {
        match self.state.upstreams.get(id) {
            Some(up) if up.is_dialing() => {
                up.dialed(result);
                match up.owner() {
                    Some(owner) => self.queue_turn(owner),
                    None => self.unowned_ready.push(id),
                }
            }
            Some(_) | None => {
                if let Ok((unclaimed, _)) = result {
                    let _ = sys::reset_on_close(unclaimed.as_fd());
                }
            }
        }
    }

    /// The connector has ended, so no connection can be made any more. Clients that wait for one
    /// get a response that says so, and the relay drains.
    fn connector_failed(&mut self, failed: ConnectorFailed) {
        self.failed = Some(failed);
        for id in self.state.upstreams.ids() {
            self.settle(id, Err(UpstreamFault::ConnectorFailed));
        }
    }
}
