//! Bounds on the bytes and counts of HTTP messages, and a few that sockets, TLS and the key share
//! with them. Each is tested at n and n + 1.

/// Bytes of a request or response head, from the first byte of the start line to the end of the
/// empty line; also of a trailer section.
pub const HEAD: usize = 64 * 1024;
/// Bytes of all request heads that are buffered at one time: incomplete heads, and heads that wait
/// for an upstream connection. Beyond the limit, the oldest incomplete head gets 408.
pub const HEADS: usize = 32 * 1024 * 1024;
/// The pauses of one request body may add up to this many times `--client-timeout`, plus one second
/// for each [`UPLOAD_RATE`] bytes.
pub const UPLOAD_PATIENCE: u32 = 5;
/// Bytes of a request body that allow one second more of pauses.
pub const UPLOAD_RATE: u32 = 500;
/// Bytes of a request line, without its CRLF.
pub const REQUEST_LINE: usize = 8 * 1024;
/// How often the bytes of a head that arrives in parts are parsed, on average, before the head is
/// complete.
pub const HEAD_REPARSES: usize = 16;
/// Field lines in a head, and in a trailer section.
pub const FIELDS: usize = 128;
/// Connection options in one head.
pub const CONNECTION_OPTIONS: usize = 64;
/// Bytes of chunk extensions on one chunk-size line, white space included.
pub const CHUNK_EXT: usize = 256;
/// Hexadecimal digits of a chunk size.
pub const CHUNK_DIGITS: u8 = 16;
/// Interim (1xx) responses passed on for one request.
pub const INTERIM: u8 = 64;
/// Bytes of a refused body that are read and dropped, so that the connection can be used again.
pub const DROP: u64 = 64 * 1024;
/// Bytes of an upstream's request id that the access log repeats.
pub const REQUEST_ID: usize = 64;
/// Digits of a Retry-After that the access log repeats: up to eleven days in seconds.
pub const RETRY_AFTER_DIGITS: usize = 6;
/// Up to this length, ranges of the input are copied into a gather list. Longer ones are
/// referenced.
pub const GATHER_COPY: usize = 512;
/// Segments of a gather list; their slices lie on the stack for `writev`.
pub const GATHER_SEGMENTS: usize = 96;
/// Bytes of a gather list's own text. One more segment may follow.
pub const GATHER_TEXT: usize = 16 * 1024;
/// Plaintext bytes of one TLS record (RFC 8446 §5.1).
pub const RECORD: usize = 16 * 1024;
/// Bytes of the API key together with `Bearer `.
pub const KEY: usize = 1024;
/// Bytes of the API key with `--allow-token68`.
pub const TOKEN68: usize = 8 * 1024;
/// Keys that are in memory at one time with `--rotate`: the current one, older ones that exchanges
/// under way carry, and always a free one for the next key.
pub const KEY_SETS: usize = 8;
/// Bytes of the value of `--auth-header`.
pub const AUTH_HEADER: usize = 128;
/// Client connections at one time, unless `--max-connections` says otherwise.
pub const CONNECTIONS: usize = 1024;
/// Bytes of the upstream URL.
pub const URL: usize = 4096;

/// The credential block (request line, Host, the key's field) fits into one record, with space left
/// for fields, however long its parts are. It contains the bytes of the URL once; 128 bytes are for
/// the words in between.
const _: () = assert!(URL + AUTH_HEADER + TOKEN68 + 128 <= RECORD - 3 * 1024);
