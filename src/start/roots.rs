//! The roots that certificates of a host may have.

use codex_responses_api_proxy::cli::Config;
use codex_responses_api_proxy::http1::url::Host;
use codex_responses_api_proxy::net::tls::RootStore;

use super::error::StartError;

/// The built-in roots with those of `--ca-file`, and a note about certificates that are skipped.
pub(super) fn roots(config: &Config, host: &Host) -> Result<(RootStore, String), StartError> {
    let mut roots = RootStore::built_in(host);
    let skipped = match &config.ca_file {
        None => String::new(),
        Some((name, path)) => match roots.add(path) {
            Ok(0) => String::new(),
            Ok(n) => format!("{name}: certificates skipped because they cannot be roots: {n}"),
            Err(error) => return Err(format!("{name}: {} {error}", path.display()).into()),
        },
    };
    Ok((roots, skipped))
}
