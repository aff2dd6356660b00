//! The cryptography of TLS: cipher suites, key exchange groups, signature algorithms, random bytes.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::ring::{cipher_suite as suite, kx_group as group};
use rustls::crypto::{
    CryptoProvider, GetRandomFailed, KeyProvider, SecureRandom, WebPkiSupportedAlgorithms,
};
use rustls::pki_types::{
    AlgorithmIdentifier, CertificateDer, InvalidSignature, PrivateKeyDer,
    SignatureVerificationAlgorithm, alg_id,
};
use rustls::sign::SigningKey;
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};
use webpki::{EndEntityCert, ring as signatures};

use super::key_exchange::X25519MlKem768;
use crate::process::sys;

/// The provider *ring* with another order of cipher suites. AES-128 precedes AES-256: it is as safe
/// here, and a fifth faster. ChaCha20 is last, for servers without AES hardware. An upstream with a
/// preference of its own ignores this order.
pub(super) fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            suite::TLS13_AES_128_GCM_SHA256,
            suite::TLS13_AES_256_GCM_SHA384,
            suite::TLS13_CHACHA20_POLY1305_SHA256,
            suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
            suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
            suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        ],
        // The ClientHello has an X25519 share besides the hybrid one, for servers without ML-KEM.
        kx_groups: vec![&X25519MlKem768, group::X25519, group::SECP256R1, group::SECP384R1],
        signature_verification_algorithms: SIGNATURES,
        secure_random: &Random,
        key_provider: &NoKeys,
    }
}

type Algorithm = &'static dyn SignatureVerificationAlgorithm;

/// The signature algorithms that rustls has by default, and those of RSA keys that are restricted
/// to PSS (RFC 8446 §4.2.3).
pub(super) const SIGNATURES: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: &[
        signatures::ECDSA_P256_SHA256,
        signatures::ECDSA_P256_SHA384,
        signatures::ECDSA_P384_SHA256,
        signatures::ECDSA_P384_SHA384,
        signatures::ED25519,
        signatures::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
        signatures::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
        signatures::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
        signatures::RSA_PKCS1_2048_8192_SHA256,
        signatures::RSA_PKCS1_2048_8192_SHA384,
        signatures::RSA_PKCS1_2048_8192_SHA512,
        signatures::RSA_PKCS1_2048_8192_SHA256_ABSENT_PARAMS,
        signatures::RSA_PKCS1_2048_8192_SHA384_ABSENT_PARAMS,
        signatures::RSA_PKCS1_2048_8192_SHA512_ABSENT_PARAMS,
        PSS_SHA256[0],
        PSS_SHA256[1],
        PSS_SHA384[0],
        PSS_SHA384[1],
        PSS_SHA512[0],
        PSS_SHA512[1],
    ],
    // In TLS 1.2 an ECDSA scheme does not determine the curve (RFC 5246 §7.4.1.4.1 with RFC 4492).
    mapping: &[
        (
            SignatureScheme::ECDSA_NISTP384_SHA384,
            &[signatures::ECDSA_P384_SHA384, signatures::ECDSA_P256_SHA384],
        ),
        (
            SignatureScheme::ECDSA_NISTP256_SHA256,
            &[signatures::ECDSA_P256_SHA256, signatures::ECDSA_P384_SHA256],
        ),
        (SignatureScheme::ED25519, &[signatures::ED25519]),
        (SignatureScheme::RSA_PSS_SHA512, &[signatures::RSA_PSS_2048_8192_SHA512_LEGACY_KEY]),
        (SignatureScheme::RSA_PSS_SHA384, &[signatures::RSA_PSS_2048_8192_SHA384_LEGACY_KEY]),
        (SignatureScheme::RSA_PSS_SHA256, &[signatures::RSA_PSS_2048_8192_SHA256_LEGACY_KEY]),
        (RSA_PSS_PSS_SHA512, PSS_SHA512),
        (RSA_PSS_PSS_SHA384, PSS_SHA384),
        (RSA_PSS_PSS_SHA256, PSS_SHA256),
        (SignatureScheme::RSA_PKCS1_SHA512, &[signatures::RSA_PKCS1_2048_8192_SHA512]),
        (SignatureScheme::RSA_PKCS1_SHA384, &[signatures::RSA_PKCS1_2048_8192_SHA384]),
        (SignatureScheme::RSA_PKCS1_SHA256, &[signatures::RSA_PKCS1_2048_8192_SHA256]),
    ],
};

/// The schemes rsa_pss_pss_* (RFC 8446 §4.2.3), for which rustls has no names.
const RSA_PSS_PSS_SHA256: SignatureScheme = SignatureScheme::Unknown(0x0809);
const RSA_PSS_PSS_SHA384: SignatureScheme = SignatureScheme::Unknown(0x080a);
const RSA_PSS_PSS_SHA512: SignatureScheme = SignatureScheme::Unknown(0x080b);

/// Verifies the signature of a handshake by a key that is restricted to PSS. `None` means that the
/// scheme is another one. rustls has no algorithms for these schemes and would refuse them. Fails
/// with [`CertificateError::BadSignature`].
pub(super) fn verify_by_pss_key(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Option<Result<HandshakeSignatureValid, Error>> {
    let algorithms = match signature.scheme {
        RSA_PSS_PSS_SHA256 => PSS_SHA256,
        RSA_PSS_PSS_SHA384 => PSS_SHA384,
        RSA_PSS_PSS_SHA512 => PSS_SHA512,
        _ => return None,
    };
    let is_valid = EndEntityCert::try_from(certificate).is_ok_and(|certificate| {
        let signature = signature.signature();
        algorithms.iter().any(|by| certificate.verify_signature(*by, message, signature).is_ok())
    });
    Some(match is_valid {
        true => Ok(HandshakeSignatureValid::assertion()),
        false => Err(CertificateError::BadSignature.into()),
    })
}

const PSS_SHA256: &[Algorithm] =
    &[&PssKey::any(&PSS[0]), &PssKey { public_key: alg_id::RSA_PSS_SHA256, by: &PSS[0] }];
const PSS_SHA384: &[Algorithm] =
    &[&PssKey::any(&PSS[1]), &PssKey { public_key: alg_id::RSA_PSS_SHA384, by: &PSS[1] }];
const PSS_SHA512: &[Algorithm] =
    &[&PssKey::any(&PSS[2]), &PssKey { public_key: alg_id::RSA_PSS_SHA512, by: &PSS[2] }];

static PSS: [Algorithm; 3] = [
    signatures::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    signatures::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
    signatures::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
];

/// The algorithm for an RSA key that its certificate restricts to PSS (RFC 4055 §1.2). Its
/// signatures are verified like those of any other RSA key.
#[derive(Debug)]
struct PssKey {
    public_key: AlgorithmIdentifier,
    by: &'static Algorithm,
}

impl PssKey {
    /// The algorithm for a key without parameters, which does not fix the hash function.
    const fn any(by: &'static Algorithm) -> PssKey {
        // id-RSASSA-PSS, 1.2.840.113549.1.1.10.
        const OID: &[u8] = &[0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 10];
        PssKey { public_key: AlgorithmIdentifier::from_slice(OID), by }
    }
}

impl SignatureVerificationAlgorithm for PssKey {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        self.by.verify_signature(public_key, message, signature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.public_key
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.by.signature_alg_id()
    }
}

/// Random bytes from the kernel.
#[derive(Debug)]
struct Random;

impl SecureRandom for Random {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), GetRandomFailed> {
        sys::random(bytes).map_err(|_| GetRandomFailed)
    }
}

/// Loads no keys. Without client certificates the program needs no code that signs.
#[derive(Debug)]
struct NoKeys;

impl KeyProvider for NoKeys {
    fn load_private_key(&self, _: PrivateKeyDer<'static>) -> Result<Arc<dyn SigningKey>, Error> {
        Err(Error::General("no client certificates".into()))
    }
}
