//! The key and the operating system. [`sys`] makes the system calls that no library offers; no
//! other module has `unsafe` code.

pub mod allowed_users;
#[cfg(feature = "relay")]
pub mod confine;
pub mod credential;
pub mod detach;
pub mod egress;
#[cfg(feature = "relay")]
pub mod filter;
pub mod harden;
pub mod key_input;
pub mod key_memory;
pub mod key_readers;
pub mod key_ring;
pub mod key_source;
#[cfg(feature = "relay")]
pub mod landlock;
pub mod listeners;
pub mod overflow_uid;
#[cfg(feature = "relay")]
pub mod protections;
pub mod server_info;
pub mod service_manager;
pub mod signals;
pub mod socket_owner;
pub mod status;
#[cfg(feature = "relay")]
pub mod support;
pub mod sys;
#[cfg(feature = "relay")]
pub mod system_calls;
pub mod terminal;
pub mod token;
pub mod upstream_users;
