//! Certificates as bytes: PEM files that the operator names, and the DER of a certificate that the
//! upstream presents. This module has no socket, no clock, no TLS library and no key. The TLS
//! library alone decides whether a certificate is accepted.

pub mod certificate;
pub mod pem;
