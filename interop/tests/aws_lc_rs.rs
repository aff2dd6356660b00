//! The key exchange with rustls on aws-lc-rs, the cryptography that most Rust servers run.
//! `interop/run` builds the relay, names it in `RELAY_BINARY`, and runs this.

use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair};
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{HandshakeKind, ServerConfig};

#[allow(dead_code, unused_imports)]
#[path = "../../tests/support/mod.rs"]
mod support;

use support::{Relay, Upstream, certs, post};

/// A server that supports only these groups.
fn config(groups: &[&'static dyn SupportedKxGroup]) -> ServerConfig {
    let provider = CryptoProvider { kx_groups: groups.to_vec(), ..aws_lc_rs::default_provider() };
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["localhost".into(), "127.0.0.1".into()]).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certs().sign(params, &key)],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

const FIRST: HandshakeKind = HandshakeKind::Full;
const RETRIED: HandshakeKind = HandshakeKind::FullWithHelloRetryRequest;

#[test]
fn the_relay_agrees_with_rustls_on_aws_lc_rs() {
    let hybrid = kx_group::X25519MLKEM768;
    let cases: [(&[&'static dyn SupportedKxGroup], &str, HandshakeKind); 6] = [
        (&[hybrid], "X25519MLKEM768", FIRST),
        (&[hybrid, kx_group::X25519], "X25519MLKEM768", FIRST),
        // The server prefers the other group; the client's key shares decide.
        (&[kx_group::X25519], "X25519", FIRST),
        (&[kx_group::SECP256R1], "P-256", RETRIED),
        (&[kx_group::SECP384R1], "P-384", RETRIED),
        // A hybrid group that the relay does not support.
        (&[kx_group::SECP256R1MLKEM768, kx_group::SECP256R1], "P-256", RETRIED),
    ];
    for (groups, want, kind) in cases {
        let upstream = Upstream::new(Some(config(groups)), move |peer| {
            if !peer.resumed {
                assert_eq!(peer.handshake_kind(), Some(kind), "{want}");
            }
            if peer.request().is_some() {
                peer.write("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\nfine");
                peer.close();
            }
        });
        let (code, out, err) = Relay::to(&upstream.url()).args(["--check"]).run(b"");
        assert_eq!(code, 0, "{want}: {err}");
        assert!(out.contains(&format!("TLS 1.3, {want}\n")), "{want}: {out}");
        // The first connection makes a session; the others resume it, each with a new key exchange.
        let relay = Relay::to(&upstream.url()).start();
        for _ in 0..3 {
            assert_eq!(relay.connect().send(post("", "{}")).response().text(), "fine", "{want}");
        }
    }
}
