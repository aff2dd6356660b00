//! The only room that knows the operating system and the key.

pub mod credential;
pub mod harden;
pub mod server_info;
pub mod sys;
pub mod terminal;
