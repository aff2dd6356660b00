//! What the upstream sees of a request.
