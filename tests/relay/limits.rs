//! Every limit, at n and n + 1.
