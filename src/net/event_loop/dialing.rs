//! What the connector is told and says: the server-info file; connections that it has made or could
//! not make, and its end.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;

use mio::Token;

use super::EventLoop;
use crate::connector::link::{ConnectorFailed, Link};
use crate::http1::local_response::UpstreamFault;
use crate::net::slots::{Key, Side};
use crate::process::sys;

impl EventLoop {
    /// The way to the connector.
    pub fn link(&self) -> &Link {
        &self.state.origin.link
    }

    /// Tells by `--server-info` where the relay listens. The connector knows the file from then on:
    /// not earlier, since it may become another one.
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

    /// The connector has replied, or is gone.
    pub(super) fn dialed(&mut self) {
        loop {
            match self.state.origin.link.receive() {
                Ok(None) => return,
                Ok(Some(dialed)) => {
                    if let (key, Side::Upstream) = Key::of(Token(dialed.id as usize)) {
                        self.settle(key, dialed.result);
                    }
                }
                Err(failed) => return self.connector_failed(failed),
            }
        }
    }

    /// A dial has ended. A connection that no session and no pool waits for any more is reset, so
    /// that cancelled requests leave no ports in TIME_WAIT.
    fn settle(&mut self, key: Key, result: Result<(TcpStream, SocketAddr), UpstreamFault>) {
        match self.state.upstreams.get(key) {
            Some(up) if up.is_dialing() => {
                up.dialed(result);
                match up.owner {
                    Some(owner) => self.wants_turn(owner),
                    None => self.unowned_ready.push(key),
                }
            }
            _ => {
                if let Ok((unclaimed, _)) = result {
                    let _ = sys::reset_on_close(unclaimed.as_fd());
                }
            }
        }
    }

    /// Without a connector there is nothing to wait for: the clients that wait are told, and the
    /// relay ends when the exchanges under way have.
    fn connector_failed(&mut self, failed: ConnectorFailed) {
        self.failed = Some(failed);
        for key in self.state.upstreams.keys() {
            self.settle(key, Err(UpstreamFault::ConnectorFailed));
        }
    }
}
