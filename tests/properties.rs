//! What must hold for every input, on stable Rust: the properties of the fuzz targets.

#[path = "../fuzz/properties/mod.rs"]
mod inputs;
mod worst_case;

mod properties {
    use super::{inputs, worst_case};

    mod replay;
    mod work;
}
