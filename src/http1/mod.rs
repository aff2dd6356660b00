//! The pure room: HTTP/1.x as bytes in and bytes out. No socket, no clock, no TLS, no key.

pub mod auth_header;
pub mod chunked;
pub mod exchange;
pub mod field;
pub mod framing;
pub mod gather;
pub mod head;
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
