//! An upstream that fails, and how the client is told.
