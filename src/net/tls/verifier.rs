//! Checks the upstream's certificate, and records it for `--check`.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
};
use webpki::EndEntityCert;

use super::provider::{SIGNATURES, verify_by_pss_key};

/// Checks a certificate as rustls' own `WebPkiServerVerifier` does; that one would bring in the
/// code for revocation lists. There is one exception: a CA certificate that the upstream shows as
/// its own is accepted if it is byte for byte one of the certificates in the file of roots. Its
/// name and its validity are checked like those of any other certificate.
pub struct RecordingVerifier {
    roots: RootCertStore,
    /// The certificates from the file of roots that name the upstream.
    given: Vec<CertificateDer<'static>>,
    /// The certificate that was shown last, if the verifier records it.
    shown: Option<Mutex<Vec<u8>>>,
}

/// Whether a verifier records the certificate that the upstream shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recording {
    /// For `--check`.
    On,
    /// For a relay that serves requests.
    Off,
}

impl RecordingVerifier {
    /// Trusts what `roots` sign and, as they are, the certificates in `given`.
    pub fn new(
        roots: RootCertStore,
        given: Vec<CertificateDer<'static>>,
        recording: Recording,
    ) -> RecordingVerifier {
        let shown = (recording == Recording::On).then(Mutex::default);
        RecordingVerifier { roots, given, shown }
    }

    /// The certificate that was shown last, in DER; `None` if there was none or recording is off.
    pub fn certificate(&self) -> Option<MutexGuard<'_, Vec<u8>>> {
        let shown = self.shown.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        Some(shown).filter(|certificate| !certificate.is_empty())
    }

    /// Decides about a CA certificate that the upstream shows as its own. The caller has checked
    /// its validity, and checks its name afterwards. A refusal says what `error` cannot: that the
    /// issuer is unknown, or that the name is wrong.
    fn check_ca(
        &self,
        certificate: &CertificateDer<'_>,
        name: &ServerName<'_>,
        error: Error,
    ) -> Result<(), Error> {
        if self.given.iter().any(|given| given == certificate) {
            return Ok(());
        }
        let Ok(parsed) = EndEntityCert::try_from(certificate) else {
            return Err(error);
        };
        if parsed.issuer() != parsed.subject() {
            return Err(error);
        }
        // `given` holds only certificates that name the upstream. A root that is not among them may
        // be here because its name does not match.
        let is_root = self.roots.roots.iter().any(|root| *root.subject == *parsed.subject());
        if is_root && !is_for(certificate, name) {
            return Err(CertificateError::NotValidForName.into());
        }
        Err(CertificateError::UnknownIssuer.into())
    }
}

/// The trait below requires it.
impl fmt::Debug for RecordingVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecordingVerifier")
    }
}

impl ServerCertVerifier for RecordingVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(shown) = &self.shown {
            *shown.lock().unwrap_or_else(PoisonError::into_inner) = certificate.to_vec();
        }
        let parsed = ParsedCertificate::try_from(certificate)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            SIGNATURES.all,
        )
        .or_else(|error| match is_ca(&error) {
            true => self.check_ca(certificate, name, error),
            false => Err(error),
        })?;
        verify_server_name(&parsed, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_by_pss_key(message, certificate, signature)
            .unwrap_or_else(|| verify_tls12_signature(message, certificate, signature, &SIGNATURES))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_by_pss_key(message, certificate, signature)
            .unwrap_or_else(|| verify_tls13_signature(message, certificate, signature, &SIGNATURES))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SIGNATURES.supported_schemes()
    }
}

/// The only fault found is that the certificate belongs to a CA. webpki checks the validity first,
/// so the validity has been found good; nothing after it has been checked.
fn is_ca(error: &Error) -> bool {
    let Error::InvalidCertificate(CertificateError::Other(OtherError(error))) = error else {
        return false;
    };
    matches!(error.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
}

/// The certificate names this host.
pub fn is_for(certificate: &CertificateDer<'_>, name: &ServerName<'_>) -> bool {
    ParsedCertificate::try_from(certificate)
        .is_ok_and(|certificate| verify_server_name(&certificate, name).is_ok())
}
