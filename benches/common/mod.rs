//! Inputs that several benches share.
#![allow(dead_code)]

/// A head as the Codex CLI sends it, padded to this many bytes.
pub fn codex_head(len: usize) -> Vec<u8> {
    let start = "POST /v1/responses HTTP/1.1\r\n\
        authorization: Bearer dummy\r\n\
        version: 0.169.0\r\n\
        x-codex-beta-features: unified_exec\r\n\
        session-id: 019ab6d4-5c5e-7f50-b5cb-6a4c5a0f9d11\r\n\
        accept: text/event-stream\r\n\
        content-type: application/json\r\n\
        user-agent: codex_exec/0.169.0 (Debian 12.0.0; x86_64) dumb (codex_exec; 0.169.0)\r\n\
        originator: codex_exec\r\n\
        host: 127.0.0.1:8080\r\n\
        content-length: 2048\r\n\
        x-codex-turn-metadata: ";
    let fill = "m".repeat(len - start.len() - 4);
    format!("{start}{fill}\r\n\r\n").into_bytes()
}

/// A head as the API sends it.
pub fn answer_head() -> Vec<u8> {
    b"HTTP/1.1 200 OK\r\n\
      Date: Tue, 24 Nov 2026 12:00:00 GMT\r\n\
      Content-Type: text/event-stream; charset=utf-8\r\n\
      Transfer-Encoding: chunked\r\n\
      Connection: keep-alive\r\n\
      openai-version: 2020-10-01\r\n\
      openai-organization: org-example\r\n\
      openai-processing-ms: 120\r\n\
      x-request-id: req_0123456789abcdef0123456789abcdef\r\n\
      x-ratelimit-remaining-requests: 9999\r\n\
      Strict-Transport-Security: max-age=31536000; includeSubDomains; preload\r\n\
      X-Content-Type-Options: nosniff\r\n\r\n"
        .to_vec()
}

/// A chunked body with this many chunks of one size.
pub fn chunked(size: usize, count: usize) -> Vec<u8> {
    let chunk = [format!("{size:x}\r\n").as_bytes(), &vec![b'd'; size], b"\r\n"].concat();
    [chunk.repeat(count), b"0\r\n\r\n".to_vec()].concat()
}
