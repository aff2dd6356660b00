//! For `--check`: which certificate the upstream shows, also when it does not hold.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{
    Arc, CertificateDer, Connector, DigitallySignedStruct, Error, HandshakeSignatureValid, Host,
    ParsedCertificate, RootCertStore, ServerCertVerified, ServerCertVerifier, ServerName,
    SignatureScheme, Trust, UnixTime, UpstreamFault, WebPkiSupportedAlgorithms, provider,
    verify_server_cert_signed_by_trust_anchor, verify_server_name, verify_tls12_signature,
    verify_tls13_signature,
};

/// Keeps the certificate, and judges it as the library's own verifier does, which cannot be had alone
/// without all that reads revocation lists.
pub struct Witness {
    roots: RootCertStore,
    algorithms: WebPkiSupportedAlgorithms,
    shown: Mutex<Vec<u8>>,
}

impl Connector {
    /// The same as [`Connector::new`], with one who sees the certificate.
    pub fn witnessed(
        trust: Trust,
        host: &Host,
    ) -> Result<(Connector, Arc<Witness>), UpstreamFault> {
        let algorithms = provider().signature_verification_algorithms;
        let (roots, shown) = (trust.roots.clone(), Mutex::default());
        let witness = Arc::new(Witness { roots, algorithms, shown });
        let mut connector = Connector::new(trust, host)?;
        let config = Arc::get_mut(&mut connector.config).ok_or(UpstreamFault::TlsFailed)?;
        config.dangerous().set_certificate_verifier(witness.clone());
        Ok((connector, witness))
    }
}

impl Witness {
    /// The certificate, in DER; empty as long as none was shown.
    pub fn certificate(&self) -> MutexGuard<'_, Vec<u8>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asked for by the trait below; of no use.
impl fmt::Debug for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Witness")
    }
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        *self.certificate() = certificate.to_vec();
        let parsed = ParsedCertificate::try_from(certificate)?;
        let (roots, algorithms) = (&self.roots, self.algorithms.all);
        verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms)?;
        verify_server_name(&parsed, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
