//! Client certificates. The relay has none, but remembers whether the upstream asks for one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, SignatureScheme};

/// Records whether the upstream has asked for a client certificate, and offers none.
#[derive(Debug, Default)]
pub(super) struct ClientAuth {
    was_asked: AtomicBool,
}

impl ClientAuth {
    /// The upstream has asked for a client certificate, on this connection or an earlier one.
    pub(super) fn was_asked(&self) -> bool {
        self.was_asked.load(Ordering::Relaxed)
    }

    /// This alert means that the upstream requires a client certificate. TLS 1.3 has the alert
    /// certificate_required for that (RFC 8446 §6.2). Some other alerts may mean the same, but only
    /// from a server that has asked for a certificate.
    pub(super) fn is_wanted_by(&self, alert: AlertDescription) -> bool {
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
