//! The hybrid key exchange X25519MLKEM768 (draft-ietf-tls-ecdhe-mlkem, FIPS 203). Traffic that is
//! recorded today stays secret from a future quantum computer; X25519 alone does not ensure that.
//! *ring* implements X25519. libcrux implements ML-KEM and is formally verified. Its portable code
//! is used, so that every processor runs the same code. Sizes are in bytes.
//!
//! ```text
//!   client share   encapsulation key (1184) | X25519 (32)
//!   server share   ciphertext (1088)        | X25519 (32)
//!   secret         ML-KEM's (32)            | X25519's (32)
//! ```

use std::borrow::BorrowMut;
use std::hint::black_box;

use libcrux_ml_kem::mlkem768::{MlKem768Ciphertext, MlKem768PrivateKey, portable};
use rustls::crypto::ring::kx_group::X25519;
use rustls::crypto::{ActiveKeyExchange, SharedSecret, SupportedKxGroup};
use rustls::ffdhe_groups::FfdheGroup;
use rustls::{Error, NamedGroup, PeerMisbehaved, ProtocolVersion};
use zeroize::{Zeroize, Zeroizing};

use crate::process::sys;

/// Bytes of an ML-KEM-768 encapsulation key (FIPS 203, table 3).
const ENCAPSULATION_KEY: usize = 1184;
/// Bytes of an ML-KEM-768 ciphertext (FIPS 203, table 3).
const CIPHERTEXT: usize = 1088;
/// Bytes of an X25519 public key (RFC 7748 §6.1).
const X25519_KEY: usize = 32;
/// Bytes of the stack below the caller that key generation and decapsulation may have written to.
const STACK: usize = 32 * 1024;

/// The hybrid group, for TLS 1.3 only.
#[derive(Debug)]
pub(super) struct X25519MlKem768;

impl SupportedKxGroup for X25519MlKem768 {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        let mut seed = Zeroizing::new([0; 64]);
        sys::random(&mut *seed).map_err(|_| Error::FailedToGetRandomBytes)?;
        let x25519 = X25519.start()?;
        let (private_key, encapsulation_key) = portable::generate_key_pair(*seed).into_parts();
        let mut share = [0; ENCAPSULATION_KEY + X25519_KEY];
        share[..ENCAPSULATION_KEY].copy_from_slice(encapsulation_key.as_slice());
        share[ENCAPSULATION_KEY..].copy_from_slice(x25519.pub_key());
        let private_key = Wiped(private_key);
        let exchange = Box::new(HybridKeyExchange { private_key, x25519, share });
        wipe_stack();
        Ok(exchange)
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519MLKEM768
    }

    fn usable_for_version(&self, version: ProtocolVersion) -> bool {
        version == ProtocolVersion::TLSv1_3
    }
}

/// The client's half of a key exchange: both private keys, and the share that is sent.
struct HybridKeyExchange {
    private_key: Wiped<MlKem768PrivateKey>,
    x25519: Box<dyn ActiveKeyExchange>,
    share: [u8; ENCAPSULATION_KEY + X25519_KEY],
}

/// The ML-KEM private key, which is overwritten when it is dropped. *ring* keeps the X25519 private
/// key and does not wipe it.
struct Wiped<K: BorrowMut<MlKem768PrivateKey>>(K);

impl<K: BorrowMut<MlKem768PrivateKey>> Drop for Wiped<K> {
    fn drop(&mut self) {
        self.0.borrow_mut()[0..].zeroize();
    }
}

impl ActiveKeyExchange for HybridKeyExchange {
    fn complete(self: Box<Self>, share: &[u8]) -> Result<SharedSecret, Error> {
        let parts = share.split_at_checked(CIPHERTEXT);
        let (ciphertext, x25519_share) = parts.ok_or(PeerMisbehaved::InvalidKeyShare)?;
        let ciphertext = MlKem768Ciphertext::try_from(ciphertext)
            .map_err(|_| PeerMisbehaved::InvalidKeyShare)?;
        // X25519 refuses a share that is not 32 bytes long.
        let x25519_secret = self.x25519.complete(x25519_share)?;
        let mut secret = Vec::with_capacity(64);
        let mut ml_kem_secret = portable::decapsulate(&self.private_key.0, &ciphertext);
        secret.extend_from_slice(&ml_kem_secret);
        secret.extend_from_slice(x25519_secret.secret_bytes());
        ml_kem_secret.zeroize();
        wipe_stack();
        Ok(SharedSecret::from(secret))
    }

    fn hybrid_component(&self) -> Option<(NamedGroup, &[u8])> {
        Some((self.x25519.group(), self.x25519.pub_key()))
    }

    fn complete_hybrid_component(self: Box<Self>, share: &[u8]) -> Result<SharedSecret, Error> {
        self.x25519.complete(share)
    }

    fn pub_key(&self) -> &[u8] {
        &self.share
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::X25519MLKEM768
    }
}

/// Overwrites the part of the stack that the ML-KEM functions may have left secrets on.
#[inline(never)]
fn wipe_stack() {
    // The initialisation of the array clears the memory; zeroize would repeat it, byte by byte.
    black_box(&mut [0u64; STACK / 8]);
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn a_private_key_is_overwritten_where_it_lay() {
        let (mut private_key, _) = portable::generate_key_pair([7; 64]).into_parts();
        assert!(private_key[0..].iter().any(|byte| *byte != 0));
        drop(Wiped(&mut private_key));
        assert!(private_key[0..].iter().all(|byte| *byte == 0));
    }
}
