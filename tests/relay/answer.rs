//! How answers come back: statuses, fields, events, framing.
