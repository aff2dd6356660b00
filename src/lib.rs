//! map
#![allow(missing_docs)]
#[cfg(feature = "relay")]
pub mod cli;
pub mod http1;
#[cfg(feature = "relay")]
pub mod net;
#[cfg(feature = "process")]
pub mod process;
