//! Sockets and time: the single-threaded event loop.

pub mod access_log;
pub mod admission;
pub mod buffer;
pub mod check;
pub mod clock;
pub mod deadlines;
pub mod event_loop;
pub mod gather_io;
pub mod limits;
pub mod loop_state;
pub mod probe;
pub mod report;
pub mod session;
pub mod settings;
pub mod sleep;
pub mod slots;
pub mod socket;
pub mod timeouts;
pub mod tls;
pub mod turns;
pub mod upstream;
