//! The pure room: HTTP/1.x as bytes in and bytes out. No socket, no clock, no TLS, no key.

pub mod auth_header;
pub mod chunked;
pub mod exchange;
pub mod field;
pub mod framing;
pub mod head;
pub mod limits;
pub mod logged_fields;
pub mod pieces;
pub mod proxy;
pub mod refusal;
pub mod refused_route;
pub mod request;
pub mod response;
pub mod target;
pub mod url;
pub mod work;
