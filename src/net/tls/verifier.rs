//! Judges the upstream's certificate, and remembers it for `--check`.

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

/// Judges as the library's own verifier does, which cannot be had without the code that reads
/// revocation lists, with one exception: a certificate that is itself one of the given roots, byte
/// for byte, holds although it is a CA's. Its name and its validity are checked as ever.
pub struct Verifier {
    roots: RootCertStore,
    /// The given roots that name the upstream.
    given: Vec<CertificateDer<'static>>,
    /// What was shown last, where that is recorded.
    shown: Option<Mutex<Vec<u8>>>,
}

/// Whether a verifier remembers the certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recording {
    /// For `--check`.
    On,
    /// While requests are served.
    Off,
}

impl Verifier {
    /// Trusts these roots and, as they are, these certificates.
    pub fn new(
        roots: RootCertStore,
        given: Vec<CertificateDer<'static>>,
        recording: Recording,
    ) -> Verifier {
        let shown = (recording == Recording::On).then(Mutex::default);
        Verifier { roots, given, shown }
    }

    /// The certificate that was shown last, in DER, if there was one and it is recorded.
    pub fn certificate(&self) -> Option<MutexGuard<'_, Vec<u8>>> {
        let shown = self.shown.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        Some(shown).filter(|certificate| !certificate.is_empty())
    }

    /// What to make of a CA's certificate that a server shows as its own. Its validity has been
    /// checked before, and its name is checked afterwards.
    fn judge_ca(
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
        // Only roots that name the upstream are kept whole: what is wrong with another is its name.
        let is_root = self.roots.roots.iter().any(|root| *root.subject == *parsed.subject());
        if is_root && !is_for(certificate, name) {
            return Err(CertificateError::NotValidForName.into());
        }
        Err(CertificateError::UnknownIssuer.into())
    }
}

/// Asked for by the trait below; of no use.
impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier")
    }
}

impl ServerCertVerifier for Verifier {
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
            true => self.judge_ca(certificate, name, error),
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

/// The certificate holds as far as it was looked at (its validity comes first), but it is a CA's.
fn is_ca(error: &Error) -> bool {
    let Error::InvalidCertificate(CertificateError::Other(OtherError(error))) = error else {
        return false;
    };
    matches!(error.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
}

/// The certificate is for this name.
pub fn is_for(certificate: &CertificateDer<'_>, name: &ServerName<'_>) -> bool {
    ParsedCertificate::try_from(certificate)
        .is_ok_and(|certificate| verify_server_name(&certificate, name).is_ok())
}
