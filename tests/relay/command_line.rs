//! Flags, defaults, wrong use.
