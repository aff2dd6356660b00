//! What is measured on the program that users get: cost, fairness, scale, the first request. Each
//! asserts a figure that other work on the machine does not move, or a ratio taken in one run. They
//! need a release build, tools and some minutes, so they are run by name:
//!
//! ```sh
//! cargo build --release --target x86_64-unknown-linux-musl
//! RELAY_BINARY=target/x86_64-unknown-linux-musl/release/codex-responses-api-proxy \
//!     cargo test --test load -- --ignored --test-threads 1
//! ```

#[path = "../benches/common/mod.rs"]
mod common;
#[allow(dead_code, unused_imports)]
mod support;
mod worst_case;

mod load {
    use super::{Watched, common, go_first, support, worst_case};

    mod delay;
    mod fairness;
    mod footprint;
    mod guard;
    mod scale;
}

use support::relay::Starter;
use support::{Relay, Upstream};

/// A relay run by a tool, which must not outlive a test that fails.
struct Watched(Relay);

impl Watched {
    fn start(tool: &[&str], upstream: &Upstream, more: impl FnOnce(Starter) -> Starter) -> Watched {
        let starter = Relay::under(tool).upstream(&upstream.url()).args(["--http-shutdown"]);
        Watched(more(starter).start())
    }

    /// Ends it; the tool has written what it has to say.
    fn end(mut self) {
        let shutdown = "GET /shutdown HTTP/1.1\r\nHost: localhost\r\n\r\n";
        assert_eq!(self.0.connect().send(shutdown).response().status, 200);
        assert_eq!(self.0.exit_code(), 0);
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // SIGKILL would leave what strace has started.
        if self.0.is_running() {
            self.0.signal(libc::SIGTERM);
            self.0.wait();
        }
    }
}

/// Lets a thread go first, where that is allowed; 0 is the one that calls. The load and other
/// programs get what is left over: small requests are to wait for the relay, not for a core.
fn go_first(thread: u32) {
    // SAFETY: plain numbers, of which zero is a legal value. musl's struct has more of them.
    let mut priority: libc::sched_param = unsafe { std::mem::zeroed() };
    priority.sched_priority = 1;
    // SAFETY: the kernel reads a struct that outlives the call.
    unsafe { libc::sched_setscheduler(thread as i32, libc::SCHED_FIFO, &priority) };
}
