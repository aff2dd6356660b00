//! Tests `--github-oidc` up to the first token: both requests, what their responses may be, and how
//! the start ends without a token.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::check::enough;
use super::detach::detach;
use super::proxy::{ESTABLISHED, fake, join};
use super::support::relay::{Starter, random_hex};
use super::support::upstream::Kind;
use super::support::{Gate, Peer, Relay, Upstream, certs, ok, pace, post, wait_for};

/// A 200 with this JSON.
pub fn json(body: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The secrets of one test.
#[derive(Clone)]
pub struct Tokens {
    pub request: String,
    pub id: String,
    access: String,
}

impl Tokens {
    pub fn new() -> Tokens {
        let [request, id, access] =
            ["request", "id", "access"].map(|kind| format!("ey{kind}.{}", random_hex()));
        Tokens { request, id, access }
    }

    /// The access token of this number, from 1 on.
    pub fn access(&self, number: usize) -> String {
        format!("{}.{number}-{}", self.access, &self.access[8..])
    }

    /// GitHub's response.
    pub fn id_response(&self) -> String {
        json(&format!(r#"{{"count":4711,"value":"{}"}}"#, self.id))
    }

    /// The response of the token endpoint.
    pub fn access_response(&self, number: usize, lifetime: u64) -> String {
        json(&format!(
            r#"{{"access_token":"{}","issued_token_type":"urn:ietf:params:oauth:token-type:access_token","token_type":"Bearer","expires_in":{lifetime}}}"#,
            self.access(number)
        ))
    }
}

/// An endpoint of a provider, with the requests that it has seen.
pub struct Endpoint {
    pub upstream: Upstream,
    seen: Arc<Mutex<Vec<String>>>,
    requests: Gate<usize>,
}

impl Endpoint {
    /// Calls `respond` with the number of each request, from 1 on. Preconnects are served too.
    pub fn new(respond: impl Fn(usize, &mut Peer) + Send + Sync + 'static) -> Endpoint {
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let (tell, requests) = Gate::pair();
        let all = seen.clone();
        let upstream = Upstream::tls(move |peer| {
            let Some(head) = peer.head() else { return };
            let length = super::support::client::fields(&head, "content-length");
            let length: usize = length.first().map_or(0, |length| length.parse().unwrap());
            let body = String::from_utf8(peer.take(length)).unwrap();
            let number = {
                let mut all = all.lock().unwrap();
                all.push(head + &body);
                all.len()
            };
            tell.pass(number);
            respond(number, peer);
        });
        Endpoint { upstream, seen, requests }
    }

    /// Sends this response to every request.
    pub fn answering(response: impl Fn(usize) -> String + Send + Sync + 'static) -> Endpoint {
        Endpoint::new(move |number, peer| {
            peer.try_write(response(number));
        })
    }

    /// The requests so far.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    /// Waits for the next request and returns its number.
    #[track_caller]
    pub fn wait(&self) -> usize {
        self.requests.wait()
    }
}

/// The API. The response to a request is the number of the access token that it carries.
pub fn api(tokens: &Tokens) -> Upstream {
    let tokens = tokens.clone();
    Upstream::tls(move |peer| {
        while let Some(request) = peer.request() {
            let number = number_of(&tokens, &request.head);
            peer.write(ok(&number.to_string()));
        }
    })
}

/// The number of the access token in this head.
pub fn number_of(tokens: &Tokens, head: &str) -> usize {
    let field = |number| format!("Authorization: Bearer {}\r\n", tokens.access(number));
    let number = (1..100).find(|number| head.contains(&field(*number)));
    number.expect("no access token is carried")
}

/// A relay with these endpoints.
pub fn relay(tokens: &Tokens, github: &Endpoint, provider: &Endpoint, api: &Upstream) -> Starter {
    let url = |endpoint: &Endpoint, path: &str| {
        format!("https://localhost:{}{path}", endpoint.upstream.port)
    };
    Relay::to(&api.url())
        .args(["--github-oidc", "--oidc-audience", "https://api.openai.com/v1"])
        .args(["--identity-provider-id", "idp_\"1\"", "--service-account-id", "sa-2"])
        .args(["--github-oidc-request-url", &url(github, "/_apis/token?api-version=2.0")])
        .args(["--oidc-token-url", &url(provider, "/oauth/token")])
        .key(&tokens.request)
}

/// Endpoints that give tokens of this lifetime.
pub fn endpoints(tokens: &Tokens, lifetime: u64) -> (Endpoint, Endpoint) {
    let (first, second) = (tokens.clone(), tokens.clone());
    (
        Endpoint::answering(move |_| first.id_response()),
        Endpoint::answering(move |number| second.access_response(number, lifetime)),
    )
}

#[test]
fn both_requests_are_these_bytes_and_a_client_gets_the_access_token_only() {
    let tokens = Tokens::new();
    let (github, provider) = endpoints(&tokens, 900);
    let api = api(&tokens);
    let relay = relay(&tokens, &github, &provider, &api).args(["--access-log"]).start();
    let response = relay.connect().send(post("", "{}")).response();
    assert_eq!((response.status, response.text()), (200, "1"));
    let common = "Accept: application/json\r\nAccept-Encoding: identity\r\n\
                  User-Agent: codex-responses-api-proxy\r\nConnection: close\r\n\r\n";
    let want = format!(
        "GET /_apis/token?api-version=2.0&audience=https%3A%2F%2Fapi.openai.com%2Fv1 HTTP/1.1\r\n\
         Host: localhost:{}\r\nAuthorization: bearer {}\r\n{common}",
        github.upstream.port, tokens.request
    );
    assert!(github.seen() == [want], "another first request");
    let body = format!(
        r#"{{"grant_type":"urn:ietf:params:oauth:grant-type:token-exchange","subject_token_type":"urn:ietf:params:oauth:token-type:jwt","subject_token":"{}","identity_provider_id":"idp_\"1\"","service_account_id":"sa-2"}}"#,
        tokens.id
    );
    let want = format!(
        "POST /oauth/token HTTP/1.1\r\nHost: localhost:{}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n{common}{body}",
        provider.upstream.port,
        body.len()
    );
    assert!(provider.seen() == [want], "another second request");
    let request = &api.requests()[0];
    assert!(!request.head.contains(&tokens.request) && !request.head.contains(&tokens.id));
}

/// Responses of both endpoints, for each connection.
type Responses = (String, String);

/// Runs a start that must fail, and returns what it says.
fn fails(tokens: &Tokens, responses: Responses) -> String {
    let (first, second) = responses;
    let github = Endpoint::answering(move |_| first.clone());
    let provider = Endpoint::answering(move |_| second.clone());
    let api = api(tokens);
    let starter = relay(tokens, &github, &provider, &api);
    let (code, out, err) = starter.run(format!("{}\n", tokens.request).as_bytes());
    assert_eq!((code, out.as_str()), (1, ""), "{err}");
    assert_eq!(api.connections(), 0);
    for secret in [&tokens.request, &tokens.id, &tokens.access(1)] {
        assert!(!err.contains(secret), "a token is shown");
    }
    let reason = err.strip_prefix("codex-responses-api-proxy: error: --github-oidc: ");
    let reason = reason.unwrap_or_else(|| panic!("{err}"));
    assert_eq!(reason.lines().count(), 1, "{err}");
    reason.trim_end().to_owned()
}

#[test]
fn a_start_without_a_token_says_the_step_the_status_and_the_word_and_nothing_that_came() {
    let tokens = Tokens::new();
    let good = tokens.id_response();
    let access = tokens.access_response(1, 900);
    let status = |line: &str, body: &str| {
        format!("HTTP/1.1 {line}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    let of_id = tokens.id.clone();
    let first = |response: String, want: &'static str| ((response, access.clone()), 1, want);
    let second = |response: String, want: &'static str| ((good.clone(), response), 2, want);
    let changed = |from: &str, to: &str| {
        let body = access.split_once("\r\n\r\n").unwrap().1;
        assert!(body.contains(from), "{from}");
        json(&body.replacen(from, to, 1))
    };
    for (responses, step, want) in [
        first(
            status("401 Unauthorized", "{\"error\":\"invalid_token\"}"),
            "HTTP status 401, invalid_token",
        ),
        first(status("403 Forbidden", &format!("{{\"error\":\"{of_id}\"}}")), "HTTP status 403"),
        first(status("500 No", "<html>sk-secret</html>"), "HTTP status 500"),
        first(status("204 No Content", ""), "HTTP status 204"),
        first(json("[]"), "the response is not one JSON object"),
        first(json("{}"), "the response has no token"),
        first(json("{\"value\":1}"), "the response has no token"),
        first(
            json("{\"value\":\"a b\"}"),
            "the token has bytes that no token has, or more than 8192",
        ),
        first(
            json(&format!("{{\"value\":\"{}\"}}", "a".repeat(8193))),
            "the token has bytes that no",
        ),
        first(
            json(&format!("{{\"x\":\"{}\"}}", "a".repeat(65_536))),
            "the response is longer than 64",
        ),
        first(
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{".into(),
            "the connection ended within the response",
        ),
        first("HTTP/1.1 200 OK\nA: b\n\n".into(), "the response is not well-formed HTTP/1.1"),
        first("SSH-2.0-OpenSSH_9\r\n".into(), "the response is not well-formed HTTP/1.1"),
        first(String::new(), "the connection ended within the response"),
        second(
            status("400 Bad", "{\"error\":\"invalid_grant\"}"),
            "HTTP status 400, invalid_grant",
        ),
        second(
            status("429 No", "{\"error\":{\"code\":\"rate_limited\"}}"),
            "HTTP status 429, rate_limited",
        ),
        second(changed("\"Bearer\"", "\"mac\""), "token_type is not Bearer"),
        second(
            changed("access_token\",", "refresh_token\","),
            "token_type is not Bearer, or issued",
        ),
        second(changed("900", "\"900\""), "expires_in is no whole number"),
        second(changed(":900", ":0"), "expires_in is no whole number"),
        second(changed("expires_in", "x"), "expires_in is no whole number"),
        second(changed("\"access_token\":", "\"a\":"), "the response has no token"),
        second(changed("{", "{\"access_token\":\"other\","), "the response is not one JSON object"),
    ] {
        let reason = fails(&tokens, responses);
        let said = format!("step {step}, ");
        assert!(reason.starts_with(&said) && reason.contains(want), "{reason}\nnot {want}");
    }
}

#[test]
fn an_error_word_that_is_a_part_of_a_token_is_not_shown() {
    let tokens = Tokens::new();
    for word in ["eyrequest", "eyid"] {
        assert!(tokens.request.contains(word) || tokens.id.contains(word));
        let body = format!("{{\"error\":\"{word}\"}}");
        let refusal = format!("HTTP/1.1 403 No\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let reason = fails(&tokens, (tokens.id_response(), refusal.clone()));
        assert_eq!(reason, "step 2, the access token: HTTP status 403");
        if word == "eyrequest" {
            let reason = fails(&tokens, (refusal, String::new()));
            assert_eq!(reason, "step 1, GitHub's ID token: HTTP status 403");
        }
    }
}

#[test]
fn too_little_locked_memory_is_told_with_what_is_enough_for_the_relay_too() {
    // It ends before a connection is made.
    let args = "--github-oidc --oidc-audience=a --identity-provider-id=i --service-account-id=s \
                --github-oidc-request-url=https://localhost:1/";
    let starter = Relay::bare().args(args.split(' '));
    let (code, _, err) = starter.locked_memory(0).run(b"token\n");
    let start = "codex-responses-api-proxy: error: --github-oidc: no memory fit to hold tokens; ";
    assert!(code == 1 && err.starts_with(start), "{code}: {err}");
    let (_, _, of_relay) = Relay::bare().args(["--rotate"]).locked_memory(0).run(b"");
    assert!(enough(&of_relay).is_some(), "{of_relay}");
    assert_eq!(enough(&err), enough(&of_relay));
}

#[test]
fn a_redirect_is_not_followed() {
    let tokens = Tokens::new();
    let (elsewhere, tell) = Gate::pair();
    let target = Upstream::tls(move |_| tell.signal());
    for status in [301, 302, 303, 307, 308] {
        let redirect = format!(
            "HTTP/1.1 {status} Moved\r\nLocation: https://localhost:{}/\r\nContent-Length: 0\r\n\r\n",
            target.port
        );
        let reason = fails(&tokens, (redirect.clone(), redirect.clone()));
        assert_eq!(reason, format!("step 1, GitHub's ID token: HTTP status {status}"));
        let reason = fails(&tokens, (tokens.id_response(), redirect));
        assert_eq!(reason, format!("step 2, the access token: HTTP status {status}"));
    }
    assert_eq!(target.connections(), 0);
    assert!(elsewhere.drain().is_empty());
}

#[test]
fn a_response_of_every_framing_and_pace_is_read() {
    let tokens = Tokens::new();
    let id = format!("{{\"value\":\"{}\"}}", tokens.id);
    let (a, b) = id.split_at(9);
    let chunked = format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x};a=b\r\n{a}\r\n{:X}\r\n{b}\r\n0\r\nA: b\r\n\r\n",
        a.len(),
        b.len()
    );
    let interim = format!("HTTP/1.1 103 Early\r\nLink: x\r\n\r\n{}", json(&id));
    let until_close = format!("HTTP/1.1 200 OK\r\n\r\n{id}");
    let escaped = json(&id.replace('.', "\\u002e"));
    type Send = fn(&mut Peer, &str);
    let whole: Send = |peer, text| peer.write(text);
    let bytes: Send = |peer, text| text.bytes().for_each(|byte| peer.write([byte]));
    let closing: Send = |peer, text| {
        peer.write(text);
        peer.close();
    };
    for (response, send) in [
        (&chunked, whole),
        (&chunked, bytes),
        (&interim, whole),
        (&until_close, closing),
        (&escaped, whole),
    ] {
        let response = response.clone();
        let github = Endpoint::new(move |_, peer| send(peer, &response));
        let (_, provider) = endpoints(&tokens, 900);
        let api = api(&tokens);
        let relay = relay(&tokens, &github, &provider, &api).start();
        assert_eq!(relay.connect().send(post("", "{}")).response().text(), "1");
        assert!(provider.seen()[0].contains(&tokens.id), "another ID token");
    }
}

#[test]
fn an_endpoint_that_cannot_be_trusted_or_reached_is_told_and_gets_no_token() {
    let tokens = Tokens::new();
    let (good, provider) = endpoints(&tokens, 900);
    let api = api(&tokens);
    for (kind, want) in [
        (Kind::UnknownIssuer, "no connection (upstream_tls_unknown_issuer)"),
        (Kind::Expired, "no connection (upstream_tls_expired)"),
        (Kind::WrongName, "no connection (upstream_tls_wrong_name)"),
    ] {
        let config = certs().config(kind, rustls::ALL_VERSIONS);
        let upstream = Upstream::new(Some(config), |_| panic!("the handshake is complete"));
        let bad = Endpoint { upstream, ..Endpoint::answering(|_| String::new()) };
        for (github, provider, step) in [(&bad, &provider, 1), (&good, &bad, 2)] {
            let starter = relay(&tokens, github, provider, &api);
            let (code, _, err) = starter.run(format!("{}\n", tokens.request).as_bytes());
            assert_eq!(code, 1, "{err}");
            let step = format!("step {step}, ");
            assert!(err.contains(&step) && err.contains(want), "{err}");
        }
    }
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let starter = relay(&tokens, &good, &provider, &api);
    let url = format!("https://127.0.0.1:{port}/");
    let starter = starter.command(|command| {
        let args: Vec<_> = command.get_args().map(|arg| arg.to_owned()).collect();
        let at = args.iter().position(|arg| arg == "--oidc-token-url").unwrap();
        let program = command.get_program().to_owned();
        let mut changed = std::process::Command::new(program);
        changed.args(&args[..=at]).arg(&url).args(&args[at + 2..]).env_clear();
        *command = changed;
    });
    let (code, _, err) = starter.run(format!("{}\n", tokens.request).as_bytes());
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("step 2, the access token: no connection (upstream_refused)"), "{err}");
}

#[test]
fn a_request_token_that_is_none_ends_the_start_before_any_connection() {
    let tokens = Tokens::new();
    let (github, provider) = endpoints(&tokens, 900);
    let api = api(&tokens);
    let long = "a".repeat(8193);
    for (input, want) in [
        ("", "GitHub's request token must be provided via stdin"),
        ("\n", "GitHub's request token must be provided via stdin"),
        ("two words\n", "the request token on stdin has a byte that no token has"),
        (long.as_str(), "the request token on stdin is too large: at most 8192 bytes"),
    ] {
        let (code, _, err) = relay(&tokens, &github, &provider, &api).run(input.as_bytes());
        assert_eq!(code, 1, "{err}");
        assert!(err.contains(&format!("error: --github-oidc: {want}")), "{err}");
    }
    assert_eq!(github.upstream.connections(), 0);
}

#[test]
fn the_first_exchange_has_eight_seconds_for_both_steps() {
    let tokens = Tokens::new();
    // The first step takes more than half of the time, the second never ends.
    let id = tokens.id_response();
    let github = Endpoint::new(move |_, peer| {
        pace(Duration::from_secs(5));
        peer.write(&id);
    });
    let provider = Endpoint::new(|_, peer| {
        peer.try_write("HTTP/1.1 200 OK\r\n");
        peer.closed();
    });
    let api = api(&tokens);
    let begun = Instant::now();
    let starter = relay(&tokens, &github, &provider, &api);
    let (code, _, err) = starter.run(format!("{}\n", tokens.request).as_bytes());
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("step 2, the access token: no response in time"), "{err}");
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(8) && took < Duration::from_secs(40), "{took:?}");
}

#[test]
fn both_hosts_are_reached_through_the_egress_proxy_which_resolves_their_names() {
    let tokens = Tokens::new();
    let (id, access) = (tokens.clone(), tokens.clone());
    // One server for both, which a proxy alone can find.
    let both = Endpoint::answering(move |number| match number % 2 {
        1 => id.id_response(),
        _ => access.access_response(number / 2, 900),
    });
    let port = both.upstream.port;
    let proxy = fake(move |stream| {
        stream.write_all(ESTABLISHED.as_bytes()).unwrap();
        join(stream, port);
    });
    let api = api(&tokens);
    let password = random_hex();
    let relay = Relay::to(&api.url())
        .args(["--github-oidc", "--oidc-audience", "a", "--identity-provider-id", "i"])
        .args(["--service-account-id", "s", "--github-oidc-request-url"])
        .args([&format!("https://upstream.test:{port}/x"), "--oidc-token-url"])
        .args([&format!("https://upstream.test:{port}/y")])
        .env("https_proxy", &format!("http://user:{password}@127.0.0.1:{}", proxy.port))
        .key(&tokens.request)
        .start();
    assert_eq!(relay.connect().send(post("", "{}")).response().text(), "1");
    for _ in 0..2 {
        let head = proxy.requests.wait();
        let want =
            format!("CONNECT upstream.test:{port} HTTP/1.1\r\nHost: upstream.test:{port}\r\n");
        assert!(head.starts_with(&want) && head.contains("Proxy-Authorization: Basic "), "{want}");
        assert!(!head.contains(&tokens.request));
    }
    assert_eq!(both.seen().len(), 2);
}

#[test]
fn a_detached_relay_leaves_its_starter_and_renews_its_key() {
    let tokens = Tokens::new();
    let (github, provider) = endpoints(&tokens, 2);
    let api = api(&tokens);
    let (relay, err) =
        detach("oidc-detached", relay(&tokens, &github, &provider, &api), &tokens.request);
    assert!(err.contains("the key comes by GitHub's OIDC and is renewed"), "{err}");
    let ask = || relay.connect().send(post("", "{}")).response().text().parse::<usize>();
    while provider.wait() < 3 {}
    wait_for(|| ask().is_ok_and(|number| number >= 3));
}

#[test]
fn a_detached_start_without_a_token_fails_with_the_reason() {
    let tokens = Tokens::new();
    let (_, provider) = endpoints(&tokens, 2);
    let refused = "HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n";
    let github = Endpoint::answering(move |_| refused.to_owned());
    let starter = relay(&tokens, &github, &provider, &api(&tokens)).args(["--detach"]);
    let (code, _, err) = starter.run(format!("{}\n", tokens.request).as_bytes());
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("--github-oidc: step 1, GitHub's ID token: HTTP status 401"), "{err}");
}

#[test]
fn check_says_that_no_exchange_is_tried() {
    let tokens = Tokens::new();
    let (github, provider) = endpoints(&tokens, 2);
    let api = api(&tokens);
    let (code, out, err) = relay(&tokens, &github, &provider, &api).args(["--check"]).run(b"");
    assert_eq!(code, 0, "{err}");
    assert!(
        out.contains("\noidc        not tried: an exchange needs GitHub's request token"),
        "{out}"
    );
    assert_eq!(github.upstream.connections() + provider.upstream.connections(), 0);
}
