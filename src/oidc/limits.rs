//! Bounds on what this room writes and reads. A token has the bounds of a key
//! ([`http1::limits::TOKEN68`](crate::http1::limits::TOKEN68)).

use crate::http1::limits::{TOKEN68, URL};

/// Bytes of the value of `--oidc-audience`, `--identity-provider-id` and `--service-account-id`.
pub const ID: usize = 512;
/// Bytes of a request: the longest URL, the longest token, and the longest values with each byte
/// escaped.
pub const REQUEST: usize = 20 * 1024;
/// Bytes of a response head.
pub const RESPONSE_HEAD: usize = 16 * 1024;
/// Bytes of a response body, without the framing of chunks.
pub const RESPONSE_BODY: usize = 64 * 1024;
/// How deep arrays and objects of a response may be nested.
pub const DEPTH: usize = 32;
/// Bytes of an error word that is repeated.
pub const WORD: usize = 40;
/// The most seconds that an access token is used.
pub const LIFETIME: u64 = 3600;

/// Bytes of a request that come neither from a flag nor from a token, at most.
pub(super) const FIXED: usize = 1024;
const _: () = assert!(URL + 3 * ID + TOKEN68 + FIXED <= REQUEST);
const _: () = assert!(URL + 2 * 6 * ID + TOKEN68 + FIXED <= REQUEST);
