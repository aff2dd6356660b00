//! Sockets and time: the single-threaded event loop.

pub mod access_log;
pub mod admission;
pub mod buffer;
pub mod check;
pub mod clock;
pub mod deadlines;
pub mod event_loop;
pub mod gather_io;
pub mod id_list;
pub mod limits;
pub mod loop_state;
pub mod pool;
pub mod probe;
pub mod report;
pub mod session;
pub mod settings;
pub mod sleep;
pub mod slots;
pub mod socket;
pub mod timeouts;
pub mod tls;
pub mod tunnel;
pub mod turns;
pub mod upstream;
