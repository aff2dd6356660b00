//! Requests: which requests are accepted, and the head that is sent upstream.

use super::auth_header::AuthHeader;
use super::field::{self, ConnectionOptions, FieldName, FramingFields};
use super::forward::{self, forwarded_fields};
use super::framing::Framing;
use super::gather::GatherList;
use super::head::{Field, RequestHead};
use super::host::HostKind;
use super::limits;
use super::local_response::Reject;
use super::refused_route::RefusedRoute;
use super::target::Route;
use super::url::UpstreamUrl;

/// The contents of a well-formed request head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of the head, in any combination")]
pub struct Request {
    /// The route, or why the request is refused.
    pub verdict: Result<Route, Reject>,
    /// The route of a request that is refused.
    pub refused_route: Option<RefusedRoute>,
    /// How the body ends.
    pub framing: Framing,
    /// The length of the head.
    pub len: usize,
    /// The client speaks HTTP/1.0: no chunked responses, no interim responses, no keep-alive.
    pub http10: bool,
    /// The client will not use the connection again.
    pub close: bool,
    /// The client waits for a 100 before it sends the body.
    pub expects_continue: bool,
    /// A HEAD request: its response has no body.
    pub is_head: bool,
}

/// The settings that decide about requests and responses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Policy {
    /// `GET /shutdown` ends the relay.
    pub http_shutdown: bool,
    /// The field that carries the key, if it is not Authorization. A client's field of this name is
    /// not forwarded, just like Authorization.
    pub credential_field: Option<&'static [u8]>,
    /// Further fields that are not forwarded: `--drop-header`.
    pub dropped_fields: &'static [&'static [u8]],
    /// Hosts that a request may name, apart from this machine: `--allow-host`.
    pub allowed_hosts: &'static [&'static [u8]],
    /// Responses that cannot be searched for the key are forwarded: `--allow-encoded-responses`.
    pub allow_encoded_responses: bool,
}

impl Policy {
    /// A client's field of this name is not forwarded.
    fn withholds(&self, name: &[u8]) -> bool {
        self.credential_field.is_some_and(|ours| field::is_alike(name, ours))
            || self.dropped_fields.iter().any(|dropped| field::is_alike(name, dropped))
    }
}

/// Compares a token with the client token.
pub type TokenCheck<'a> = dyn Fn(&[u8]) -> bool + 'a;

/// The circumstances that decide about a request, besides its own bytes.
#[derive(Clone, Copy, Default)]
pub struct RequestContext<'a> {
    /// An upstream connection can take the head now.
    pub upstream_ready: bool,
    /// Why no request is forwarded now, whatever it says.
    pub closed: Option<Reject>,
    /// The check of the client token, if one is required.
    pub token: Option<&'a TokenCheck<'a>>,
}

impl RequestContext<'_> {
    /// A context without a client token and without a limit.
    pub fn ready(upstream_ready: bool) -> Self {
        RequestContext { upstream_ready, ..RequestContext::default() }
    }
}

/// Decides about a head. For an acceptable `POST /v1/responses`, adds the upstream's head to `out`.
///
/// After an `Err` the end of the request is unknown. After a refusal inside `Ok` it is known.
pub fn judge(
    head: &RequestHead<'_, '_>,
    policy: Policy,
    context: &RequestContext<'_>,
    out: &mut GatherList,
) -> Result<Request, Reject> {
    let mut lengths = FramingFields::default();
    let mut connection = ConnectionOptions::default();
    let mut host = None;
    let mut websocket = false;
    let mut guard = None;
    let mut expectation = None;
    let mut authorization = None;
    let mut names = [FieldName::Other; limits::FIELDS];
    for (Field { name, value, .. }, known) in head.fields.iter().zip(&mut names) {
        *known = FieldName::of(name);
        match *known {
            FieldName::ContentLength => lengths.content_length(value),
            FieldName::TransferEncoding => lengths.transfer_encoding(value),
            FieldName::Connection if connection.note(value).is_err() => {
                return Err(Reject::Malformed);
            }
            FieldName::Host if host.replace(value).is_some() => return Err(Reject::InvalidHost),
            FieldName::Upgrade => {
                websocket |= field::options(value).any(|p| p.eq_ignore_ascii_case(b"websocket"));
            }
            FieldName::Authorization => {
                // Two fields count as none, because it is unclear which one is meant.
                authorization = Some(if authorization.is_none() { value } else { b"" });
            }
            FieldName::Origin => guard = guard.or(Some(Reject::OriginNotAllowed)),
            FieldName::SecFetchSite if value != b"none" && value != b"same-origin" => {
                guard = guard.or(Some(Reject::CrossSite));
            }
            FieldName::Expect => {
                let fine = value.eq_ignore_ascii_case(b"100-continue") && expectation.is_none();
                expectation = Some(fine);
            }
            // No other field decides on the request.
            _ => {}
        }
    }
    let guard = match host.map(|host| HostKind::of(host, policy.allowed_hosts)) {
        None if !head.http10 => return Err(Reject::InvalidHost),
        Some(HostKind::Invalid) => return Err(Reject::InvalidHost),
        Some(HostKind::Foreign) => Some(Reject::HostNotAllowed),
        None | Some(HostKind::Loopback) => guard,
    };
    let framing = Framing::of_request(&lengths, head.http10).map_err(|_| Reject::InvalidFraming)?;
    // The expectation of an HTTP/1.0 client is ignored (RFC 9110 §10.1.1).
    let expectation = expectation.filter(|_| !head.http10);
    let verdict = match (guard, Route::of(head.method, head.target)) {
        (Some(reject), _) => Err(reject),
        (None, Route::Responses) if !has_token(authorization, context) => Err(Reject::ClientToken),
        (None, Route::Responses) if expectation == Some(false) => Err(Reject::ExpectationFailed),
        (None, Route::Responses) => context.closed.map_or(Ok(Route::Responses), Err),
        (None, Route::Shutdown) if policy.http_shutdown => {
            if has_token(authorization, context) {
                Ok(Route::Shutdown)
            } else {
                Err(Reject::ClientToken)
            }
        }
        (None, Route::ResponsesSocket) if websocket && connection.upgrade => Err(Reject::WebSocket),
        (None, _) => Err(Reject::RouteNotAllowed),
    };
    if verdict == Ok(Route::Responses) {
        write_upstream_head(head, &names, &connection, framing, policy, out);
    }
    Ok(Request {
        verdict,
        refused_route: verdict.is_err().then(|| RefusedRoute::of(head.target)),
        framing,
        len: head.len,
        http10: head.http10,
        close: connection.close || head.http10,
        expects_continue: expectation == Some(true) && !matches!(framing, Framing::Length(0)),
        is_head: head.method == b"HEAD",
    })
}

/// No token is required, or this is the token (RFC 6750 §2.1; the scheme may be in any case).
fn has_token(authorization: Option<&[u8]>, context: &RequestContext<'_>) -> bool {
    let Some(is_token) = context.token else {
        return true;
    };
    authorization
        .and_then(|value| value.split_at_checked(7))
        .is_some_and(|(scheme, token)| scheme.eq_ignore_ascii_case(b"Bearer ") && is_token(token))
}

/// The beginning of the upstream's head, up to the key. `process::credential` adds the key, and
/// [`judge`] adds the rest. The request accepts no content coding, because a coding could hide a
/// reflected key.
pub fn prefix(url: &UpstreamUrl, auth_header: &AuthHeader<'_>) -> String {
    format!(
        "POST {} HTTP/1.1\r\nHost: {}\r\nAccept-Encoding: identity\r\n{}",
        url.path_and_query,
        url.authority(),
        auth_header.before_key()
    )
}

/// Writes the upstream's head: the credential block, the client's fields that are forwarded, in
/// their order and spelling, and the relay's own framing.
fn write_upstream_head(
    head: &RequestHead<'_, '_>,
    names: &[FieldName],
    connection: &ConnectionOptions,
    framing: Framing,
    policy: Policy,
    out: &mut GatherList,
) {
    out.credential();
    forwarded_fields(&head.fields, names, connection, out, |known, name| {
        forward::is_for_upstream(known) && !policy.withholds(name)
    });
    // After the Via of earlier hops (RFC 9110 §7.6.3), with the version that the client speaks.
    out.text(if head.http10 { b"Via: 1.0 relay\r\n" } else { b"Via: 1.1 relay\r\n" });
    match framing {
        Framing::Chunked => out.text(b"Transfer-Encoding: chunked\r\n\r\n"),
        Framing::Length(length) => {
            out.text(b"Content-Length: ");
            out.decimal(length);
            out.text(b"\r\n\r\n");
        }
        Framing::None | Framing::UntilClose => out.text(b"\r\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::head::{self, ScanProgress};

    fn read(input: &str) -> (Result<Request, Reject>, String) {
        read_with(input, Policy { http_shutdown: true, ..Policy::default() })
    }

    fn read_with(input: &str, policy: Policy) -> (Result<Request, Reject>, String) {
        let mut list = GatherList::default();
        let request = head::request(input.as_bytes(), &mut ScanProgress::default(), |head| {
            judge(&head, policy, &RequestContext::default(), &mut list)
        });
        let sent: Vec<u8> = list.slices(input.as_bytes()).flatten().copied().collect();
        (request.map(|r| r.expect("a whole head")), String::from_utf8(sent).expect("ASCII"))
    }

    fn post(fields: &str) -> (Result<Request, Reject>, String) {
        read(&format!("POST /v1/responses HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n"))
    }

    #[test]
    fn the_head_begins_with_the_upstreams_target_and_host() {
        let url = UpstreamUrl::parse("https://a.b:8443/v1/responses?x=1").unwrap();
        assert_eq!(
            prefix(&url, &AuthHeader::parse("api-key: {}").unwrap()),
            "POST /v1/responses?x=1 HTTP/1.1\r\nHost: a.b:8443\r\nAccept-Encoding: identity\r\n\
             api-key: "
        );
    }

    #[test]
    fn fields_are_forwarded_in_order_and_spelling_and_framing_is_ours() {
        let (request, sent) = post(
            "X-a: 1\r\nACCEPT:  text/event-stream \r\nAuthorization: Bearer x\r\nX-A: 2\r\n\
             Content-Length: 007\r\nauthorization: y\r\nUser-Agent: me\r\n",
        );
        assert_eq!(request.unwrap().framing, Framing::Length(7));
        assert_eq!(
            sent,
            "X-a: 1\r\nACCEPT:  text/event-stream \r\nX-A: 2\r\nUser-Agent: me\r\n\
             Via: 1.1 relay\r\nContent-Length: 7\r\n\r\n"
        );
        let (_, sent) = post("Transfer-Encoding: Chunked\r\n");
        assert_eq!(sent, "Via: 1.1 relay\r\nTransfer-Encoding: chunked\r\n\r\n");
    }

    #[test]
    fn fields_of_this_connection_are_not_forwarded() {
        let (_, sent) = post(
            "Connection: x-foo, Keep-Alive, authorization, host, content-length\r\nX-Foo: 1\r\n\
             Keep-Alive: 5\r\nTE: trailers\r\nTrailer: X\r\nUpgrade: h2c\r\nProxy-Connection: x\r\n\
             Proxy-Authorization: Basic eDp5\r\nContent-Length: 3\r\nX-Bar: 2\r\n",
        );
        assert_eq!(sent, "X-Bar: 2\r\nVia: 1.1 relay\r\nContent-Length: 3\r\n\r\n");
    }

    #[test]
    fn the_field_that_carries_the_key_is_not_forwarded_in_any_spelling() {
        let policy = Policy { credential_field: Some(b"api-key"), ..Policy::default() };
        let (_, sent) = read_with(
            "POST /v1/responses HTTP/1.1\r\nHost: localhost\r\napi-key: 1\r\nAPI-Key: 2\r\n\
             X-Api-Key: 3\r\nAuthorization: Bearer x\r\nApi-Key2: 4\r\nExpect: 100-continue\r\n\r\n",
            policy,
        );
        assert_eq!(
            sent,
            "X-Api-Key: 3\r\nApi-Key2: 4\r\nVia: 1.1 relay\r\nContent-Length: 0\r\n\r\n"
        );
        let (_, sent) = post("api-key: 1\r\n");
        assert_eq!(sent, "api-key: 1\r\nVia: 1.1 relay\r\nContent-Length: 0\r\n\r\n");
    }

    #[test]
    fn foreign_callers_are_told_why() {
        let verdict = |text: &str| read(text).0.map(|request| request.verdict);
        for (fields, want) in [
            ("Host: evil.example\r\n", Ok(Err(Reject::HostNotAllowed))),
            ("Host: localhost\r\nOrigin: null\r\n", Ok(Err(Reject::OriginNotAllowed))),
            ("Host: localhost\r\nSec-Fetch-Site: cross-site\r\n", Ok(Err(Reject::CrossSite))),
            ("Host: localhost\r\nSec-Fetch-Site: same-site\r\n", Ok(Err(Reject::CrossSite))),
            ("Host: localhost\r\nSec-Fetch-Site: none\r\n", Ok(Ok(Route::Responses))),
            ("Host: localhost\r\nSec-Fetch-Site: same-origin\r\n", Ok(Ok(Route::Responses))),
            ("Host: localhost\r\nHost: localhost\r\n", Err(Reject::InvalidHost)),
            ("Host:\r\n", Err(Reject::InvalidHost)),
            ("", Err(Reject::InvalidHost)),
            ("Host: localhost\r\nExpect: 200-ok\r\n", Ok(Err(Reject::ExpectationFailed))),
        ] {
            assert_eq!(verdict(&format!("POST /v1/responses HTTP/1.1\r\n{fields}\r\n")), want);
        }
        assert_eq!(
            verdict("GET /shutdown HTTP/1.1\r\nHost: a.b\r\n\r\n"),
            Ok(Err(Reject::HostNotAllowed))
        );
        assert_eq!(verdict("POST /v1/responses HTTP/1.0\r\n\r\n"), Ok(Ok(Route::Responses)));
    }

    #[test]
    fn who_may_not_ask_is_told_so_on_every_route_but_after_the_guard() {
        let ask = |head: &str, context: RequestContext<'_>| {
            let policy = Policy { http_shutdown: true, ..Policy::default() };
            head::request(head.as_bytes(), &mut ScanProgress::default(), |head| {
                judge(&head, policy, &context, &mut GatherList::default())
            })
            .map(|request| request.unwrap().verdict)
            .unwrap()
        };
        let post = |fields: &str| {
            format!("POST /v1/responses HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n")
        };
        let (shutdown, foreign) = (
            "GET /shutdown HTTP/1.1\r\nHost: localhost\r\n\r\n",
            "POST /v1/responses HTTP/1.1\r\nHost: a.b\r\n\r\n",
        );
        let closed =
            RequestContext { closed: Some(Reject::RequestLimit), ..RequestContext::default() };
        assert_eq!(ask(&post(""), closed), Err(Reject::RequestLimit));
        assert_eq!(ask(shutdown, closed), Ok(Route::Shutdown));
        let token =
            RequestContext { token: Some(&|token| token == b"t"), ..RequestContext::default() };
        assert_eq!(ask(shutdown, token), Err(Reject::ClientToken));
        assert_eq!(ask(foreign, token), Err(Reject::HostNotAllowed));
        let with_token =
            "GET /shutdown HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer t\r\n\r\n";
        assert_eq!(ask(with_token, token), Ok(Route::Shutdown));
        for (fields, fine) in [
            ("Authorization: Bearer t\r\n", true),
            ("authorization: bearer t\r\n", true),
            ("", false),
            ("Authorization: Bearer\r\n", false),
            ("Authorization: t\r\n", false),
            ("Authorization: Basic t\r\n", false),
            ("Authorization: Bearer tt\r\n", false),
            ("Authorization: Bearer  t\r\n", false),
            ("Authorization: Bearer t\r\nAuthorization: Bearer t\r\n", false),
        ] {
            let want = if fine { Ok(Route::Responses) } else { Err(Reject::ClientToken) };
            assert_eq!(ask(&post(fields), token), want, "{fields}");
        }
    }

    #[test]
    fn a_websocket_is_told_apart_from_a_wrong_route() {
        let get = |fields: &str| {
            read(&format!("GET /v1/responses HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n"))
                .0
                .unwrap()
                .verdict
        };
        assert_eq!(get("Connection: Upgrade\r\nUpgrade: WebSocket\r\n"), Err(Reject::WebSocket));
        assert_eq!(get("Upgrade: websocket\r\n"), Err(Reject::RouteNotAllowed));
        assert_eq!(get("Connection: Upgrade\r\nUpgrade: h2c\r\n"), Err(Reject::RouteNotAllowed));
    }
}
