//! How the key is taken in.
