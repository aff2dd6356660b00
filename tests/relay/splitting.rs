//! Messages cut at each byte boundary.
