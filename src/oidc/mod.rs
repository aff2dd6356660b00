//! The pure room of `--github-oidc`: both requests and their responses as bytes. No socket, clock,
//! TLS or libc. The tokens stay in the buffers of the caller.
//!
//! ```text
//!  step 1  GET the request URL, with GitHub's request token  → {"value": ID token}
//!  step 2  POST the token URL, with the ID token (RFC 8693)  → {"access_token": …, "expires_in": …}
//! ```

pub mod json;
pub mod limits;
pub mod notice;
pub mod receive;
pub mod request;
pub mod token_response;

use crate::http1::url::UpstreamUrl;

/// What `--github-oidc` and the flags that belong to it say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenExchange {
    /// Where GitHub gives ID tokens.
    pub request_url: UpstreamUrl,
    /// For whom GitHub makes the ID token.
    pub audience: String,
    /// Where the ID token is exchanged for an access token.
    pub token_url: UpstreamUrl,
    /// The identity provider, as the token endpoint calls it.
    pub identity_provider_id: String,
    /// The service account, as the token endpoint calls it.
    pub service_account_id: String,
}

impl Default for TokenExchange {
    /// OpenAI's token endpoint, and nothing else. (It also fills the place of the request URL.)
    fn default() -> TokenExchange {
        TokenExchange {
            request_url: UpstreamUrl::openai_tokens(),
            audience: String::new(),
            token_url: UpstreamUrl::openai_tokens(),
            identity_provider_id: String::new(),
            service_account_id: String::new(),
        }
    }
}

/// The two steps of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// GitHub gives an ID token.
    IdToken,
    /// The ID token is exchanged for an access token.
    AccessToken,
}
