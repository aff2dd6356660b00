//! The allow-list of routes.

/// The route that the request line asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// `POST /v1/responses`.
    Responses,
    /// `GET /v1/responses`: a client that wants to open a WebSocket.
    ResponsesSocket,
    /// `GET /shutdown`.
    Shutdown,
    /// Anything else.
    Other,
}

impl Route {
    /// Compares bytes. A target is never normalised: only the exact origin-form matches.
    pub fn of(method: &[u8], target: &[u8]) -> Route {
        match (method, target) {
            (b"POST", b"/v1/responses") => Route::Responses,
            (b"GET", b"/v1/responses") => Route::ResponsesSocket,
            (b"GET", b"/shutdown") => Route::Shutdown,
            _ => Route::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_origin_form_is_a_route() {
        assert_eq!(Route::of(b"POST", b"/v1/responses"), Route::Responses);
        assert_eq!(Route::of(b"GET", b"/v1/responses"), Route::ResponsesSocket);
        assert_eq!(Route::of(b"GET", b"/shutdown"), Route::Shutdown);
        for target in [
            "/v1/responses/",
            "/v1/responses?",
            "/v1/responses?a=b",
            "/v1/responses#f",
            "//v1/responses",
            "/v1//responses",
            "/v1/./responses",
            "/v1/../v1/responses",
            "/v1%2fresponses",
            "/V1/responses",
            "http://127.0.0.1/v1/responses",
            "127.0.0.1:443",
            "*",
            "/",
            "",
            "/shutdown",
        ] {
            assert_eq!(Route::of(b"POST", target.as_bytes()), Route::Other, "{target}");
        }
        for method in ["post", "Post", "HEAD", "PUT", "OPTIONS", "POSTS", ""] {
            assert_eq!(Route::of(method.as_bytes(), b"/v1/responses"), Route::Other, "{method}");
        }
    }
}
