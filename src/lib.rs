//! A relay that lets a local user spend an API key without being able to learn it.
//!
//! It accepts `POST /v1/responses` in plain HTTP/1.1 on 127.0.0.1, adds `Authorization: Bearer KEY`,
//! speaks TLS to one upstream and streams the response back. Everything else is refused.
//!
//! # The way of one request
//!
//! ```text
//!  client                                                                        upstream
//!    │ bytes                                                                         ▲
//!    ▼                                                                               │
//!  net::socket::read                                                   net::socket::write
//!    ▼                                                                               ▲
//!  net::session (the pump)                                                   net::tls::seal
//!    ▼                                                                               ▲
//!  http1::exchange (request) ─► head, framing, request ─► gather ─► net::upstream::Connection
//!                                                                  process::credential::splice_into
//!
//!  http1::exchange (response) ◄─ net::tls::open ◄─ net::upstream::Connection ◄── response ──┘
//!    ▼ response, chunked ─► gather ─► net::socket::write ─► client
//! ```
//!
//! `net::event_loop::run` is the one loop: poll, note readiness, one turn for each ready connection,
//! deadlines, accept.
//!
//! # Trust boundaries
//!
//! | room | touches | must not |
//! |---|---|---|
//! | [`http1`] | every byte that a client or the upstream chose | see the key, a socket, a clock; use `unsafe` |
//! | [`x509`] | certificates and PEM files | the same |
//! | [`net`] | sockets, time, TLS | parse HTTP or certificates, hold the key outside a sealed record |
//! | [`connector`] | names, addresses, new connections; a process of its own | see the key, a byte of a client or of the upstream |
//! | [`process`] | the key, `unsafe` system calls | parse what a client or the upstream sent |
//!
//! # Invariants
//!
//! - One accepted request becomes exactly one upstream request, with the relay's own framing and
//!   field for the key. What could be read in two ways is refused, never normalised.
//! - The key lies in pages of its own (`memfd_secret(2)` where the kernel has it) and nowhere else.
//!   It leaves them only into the TLS record that carries it.
//! - A truncated response never looks complete: the client's connection is reset.
//! - What a client or the upstream can make the process hold is bounded by constants: [`http1::limits`],
//!   [`net::limits`].
//! - A POST is never sent twice once a byte of it may have been read.
//!
//! # Where to look
//!
//! | for | look in |
//! |---|---|
//! | which routes are served | [`http1::target`], [`http1::request`] |
//! | every response of the relay's own: status, code, text | [`http1::local_response`] |
//! | which fields are forwarded, in both directions | `http1::forward`, [`http1::field`] |
//! | the heads that are sent to either side | [`http1::request`], [`http1::response`] |
//! | how heads are parsed, and the end of a body found | [`http1::head`], [`http1::framing`], [`http1::chunked`], [`http1::digits`] |
//! | the order of events in one exchange | [`http1::exchange`] |
//! | outgoing bytes, from the parser to the socket | [`http1::gather`], [`net::gather_io`], [`net::buffer`] |
//! | bounds on bytes and counts; timeouts | [`http1::limits`], [`http1::work`], [`net::limits`], [`net::timeouts`] |
//! | the guard against foreign hosts and web pages | [`http1::host`], [`http1::request`] |
//! | the upstream URL; the field that carries the key | [`http1::url`], [`http1::auth_header`] |
//! | the egress proxy and its credentials | [`http1::proxy`], [`http1::connect`], [`process::egress`], [`net::tunnel`] |
//! | what the access log may say of a request and a response | [`http1::refused_route`], [`http1::logged_fields`], [`net::access_log`] |
//! | PEM files; what `--check` shows of a certificate | [`x509::pem`], [`x509::certificate`] |
//! | the key's whole life | [`process::credential`], [`process::key_source`] |
//! | every `unsafe` block | [`process::sys`] |
//! | what is confined, and how | [`process::confine`], [`process::filter`], [`process::system_calls`], [`process::landlock`], [`process::harden`] |
//! | what the start line says of that | [`process::protections`], [`process::status`], [`process::support`] |
//! | whose process is at the other end of a connection | [`process::socket_owner`], [`process::upstream_users`], [`process::allowed_users`], [`process::overflow_uid`], [`users`] |
//! | the client token | [`process::token`] |
//! | where the relay listens; systemd | [`process::listeners`], [`process::service_manager`] |
//! | `--detach`, `--check`, `--probe`, `--server-info` | [`process::detach`], [`net::check`], [`net::probe`], [`process::server_info`] |
//! | signals, the terminal | [`process::signals`], [`process::terminal`] |
//! | the event loop, and who gets a turn | [`net::event_loop`], [`net::turns`], [`net::slots`], [`net::socket`] |
//! | one client connection | [`net::session`] |
//! | what the sessions share, and one turn of a session | [`net::loop_state`] |
//! | who gets a place | [`net::admission`] |
//! | how long each side may take | [`net::session`], [`net::deadlines`], [`net::timeouts`], [`net::clock`], [`net::sleep`] |
//! | upstream connections, and the pool of idle ones | [`net::upstream`], [`net::pool`], [`net::key_list`] |
//! | TLS | [`net::tls`] |
//! | name resolution, racing addresses, the process that connects | [`connector`] |
//! | events on stderr | [`net::report`] |
//! | every flag; numbers and times that it sets | [`cli::flags`], [`net::settings`] |
//! | the order in which the program starts | `main.rs`, `start` |
#![cfg_attr(not(feature = "relay"), allow(rustdoc::broken_intra_doc_links))]

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
compile_error!("codex-responses-api-proxy runs on Linux, on x86_64 and aarch64");

#[cfg(feature = "relay")]
pub mod cli;
#[cfg(feature = "relay")]
#[forbid(unsafe_code)]
pub mod connector;
#[forbid(unsafe_code)]
pub mod http1;
#[cfg(feature = "relay")]
pub mod net;
#[cfg(feature = "process")]
pub mod process;
#[cfg(feature = "relay")]
pub mod users;
#[forbid(unsafe_code)]
pub mod x509;
