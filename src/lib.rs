//! A relay that lets a local user spend an API key without being able to learn it.
//!
//! The relay accepts `POST /v1/responses` in plain HTTP/1.1 on 127.0.0.1. It adds
//! `Authorization: Bearer KEY`, speaks TLS to one upstream and streams the response back.
//! Everything else is refused.
//!
//! # The path of one request
//!
//! ```text
//!  client                                                                        upstream
//!    │ bytes                                                                         ▲
//!    ▼                                                                               │
//!  net::socket::read                                                   net::socket::write
//!    ▼                                                                               ▲
//!  net::session::upload                                              net::tls::Tls::encrypt
//!    ▼                                                                               ▲
//!  http1::exchange (request) ─► head, framing, request ─► gather ─► net::upstream::Connection
//!                                                                  Credential::splice_into
//!
//!  http1::exchange (response) ◄─ net::tls::Tls::decrypt ◄─ net::upstream::Connection ◄─ response ┘
//!    ▼ response, chunked ─► KeyRing::reflected, for each piece
//!  net::session::download ─► gather ─► net::socket::write ─► client
//! ```
//!
//! [`EventLoop::run`](net::event_loop::EventLoop::run) is the loop of this process. One pass: poll,
//! note events, replace the key, advance unowned upstream connections, accept, one turn for each
//! ready session, deadlines, drain. The connector has a loop of its own.
//!
//! An accepted connection has its first turn at once. If no upstream connection is idle, the relay
//! makes one at the same time (preconnect). A request that finds none ready waits. Its head is then
//! parsed again from its beginning, because a parsed head refers to the bytes of one call.
//!
//! # The path of the key
//!
//! ```text
//!  stdin ─► process::key_source, or process::key_input with --rotate
//!    ▼ Credential::read_first, KeyRing::rotating: into secret pages, checked
//!  process::key_ring::KeyRing, in net::loop_state::LoopState
//!    ├─► Credential::splice_into ─► one TLS record, for each request
//!    ├─► KeyRing::reflected: compared with each piece of a response
//!    └─► wiped: at the end; with --rotate, when no exchange carries it any more
//! ```
//!
//! # Trust boundaries
//!
//! | module | handles | must not |
//! |---|---|---|
//! | [`http1`] | all bytes that a client or the upstream sent | see the key, a socket or a clock; use `unsafe` |
//! | [`oidc`] | the two requests of `--github-oidc` and their responses | the same, but for tokens in the memory of its caller |
//! | [`x509`] | certificates and PEM files | the same |
//! | [`net`] | sockets, time, TLS | parse HTTP or certificates; see the bytes of the key, except to encrypt or write them |
//! | [`feeder`] | GitHub's request token, the tokens of `--github-oidc`; a separate process | see a byte of a client |
//! | [`connector`] | names, addresses, new connections; a separate process | see the key, or a byte of a client or the upstream |
//! | [`process`] | the key, `unsafe` system calls | parse bytes that a client or the upstream sent |
//!
//! # Invariants
//!
//! - One accepted request becomes exactly one upstream request, whose framing and key field the
//!   relay writes itself. An ambiguous message is refused, never normalised.
//! - The key is stored in separate pages (`memfd_secret(2)` if the kernel has it) and nowhere else.
//!   The key leaves them only for the TLS record that carries it or, if the upstream is in plain
//!   HTTP, for the socket.
//! - A truncated response never looks complete: the client's connection is reset.
//! - Constants bound the memory that a client or the upstream can make the process use:
//!   [`http1::limits`], [`net::limits`].
//! - A POST is never sent again once the upstream may have read a byte of it.
//!
//! # Where to look
//!
//! | for | look in |
//! |---|---|
//! | which routes are served | [`http1::target`], [`http1::request`] |
//! | every local response: status, code, text | [`http1::local_response`] |
//! | which fields are forwarded, in both directions | `http1::forward`, [`http1::field`] |
//! | the heads that are sent to either side | [`http1::request`], [`http1::response`] |
//! | how heads are parsed, and how the end of a body is found | [`http1::head`], [`http1::framing`], [`http1::chunked`], [`http1::digits`] |
//! | the order of events in one exchange | [`http1::exchange`] |
//! | outgoing bytes, from the parser to the socket | [`http1::gather`], [`net::gather_io`], [`net::buffer`] |
//! | bounds on bytes and counts; timeouts | [`http1::limits`], [`http1::work`], [`net::limits`], [`net::timeouts`] |
//! | the guard against foreign hosts and web pages | [`http1::host`], [`http1::request`] |
//! | the upstream URL; the field that carries the key | [`http1::url`], [`http1::auth_header`] |
//! | the egress proxy and its credentials | [`http1::proxy`], [`http1::connect`], [`process::egress`], [`net::upstream`] |
//! | what the access log may contain of a request and a response | [`http1::refused_route`], [`http1::logged_fields`], [`net::access_log`] |
//! | the requests of `--github-oidc`, byte for byte, and what is read of their responses | [`oidc::request`], [`oidc::receive`], [`oidc::token_response`], [`oidc::json`], [`oidc::limits`] |
//! | the process that fetches tokens, and what it may do | [`feeder`] |
//! | what the feeder tells the relay | [`oidc::notice`] |
//! | PEM files; what `--check` shows of a certificate | [`x509::pem`], [`x509::certificate`] |
//! | how the key is read, stored and used | [`process::credential`], [`process::key_source`], [`process::key_readers`] |
//! | how a fresh key replaces it (`--rotate`) | [`process::key_ring`], [`process::key_input`], [`process::key_memory`] |
//! | every `unsafe` block | [`process::sys`] |
//! | what is confined, and how | [`process::confine`], [`process::filter`], [`process::system_calls`], [`process::landlock`], [`process::harden`] |
//! | how the start line reports that | [`process::protections`], [`process::status`], [`process::support`] |
//! | whose process is at the other end of a connection | [`process::socket_owner`], [`process::upstream_users`], [`process::allowed_users`], [`process::overflow_uid`], [`users`] |
//! | the client token | [`process::token`] |
//! | where the relay listens; systemd | [`process::listeners`], [`process::service_manager`] |
//! | `--detach`, `--check`, `--probe`, `--server-info` | [`process::detach`], [`net::check`], [`net::probe`], [`process::server_info`] |
//! | signals, the terminal | [`process::signals`], [`process::terminal`] |
//! | the event loop, and the order of turns | [`net::event_loop`], [`net::turns`], [`net::slots`], [`net::socket`] |
//! | one client connection | [`net::session`] |
//! | the state that all sessions share, and one turn of a session | [`net::loop_state`] |
//! | which connections are admitted | [`net::admission`] |
//! | how long each side may take | [`net::session`], [`net::deadlines`], [`net::timeouts`], [`net::clock`], [`net::sleep`] |
//! | upstream connections, and the pool of idle ones | [`net::upstream`], [`net::upstream::pool`] |
//! | TLS | [`net::tls`] |
//! | name resolution, happy eyeballs, the process that connects | [`connector`] |
//! | events on stderr | [`net::report`] |
//! | every flag; the limits and durations of the loop | [`cli::flags`], [`net::settings`] |
//! | the order in which the program starts | `main.rs`, `start` |
#![warn(unreachable_pub)]
#![cfg_attr(not(feature = "relay"), allow(rustdoc::broken_intra_doc_links))]

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
compile_error!("codex-responses-api-proxy runs on Linux, on x86_64 and aarch64");

#[cfg(feature = "relay")]
pub mod cli;
#[cfg(feature = "relay")]
#[forbid(unsafe_code)]
pub mod connector;
#[cfg(feature = "relay")]
#[forbid(unsafe_code)]
pub mod feeder;
#[forbid(unsafe_code)]
pub mod http1;
#[cfg(feature = "relay")]
pub mod net;
#[cfg(feature = "oidc")]
#[forbid(unsafe_code)]
pub mod oidc;
#[cfg(feature = "process")]
pub mod process;
#[cfg(feature = "relay")]
pub mod users;
#[forbid(unsafe_code)]
pub mod x509;
