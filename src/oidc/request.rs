//! The two requests, written into a buffer of the caller.

use super::{Step, TokenExchange};
use crate::http1::url::UpstreamUrl;

/// The request does not fit into the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;

/// Writes the request of a step into `room` and returns its length. `token` is GitHub's request
/// token for the first step and the ID token for the second. Both are token68: no byte of them needs
/// an escape.
pub fn write(
    step: Step,
    exchange: &TokenExchange,
    token: &[u8],
    room: &mut [u8],
) -> Result<usize, NoRoom> {
    let mut sink = Sink { room, len: 0 };
    match step {
        Step::IdToken => id_token(exchange, token, &mut sink)?,
        Step::AccessToken => access_token(exchange, token, &mut sink)?,
    }
    Ok(sink.len)
}

/// A buffer that is filled from its beginning.
struct Sink<'a> {
    room: &'a mut [u8],
    len: usize,
}

impl Sink<'_> {
    #[inline(never)]
    fn put(&mut self, bytes: &[u8]) -> Result<(), NoRoom> {
        let end = self.len + bytes.len();
        self.room.get_mut(self.len..end).ok_or(NoRoom)?.copy_from_slice(bytes);
        self.len = end;
        Ok(())
    }

    fn all(&mut self, parts: &[&[u8]]) -> Result<(), NoRoom> {
        parts.iter().try_for_each(|part| self.put(part))
    }
}

/// Fields of both requests.
const COMMON: &[u8] = b"Accept: application/json\r\nAccept-Encoding: identity\r\n\
    User-Agent: codex-responses-api-proxy\r\nConnection: close\r\n";

fn id_token(exchange: &TokenExchange, token: &[u8], out: &mut Sink<'_>) -> Result<(), NoRoom> {
    let UpstreamUrl { path_and_query, .. } = &exchange.request_url;
    let joint: &[u8] = if path_and_query.contains('?') { b"&" } else { b"?" };
    out.all(&[b"GET ", path_and_query.as_bytes(), joint, b"audience="])?;
    for byte in exchange.audience.bytes() {
        percent_encode(byte, out)?;
    }
    out.all(&[b" HTTP/1.1\r\nHost: ", exchange.request_url.authority().as_bytes()])?;
    out.all(&[b"\r\nAuthorization: bearer ", token, b"\r\n", COMMON, b"\r\n"])
}

/// Writes a byte of a query value (RFC 3986 §2.1). Only unreserved characters stand for themselves.
fn percent_encode(byte: u8, out: &mut Sink<'_>) -> Result<(), NoRoom> {
    if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
        return out.put(&[byte]);
    }
    out.put(&[b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]])
}

const HEX: &[u8; 16] = b"0123456789ABCDEF";

fn access_token(exchange: &TokenExchange, token: &[u8], out: &mut Sink<'_>) -> Result<(), NoRoom> {
    let UpstreamUrl { path_and_query, .. } = &exchange.token_url;
    let mut length = 0;
    body(exchange, token, &mut |bytes| {
        length += bytes.len();
        Ok(())
    })?;
    out.all(&[b"POST ", path_and_query.as_bytes()])?;
    out.all(&[b" HTTP/1.1\r\nHost: ", exchange.token_url.authority().as_bytes()])?;
    out.all(&[b"\r\nContent-Type: application/json\r\nContent-Length: "])?;
    out.put(length.to_string().as_bytes())?;
    out.all(&[b"\r\n", COMMON, b"\r\n"])?;
    body(exchange, token, &mut |bytes| out.put(bytes))
}

/// The JSON of a token exchange (RFC 8693 §2.1), piece by piece.
fn body(
    exchange: &TokenExchange,
    token: &[u8],
    put: &mut dyn FnMut(&[u8]) -> Result<(), NoRoom>,
) -> Result<(), NoRoom> {
    put(b"{\"grant_type\":\"urn:ietf:params:oauth:grant-type:token-exchange\",")?;
    put(b"\"subject_token_type\":\"urn:ietf:params:oauth:token-type:jwt\",\"subject_token\":\"")?;
    put(token)?;
    put(b"\",\"identity_provider_id\":\"")?;
    escape(&exchange.identity_provider_id, put)?;
    put(b"\",\"service_account_id\":\"")?;
    escape(&exchange.service_account_id, put)?;
    put(b"\"}")
}

/// Writes a text as the inside of a JSON string (RFC 8259 §7).
fn escape(text: &str, put: &mut dyn FnMut(&[u8]) -> Result<(), NoRoom>) -> Result<(), NoRoom> {
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => put(&[b'\\', byte])?,
            0..0x20 => {
                put(b"\\u00")?;
                put(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]])?;
            }
            _ => put(&[byte])?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::limits::{TOKEN68, URL};
    use crate::oidc::limits;

    fn exchange(url: &str, audience: &str, id: &str) -> TokenExchange {
        TokenExchange {
            request_url: UpstreamUrl::parse(url).unwrap(),
            audience: audience.into(),
            token_url: UpstreamUrl::parse(url).unwrap(),
            identity_provider_id: id.into(),
            service_account_id: id.into(),
        }
    }

    fn text(step: Step, exchange: &TokenExchange, token: &str) -> String {
        let mut room = vec![0; limits::REQUEST];
        let len = write(step, exchange, token.as_bytes(), &mut room).unwrap();
        String::from_utf8(room[..len].to_vec()).unwrap()
    }

    #[test]
    fn the_first_request_is_these_bytes() {
        for (url, audience, target, host) in [
            (
                "https://a.b/x?y=1",
                "https://api.openai.com/v1",
                "/x?y=1&audience=https%3A%2F%2Fapi.openai.com%2Fv1",
                "a.b",
            ),
            ("https://a.b:8443/x", "a b&c=d+e%", "/x?audience=a%20b%26c%3Dd%2Be%25", "a.b:8443"),
            ("http://127.0.0.1:9/", "\u{e9}-._~\r\n", "/?audience=%C3%A9-._~%0D%0A", "127.0.0.1:9"),
        ] {
            let want = format!(
                "GET {target} HTTP/1.1\r\nHost: {host}\r\nAuthorization: bearer ey.request\r\n\
                 Accept: application/json\r\nAccept-Encoding: identity\r\n\
                 User-Agent: codex-responses-api-proxy\r\nConnection: close\r\n\r\n"
            );
            assert_eq!(text(Step::IdToken, &exchange(url, audience, "i"), "ey.request"), want);
        }
    }

    #[test]
    fn the_second_request_is_these_bytes() {
        for (id, escaped) in
            [("idp_1", "idp_1"), ("a\"b\\c\u{1}\n\u{e9}/", "a\\\"b\\\\c\\u0001\\u000A\u{e9}/")]
        {
            let body = format!(
                "{{\"grant_type\":\"urn:ietf:params:oauth:grant-type:token-exchange\",\
                 \"subject_token_type\":\"urn:ietf:params:oauth:token-type:jwt\",\
                 \"subject_token\":\"ey.id.token\",\"identity_provider_id\":\"{escaped}\",\
                 \"service_account_id\":\"{escaped}\"}}"
            );
            let want = format!(
                "POST /oauth/token HTTP/1.1\r\nHost: a.b\r\nContent-Type: application/json\r\n\
                 Content-Length: {}\r\nAccept: application/json\r\nAccept-Encoding: identity\r\n\
                 User-Agent: codex-responses-api-proxy\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            let exchange = exchange("https://a.b/oauth/token", "x", id);
            assert_eq!(text(Step::AccessToken, &exchange, "ey.id.token"), want);
        }
    }

    #[test]
    fn the_longest_requests_fit_and_no_room_is_an_error() {
        let url = format!("https://a.b/{}", "x".repeat(URL - 12));
        let exchange = exchange(&url, &"/".repeat(limits::ID), &"\u{1}".repeat(limits::ID));
        let token = vec![b't'; TOKEN68];
        for step in [Step::IdToken, Step::AccessToken] {
            let mut room = vec![0; limits::REQUEST];
            let len = write(step, &exchange, &token, &mut room).unwrap();
            assert_eq!(write(step, &exchange, &token, &mut room[..len]), Ok(len));
            assert_eq!(write(step, &exchange, &token, &mut room[..len - 1]), Err(NoRoom));
        }
    }
}
