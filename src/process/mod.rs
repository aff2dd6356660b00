//! The only room that knows the operating system and the key.

#[cfg(feature = "relay")]
pub mod confine;
pub mod credential;
pub mod detach;
pub mod egress;
pub mod harden;
pub mod peer;
pub mod server_info;
pub mod signals;
pub mod sys;
#[cfg(feature = "relay")]
pub mod system_calls;
pub mod terminal;
pub mod token;
