//! Checks the certificate of the upstream, and records it for `--check`.

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

/// Checks a certificate like `WebPkiServerVerifier` of rustls, which is not used because it brings
/// in the code for revocation lists. There is one difference: a CA certificate that the upstream
/// shows as its own is accepted if it is byte for byte one of the certificates in the file of
/// roots. Its name and its validity are checked like those of any other certificate.
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
    /// Trusts the certificates that `roots` sign, and exactly the certificates in `given`.
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
    /// its validity, and checks its name afterwards. The certificate is accepted if `given`
    /// contains it. For another self-issued certificate the refusal says that the issuer is unknown
    /// or that the name is wrong. For any other certificate the result is `error`.
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
        // `given` contains only certificates that name the upstream. If this certificate is a root
        // but not among them, its name may be the reason.
        let is_root = self.roots.roots.iter().any(|root| *root.subject == *parsed.subject());
        if is_root && !is_for(certificate, name) {
            return Err(CertificateError::NotValidForName.into());
        }
        Err(CertificateError::UnknownIssuer.into())
    }
}

/// [`ServerCertVerifier`] requires [`fmt::Debug`].
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

/// The error says that the certificate belongs to a CA. webpki checks the validity before that, so
/// the certificate is valid at this time. Later checks have not been made.
fn is_ca(error: &Error) -> bool {
    let Error::InvalidCertificate(CertificateError::Other(OtherError(error))) = error else {
        return false;
    };
    matches!(error.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
}

/// The certificate is well-formed and names this host.
pub(super) fn is_for(certificate: &CertificateDer<'_>, name: &ServerName<'_>) -> bool {
    ParsedCertificate::try_from(certificate)
        .is_ok_and(|certificate| verify_server_name(&certificate, name).is_ok())
}
