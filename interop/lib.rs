//! Only tests: the relay against other implementations of TLS. `interop/run` runs them.
