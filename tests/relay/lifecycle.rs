//! Start, signals, shutdown, server-info, connections kept.
