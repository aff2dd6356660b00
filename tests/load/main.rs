//! What is measured on the program that users get: cost, fairness, scale, the first request. Each
//! asserts a figure that other work on the machine does not move, or a ratio taken in one run. They
//! need a release build, tools and some minutes, so they are run by name:
//!
//! ```sh
//! cargo build --release --target x86_64-unknown-linux-musl
//! RELAY_BINARY=target/x86_64-unknown-linux-musl/release/codex-responses-api-proxy \
//!     cargo test --test load -- --ignored --test-threads 1
//! ```

#[allow(dead_code)]
#[path = "../../benches/common/mod.rs"]
mod common;
mod fairness;
mod guard;
#[allow(dead_code, unused_imports)]
#[path = "../relay/support/mod.rs"]
mod support;
