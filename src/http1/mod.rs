//! HTTP/1.x as bytes in and bytes out. This module has no socket, no clock, no TLS and no key.

pub mod auth_header;
pub mod chunked;
pub mod connect;
pub mod digits;
pub mod exchange;
pub mod field;
mod forward;
pub mod framing;
pub mod gather;
pub mod head;
pub mod host;
pub mod limits;
pub mod local_response;
pub mod logged_fields;
pub mod proxy;
pub mod refused_route;
pub mod request;
pub mod response;
pub mod target;
pub mod url;
pub mod work;
