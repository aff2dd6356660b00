//! The relay from outside: the real binary, real sockets, real TLS.

mod access;
mod answer;
mod bodies;
mod cancelling;
mod certificates;
mod check;
mod command_line;
mod detach;
mod dialing;
mod differential;
mod forwarding;
mod key;
mod lifecycle;
mod limits;
mod log;
mod memory;
mod packets;
mod preconnect;
mod proxy;
mod routing;
mod sandbox;
mod splitting;
mod support;
mod timing;
mod trouble;
mod vectors;
