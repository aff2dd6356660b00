//! The route of a refused request, for the access log. The log contains a name from this list,
//! never the client's bytes.

use super::work;

/// The route of a refused request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedRoute {
    /// `/v1/responses` itself, with another method or refused for another reason.
    Responses,
    /// `/v1/responses` with a query.
    ResponsesQuery,
    /// `/v1/responses/ID` and everything below it that has no name of its own.
    ResponsesId,
    /// `/v1/responses/compact`.
    Compact,
    /// `/v1/responses/input_tokens`.
    InputTokens,
    /// `/responses`: the client's base URL lacks `/v1`.
    WithoutV1,
    /// `/v1/models` and `/v1/models/NAME`.
    Models,
    /// `/v1/chat/completions`.
    ChatCompletions,
    /// `/v1/completions`.
    Completions,
    /// `/v1/embeddings`.
    Embeddings,
    /// Everything below `/v1/images/`.
    Images,
    /// `/v1/alpha/search`.
    Search,
    /// `/v1/files`, `/v1/uploads`, `/v1/vector_stores` and everything below them.
    Files,
    /// `/shutdown`.
    Shutdown,
    /// `/health`, `/healthz`, `/livez`, `/readyz`, `/ping`.
    Health,
    /// `/metrics`.
    Metrics,
    /// `/`.
    Root,
    /// Anything else.
    Other,
}

impl RefusedRoute {
    /// Compares the path. The query matters only for `/v1/responses`.
    pub fn of(target: &[u8]) -> RefusedRoute {
        work::spend(target.len());
        let end = target.iter().position(|byte| *byte == b'?').unwrap_or(target.len());
        let (path, query) = target.split_at(end);
        let below = |parent: &[u8]| path.strip_prefix(parent).is_some_and(|rest| !rest.is_empty());
        match path {
            b"/v1/responses" if query.is_empty() => RefusedRoute::Responses,
            b"/v1/responses" => RefusedRoute::ResponsesQuery,
            b"/v1/responses/compact" => RefusedRoute::Compact,
            b"/v1/responses/input_tokens" => RefusedRoute::InputTokens,
            b"/responses" => RefusedRoute::WithoutV1,
            b"/v1/models" | b"/models" => RefusedRoute::Models,
            b"/v1/chat/completions" | b"/chat/completions" => RefusedRoute::ChatCompletions,
            b"/v1/completions" => RefusedRoute::Completions,
            b"/v1/embeddings" => RefusedRoute::Embeddings,
            b"/v1/alpha/search" => RefusedRoute::Search,
            b"/v1/files" | b"/v1/uploads" | b"/v1/vector_stores" => RefusedRoute::Files,
            b"/shutdown" => RefusedRoute::Shutdown,
            b"/health" | b"/healthz" | b"/livez" | b"/readyz" | b"/ping" => RefusedRoute::Health,
            b"/metrics" => RefusedRoute::Metrics,
            b"/" => RefusedRoute::Root,
            _ if below(b"/v1/responses/") => RefusedRoute::ResponsesId,
            _ if below(b"/v1/models/") => RefusedRoute::Models,
            _ if below(b"/v1/images/") => RefusedRoute::Images,
            _ if below(b"/v1/files/") || below(b"/v1/uploads/") || below(b"/v1/vector_stores/") => {
                RefusedRoute::Files
            }
            _ => RefusedRoute::Other,
        }
    }

    /// The name in the log.
    pub const fn name(self) -> &'static str {
        match self {
            RefusedRoute::Responses => "responses",
            RefusedRoute::ResponsesQuery => "responses_query",
            RefusedRoute::ResponsesId => "responses_id",
            RefusedRoute::Compact => "compact",
            RefusedRoute::InputTokens => "input_tokens",
            RefusedRoute::WithoutV1 => "without_v1",
            RefusedRoute::Models => "models",
            RefusedRoute::ChatCompletions => "chat_completions",
            RefusedRoute::Completions => "completions",
            RefusedRoute::Embeddings => "embeddings",
            RefusedRoute::Images => "images",
            RefusedRoute::Search => "search",
            RefusedRoute::Files => "files",
            RefusedRoute::Shutdown => "shutdown",
            RefusedRoute::Health => "health",
            RefusedRoute::Metrics => "metrics",
            RefusedRoute::Root => "root",
            RefusedRoute::Other => "other",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_routes_have_names_and_all_else_is_other() {
        for (target, name) in [
            ("/v1/responses", "responses"),
            ("/v1/responses?beta=true", "responses_query"),
            ("/v1/responses/resp_1", "responses_id"),
            ("/v1/responses/resp_1/cancel?x", "responses_id"),
            ("/v1/responses/compact", "compact"),
            ("/v1/responses/input_tokens", "input_tokens"),
            ("/responses", "without_v1"),
            ("/v1/models?client_version=1", "models"),
            ("/v1/models/gpt-5", "models"),
            ("/v1/chat/completions", "chat_completions"),
            ("/v1/completions", "completions"),
            ("/v1/embeddings", "embeddings"),
            ("/v1/images/edits", "images"),
            ("/v1/alpha/search", "search"),
            ("/v1/files/f_1", "files"),
            ("/shutdown", "shutdown"),
            ("/healthz", "health"),
            ("/metrics", "metrics"),
            ("/", "root"),
            ("/?", "root"),
        ] {
            assert_eq!(RefusedRoute::of(target.as_bytes()).name(), name, "{target}");
        }
        for target in [
            "",
            "*",
            "/v1",
            "/v1/responses/",
            "/V1/models",
            "//v1/models",
            "/v1%2fmodels",
            "/v1/models/../responses/",
            "http://127.0.0.1/v1/models",
            "/v1/modelsx",
            "/\"",
        ] {
            let name = RefusedRoute::of(target.as_bytes()).name();
            assert!(name == "other" || target.starts_with("/v1/models/"), "{target}: {name}");
        }
    }
}
