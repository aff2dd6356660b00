//! The relay from outside: the real binary, real sockets, real TLS.

mod support;
mod vector_file;

mod relay {
    use super::{support, vector_file};

    mod access;
    mod bodies;
    mod byte_boundaries;
    mod cancellation;
    mod certificates;
    mod check;
    mod coalescing;
    mod command_line;
    #[cfg(target_arch = "x86_64")]
    mod compromise;
    mod connector;
    mod connector_limits;
    mod detach;
    mod dialing;
    mod differential;
    mod early_responses;
    mod encoded_responses;
    mod fields;
    mod forwarding;
    mod hardening;
    mod key;
    mod key_exchange;
    mod lifecycle;
    mod limits;
    mod listening;
    mod local_users;
    mod log;
    mod memory;
    mod oidc;
    #[cfg(target_arch = "x86_64")]
    mod oidc_processes;
    #[cfg(target_arch = "x86_64")]
    mod oidc_renewal;
    mod pooling;
    mod preconnect;
    mod probe;
    mod proxy;
    mod reference_scripts;
    mod reflection;
    mod responses;
    mod rotation;
    mod rotation_recipes;
    mod routing;
    mod sandbox;
    mod server_info;
    mod shutdown;
    mod system_calls;
    mod timing;
    mod truncation;
    mod upstream_close;
    mod upstream_failures;
    mod upstream_users;
    mod urgent_data;
    mod vectors;
}
