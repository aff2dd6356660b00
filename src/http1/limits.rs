//! Every bound on what a peer can make this program hold, in one place.
//!
//! Each is tested at n and n + 1.

/// Bytes of a request or response head, from the first byte of the start line to the end of the
/// empty line; also of a trailer section.
pub const HEAD: usize = 64 * 1024;
/// Bytes of all request heads that are buffered at one time: unfinished ones, and those that wait for
/// an upstream connection. Beyond, the oldest unfinished one gets 408.
pub const HEADS: usize = 32 * 1024 * 1024;
/// All pauses of one request body together may last so many times `--client-timeout`, and a second
/// more for each [`UPLOAD_RATE`] bytes.
pub const UPLOAD_PATIENCE: u32 = 5;
/// Bytes of a request body that make up for a second of its pauses.
pub const UPLOAD_RATE: u32 = 500;
/// Bytes of a request line, without its CRLF.
pub const REQUEST_LINE: usize = 8 * 1024;
/// How often the bytes of a head that arrives in parts are parsed, on average, before it is complete.
pub const HEAD_REPARSES: usize = 16;
/// Field lines in a head, and in a trailer section.
pub const FIELDS: usize = 128;
/// Connection options in one head; more are refused rather than searched.
pub const CONNECTION_OPTIONS: usize = 64;
/// Bytes of chunk extensions on one chunk-size line, white space included.
pub const CHUNK_EXT: usize = 256;
/// Hexadecimal digits of a chunk size.
pub const CHUNK_DIGITS: u8 = 16;
/// Interim (1xx) responses passed on for one request.
pub const INTERIM: u8 = 64;
/// Body bytes read and dropped to keep a connection usable after an early refusal.
pub const DROP: u64 = 64 * 1024;
/// Bytes of an upstream's request id that the access log repeats.
pub const REQUEST_ID: usize = 64;
/// Digits of a Retry-After that the access log repeats: up to eleven days in seconds.
pub const RETRY_AFTER_DIGITS: usize = 6;
/// Bytes up to which a range of the input is copied into a gather list. Longer ranges are referenced.
pub const GATHER_COPY: usize = 512;
/// Segments of a gather list. So many slices for one `writev` fit on the stack.
pub const GATHER_SEGMENTS: usize = 96;
/// Bytes of a gather list's own text. One more segment may follow.
pub const GATHER_TEXT: usize = 16 * 1024;
/// Plaintext bytes of one TLS record (RFC 8446 §5.1).
pub const RECORD: usize = 16 * 1024;
/// Bytes of the API key together with `Bearer `.
pub const KEY: usize = 1024;
/// Bytes of the API key with `--allow-token68`.
pub const TOKEN68: usize = 8 * 1024;
/// Bytes of the value of `--auth-header`.
pub const AUTH_HEADER: usize = 128;
/// Client connections at one time, where `--max-connections` does not say otherwise.
pub const CONNECTIONS: usize = 1024;
/// Bytes of the upstream URL.
pub const URL: usize = 4096;

/// The block (request line, Host, the key's field) fits into one record and leaves room for fields,
/// however long its parts are. The URL's bytes are in it once; the 128 are for the words between them.
const _: () = assert!(URL + AUTH_HEADER + TOKEN68 + 128 <= RECORD - 3 * 1024);
