//! Bodies of every size, both ways, in constant memory.
