//! `--github-oidc` and the flags that belong to it: all of them, or none.

use super::config::Config;
use super::usage_error::UsageError;
use crate::http1::url::UpstreamUrl;
use crate::process::credential::KeyForm;

/// The flags that are needed together.
const NEEDED: [&str; 5] = [
    "github-oidc",
    "github-oidc-request-url",
    "oidc-audience",
    "identity-provider-id",
    "service-account-id",
];
/// The flag that may come with them.
const TOKEN_URL: &str = "oidc-token-url";
/// Flags about another source of the key, and its age.
const OTHERS: [&str; 3] = ["key-file", "rotate", "key-max-age"];

/// Checks the flags of which `is_given` says that they are given. A token of OpenAI's is for OpenAI's
/// upstream alone.
pub(super) fn check(
    config: &mut Config,
    is_given: &dyn Fn(&str) -> bool,
) -> Result<(), UsageError> {
    let missing: Vec<&str> = NEEDED.into_iter().filter(|name| !is_given(name)).collect();
    if missing.len() == NEEDED.len() && !is_given(TOKEN_URL) {
        return Ok(());
    }
    if !missing.is_empty() {
        return Err(UsageError::OidcMissing(missing));
    }
    if let Some(other) = OTHERS.into_iter().find(|name| is_given(name)) {
        return Err(UsageError::OidcAnd(other));
    }
    if !is_given(TOKEN_URL) && config.upstream != UpstreamUrl::openai() {
        return Err(UsageError::OidcUpstream);
    }
    config.key_form = KeyForm::Token68;
    Ok(())
}
