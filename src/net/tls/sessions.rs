//! The TLS sessions with the upstream that later connections can resume.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;

use crate::net::limits::TICKETS;

/// The state that is needed to resume sessions with the one upstream.
#[derive(Default)]
pub(super) struct Sessions(Mutex<ResumptionState>);

#[derive(Default)]
struct ResumptionState {
    tls12: Option<Tls12ClientSessionValue>,
    /// TLS 1.3 session tickets, oldest first; at most [`TICKETS`].
    tickets: VecDeque<Tls13ClientSessionValue>,
}

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, ResumptionState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sessions contain secrets, so the output shows none of them.
impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sessions")
    }
}

impl ClientSessionStore for Sessions {
    /// No group is remembered. Otherwise one forged ServerHello could make every later connection
    /// begin with a share that a quantum computer can break.
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, session: Tls12ClientSessionValue) {
        self.lock().tls12 = Some(session);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.lock().tls12.clone()
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.lock().tls12 = None;
    }

    fn insert_tls13_ticket(&self, _: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        let tickets = &mut self.lock().tickets;
        if tickets.len() == TICKETS {
            tickets.pop_front();
        }
        tickets.push_back(ticket);
    }

    /// Takes the newest ticket. Each ticket is used once, so that an observer cannot link the
    /// connections of one client by a ticket (RFC 8446 appendix C.4).
    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.lock().tickets.pop_back()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::version::TLS13;

    use super::*;
    use crate::net::tls::testing::{connected, connector, decrypt, sent, server};

    #[test]
    fn as_many_tickets_as_the_bound_are_kept_and_each_is_used_once() {
        let connector = connector();
        let mut config = server(&[&TLS13], TICKETS + 1);
        let generous = Arc::new(config.clone());
        config.send_tls13_tickets = 0;
        let sparing = Arc::new(config);
        let (mut tls, mut server) = connected(&connector, &generous);
        assert!(!tls.is_resumed());
        decrypt(&mut tls, &sent(&mut server));
        for number in 0..TICKETS {
            assert!(connected(&connector, &sparing).0.is_resumed(), "connection {number}");
        }
        assert!(!connected(&connector, &sparing).0.is_resumed());
    }
}
