//! From [`Prepared`] to [`Keyed`]: the first key.

use codex_responses_api_proxy::feeder::Feeder;
use codex_responses_api_proxy::http1::request;
use codex_responses_api_proxy::http1::url::Scheme;
use codex_responses_api_proxy::net::tls::{Recording, TlsConnector};
use codex_responses_api_proxy::process::key_input::KeyInput;
use codex_responses_api_proxy::process::key_source;

use super::error::{StartError, tls_failed};
use super::{Keyed, Prepared};

impl<'a> Prepared<'a> {
    /// Reads the key into its pages, closes the file it came from, and wipes the copies in this
    /// process's environment and arguments.
    pub fn read_key(self) -> Result<Keyed<'a>, StartError> {
        let Prepared { mut plan, roots } = self;
        let config = plan.config;
        let tls = match config.upstream.scheme {
            Scheme::Http => None,
            Scheme::Https => Some(TlsConnector::new(roots, Recording::Off).map_err(tls_failed)?.0),
        };
        // The first token is on its way once this returns.
        let feeder = plan.feeder.take().map(Feeder::wait).transpose()?;
        let prefix = request::prefix(&config.upstream, &config.auth_header);
        let (prefix, form) = (prefix.as_bytes(), config.key_form);
        let (mut keys, key_input) = match config.rotation() {
            None => {
                let read = key_source::read(prefix, form).map_err(|error| error.to_string())?;
                let (keys, warning) = read;
                plan.warnings.extend(warning);
                (keys, None)
            }
            Some(terms) => {
                let begun = KeyInput::begin(prefix, form, terms);
                let begun = begun.map_err(|error| error.to_string())?;
                plan.warnings.extend(begun.warnings);
                (begun.keys, begun.input)
            }
        };
        key_source::release_stdin(config.key_file.is_some()).map_err(|error| {
            format!("cannot close the key's file ({error}); give the key through a pipe")
        })?;
        plan.warnings.extend(key_source::wipe_copies(keys.current()));
        config.requirement().memory(keys.memory())?;
        Ok(Keyed { plan, tls, keys, key_input, feeder })
    }
}
