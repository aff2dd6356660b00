//! TLS to the upstream. Only this folder names rustls.
//!
//! rustls is used through its unbuffered API. Records are decrypted and encrypted in the scratch
//! buffers of the loop, so a waiting connection owns no buffer of its own except for a partial
//! record. Plaintext is never queued: data can be encrypted only once the handshake is complete.
//!
//! | file | holds |
//! |---|---|
//! | `roots` | the root certificates: Mozilla's, and those of `--ca-file` |
//! | `connector` | the configuration that all connections share |
//! | `connection` | the record layer of one connection |
//! | `provider` | cipher suites, key exchange groups, signature algorithms, random bytes |
//! | `key_exchange` | the hybrid post-quantum group X25519MLKEM768 |
//! | `sessions` | the state that is needed to resume a session |
//! | `verifier` | the check of the upstream's certificate |
//! | `client_auth` | whether the upstream has asked for a client certificate |

mod client_auth;
mod connection;
mod connector;
mod key_exchange;
mod provider;
mod roots;
mod sessions;
mod verifier;

pub use connection::{PeerState, Tls};
pub use connector::TlsConnector;
pub use roots::{RootStore, RootsError};
pub use verifier::{Recording, RecordingVerifier};

/// The name of the TLS library and its provider, which `--version` prints.
pub const PROVIDER: &str = "rustls 0.23 with ring";

#[cfg(test)]
pub(in crate::net) mod testing;
