//! The TLS configuration that all connections to the upstream share.

use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::{Resumption, UnbufferedClientConnection};
use rustls::pki_types::ServerName;

use super::client_auth::ClientAuth;
use super::connection::Tls;
use super::provider::provider;
use super::roots::RootStore;
use super::sessions::Sessions;
use super::verifier::{Recording, RecordingVerifier};
use crate::http1::local_response::UpstreamFault;

/// Makes TLS connections to the one upstream.
pub struct TlsConnector {
    config: Arc<ClientConfig>,
    client_auth: Arc<ClientAuth>,
    name: ServerName<'static>,
}

impl TlsConnector {
    /// Configures TLS 1.2 and 1.3 for HTTP/1.1 only, with session resumption, without early data
    /// and without a key log. Also returns the verifier, which keeps the certificate if `recording`
    /// is on. Fails with [`UpstreamFault::TlsWrongName`] if no certificate can contain the name of
    /// the upstream.
    pub fn new(
        store: RootStore,
        recording: Recording,
    ) -> Result<(TlsConnector, Arc<RecordingVerifier>), UpstreamFault> {
        let RootStore { roots, given, name } = store;
        let name = name.ok_or(UpstreamFault::TlsWrongName)?;
        let verifier = Arc::new(RecordingVerifier::new(roots, given, recording));
        let client_auth = Arc::new(ClientAuth::default());
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider()))
            .with_safe_default_protocol_versions()
            .map_err(|_| UpstreamFault::TlsFailed)?
            .dangerous()
            .with_custom_certificate_verifier(verifier.clone())
            .with_client_cert_resolver(client_auth.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = Resumption::store(Arc::new(Sessions::default()));
        Ok((TlsConnector { config: Arc::new(config), client_auth, name }, verifier))
    }

    /// Makes a connection, which has sent nothing yet.
    pub fn connection(&self) -> Result<Tls, UpstreamFault> {
        let conn = UnbufferedClientConnection::new(self.config.clone(), self.name.clone())
            .map_err(|_| UpstreamFault::TlsFailed)?;
        Ok(Tls::new(conn, self.client_auth.clone()))
    }

    /// The upstream has asked for a client certificate on some connection.
    pub fn was_asked_for_certificate(&self) -> bool {
        self.client_auth.was_asked()
    }
}
