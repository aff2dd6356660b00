//! A relay that lets a local user spend an API key without being able to learn it.
//!
//! It accepts `POST /v1/responses` in plain HTTP/1.1 on 127.0.0.1, adds `Authorization: Bearer KEY`,
//! speaks TLS to one upstream and streams the answer back. Everything else is refused.
//!
//! # The way of one request
//!
//! ```text
//!  client                                                                        upstream
//!    │ bytes                                                                         ▲
//!    ▼                                                                               │
//!  net::socket::read                                                   net::socket::write
//!    ▼                                                                               ▲
//!  net::relay (the pump)                                                     net::tls::seal
//!    ▼                                                                               ▲
//!  http1::exchange (request) ─► head, framing, request ─► gather ─► net::upstream::send_head
//!                                                                  process::credential::splice_into
//!
//!  http1::exchange (response) ◄─ net::tls::open ◄─ net::upstream::read ◄──── answer ──┘
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
//! | [`net`] | sockets, time, TLS | judge bytes, hold the key outside a sealed record |
//! | [`connector`] | names, addresses, new connections; a process of its own | see the key, a byte of a peer |
//! | [`process`] | the key, the operating system | parse what a peer sent |
//!
//! # Invariants
//!
//! - One accepted request becomes exactly one upstream request, with framing and a field for the key
//!   of our own. What could be read in two ways is refused, never normalised.
//! - The key lies in pages of its own (`memfd_secret(2)` where the kernel has it) and nowhere else. It
//!   leaves them only into the TLS record that carries it.
//! - An answer that was cut off never looks whole: the client's connection is reset.
//! - What a peer can make the process hold is bounded by constants: [`http1::limits`],
//!   [`net::relay::READ`] and [`net::relay::WIRE`].
//! - A POST is never sent twice once a byte of it may have been read.
//!
//! # Where to look
//!
//! | for | look in |
//! |---|---|
//! | what is allowed, refused, and with which words | [`http1::target`], [`http1::local_response`], [`http1::request`] |
//! | what the access log may say of a request and a response | [`http1::refused_route`], [`http1::logged_fields`] |
//! | how the end of a body is found | [`http1::framing`], [`http1::chunked`] |
//! | which fields travel on | [`http1::field`], [`http1::request`], [`http1::response`] |
//! | which field carries the key | [`http1::auth_header`] |
//! | what happens when, in one exchange | [`http1::exchange`] |
//! | the key's whole life | [`process::credential`] |
//! | whose process is at the other end of a connection | [`process::socket_owner`], [`process::upstream_users`], [`process::peer`], [`users`] |
//! | the egress proxy and its credentials | [`http1::proxy`], [`process::egress`], [`net::tunnel`] |
//! | every `unsafe` block | [`process::sys`] |
//! | who gets a place, and who a turn | [`net::admission`], [`net::turns`] |
//! | who waits for whom, and how long | [`net::relay`] |
//! | what stderr is told: events, the access log | [`net::report`], [`net::access_log`] |
//! | where the relay listens; what systemd hands over and is told | [`process::listeners`], [`process::service_manager`] |
//! | `--detach`, `--check`, `--probe` | [`process::detach`], [`net::check`], [`net::probe`] |
//! | name resolution, racing addresses | [`connector`] |
//! | the way to a usable connection, TLS | [`net::upstream`], [`net::tls`] |
//! | every flag | [`cli::flags`] |
//! | what a PEM file may look like, what is shown of a certificate | [`x509::pem`], [`x509::certificate`] |
//! | the order in which the program starts | `main.rs` |
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
