//! Client certificates: there are none, but a server that asks for one is remembered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, SignatureScheme};

/// Notes whether the upstream has asked for a client certificate.
#[derive(Debug, Default)]
pub struct ClientAuth {
    was_asked: AtomicBool,
}

impl ClientAuth {
    /// The upstream has asked for a client certificate, on this connection or an earlier one.
    pub fn was_asked(&self) -> bool {
        self.was_asked.load(Ordering::Relaxed)
    }

    /// This alert says that the upstream wants a client certificate. TLS 1.3 has an alert of its
    /// own for that (RFC 8446 §6.2); others may mean it, but only from a server that has asked.
    pub fn is_wanted_by(&self, alert: AlertDescription) -> bool {
        match alert {
            AlertDescription::CertificateRequired => true,
            AlertDescription::HandshakeFailure
            | AlertDescription::NoCertificate
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::AccessDenied => self.was_asked(),
            _ => false,
        }
    }
}

impl ResolvesClientCert for ClientAuth {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.was_asked.store(true, Ordering::Relaxed);
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}
