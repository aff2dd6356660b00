//! --access-log and stderr.
