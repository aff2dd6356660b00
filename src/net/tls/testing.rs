//! For unit tests: a TLS server in memory, and connections to it.

use std::io::Read;
use std::sync::{Arc, OnceLock};

use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{RootCertStore, ServerConfig, ServerConnection, SupportedProtocolVersion};

use super::{Recording, RootStore, Tls, TlsConnector};
use crate::net::buffer::Scratch;

/// A certificate for localhost that is its own root, and its key.
fn identity() -> &'static (CertificateDer<'static>, Vec<u8>) {
    static IDENTITY: OnceLock<(CertificateDer<'static>, Vec<u8>)> = OnceLock::new();
    IDENTITY.get_or_init(|| {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".into()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        (certificate.der().clone(), key.serialize_der())
    })
}

/// A server with these versions that sends so many session tickets on each connection.
pub(in crate::net) fn server(
    versions: &[&'static SupportedProtocolVersion],
    tickets: usize,
) -> ServerConfig {
    let (certificate, key) = identity();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.clone()));
    let builder = ServerConfig::builder_with_provider(provider);
    let builder = builder.with_protocol_versions(versions).unwrap().with_no_client_auth();
    let mut config = builder.with_single_cert(vec![certificate.clone()], key).unwrap();
    config.send_tls13_tickets = tickets;
    config
}

/// Makes connections to such servers.
pub(in crate::net) fn connector() -> TlsConnector {
    let (certificate, _) = identity();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let name = Some(ServerName::try_from("localhost").unwrap());
    // A server may show a certificate that was given as a root.
    let store = RootStore { roots, given: vec![certificate.clone()], name };
    TlsConnector::new(store, Recording::Off).unwrap().0
}

/// The bytes that a server sends now.
pub(in crate::net) fn sent(server: &mut ServerConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while server.wants_write() {
        server.write_tls(&mut bytes).unwrap();
    }
    bytes
}

/// Gives bytes to a server, which must accept them. Returns their plaintext.
pub(in crate::net) fn receive(server: &mut ServerConnection, mut bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    while !bytes.is_empty() {
        server.read_tls(&mut bytes).unwrap();
        let state = server.process_new_packets().unwrap();
        let start = plain.len();
        plain.resize(start + state.plaintext_bytes_to_read(), 0);
        server.reader().read_exact(&mut plain[start..]).unwrap();
    }
    plain
}

/// Gives bytes of a server to a connection. Returns the plaintext, and what the connection sends.
pub(in crate::net) fn decrypt(tls: &mut Tls, bytes: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (mut wire, mut plain, mut out) = (Scratch::new(0), Scratch::new(0), Scratch::new(0));
    tls.resume(&mut wire);
    wire.push(bytes);
    assert!(tls.decrypt(&mut wire, &mut plain, &mut out).is_ok());
    (plain.bytes().to_vec(), out.bytes().to_vec())
}

/// A connection whose handshake is complete on both sides. What the server has to send behind it,
/// its tickets, is left in the server.
pub(in crate::net) fn connected(
    connector: &TlsConnector,
    config: &Arc<ServerConfig>,
) -> (Tls, ServerConnection) {
    let mut tls = connector.connection().unwrap();
    let mut server = ServerConnection::new(config.clone()).unwrap();
    let (_, mut out) = decrypt(&mut tls, b"");
    while !tls.is_ready() || server.is_handshaking() {
        receive(&mut server, &out);
        if tls.is_ready() {
            break;
        }
        (_, out) = decrypt(&mut tls, &sent(&mut server));
    }
    (tls, server)
}
