//! Recall × depth × chunk: small models that write 8 pairs into a memory of one or two factors and are asked for them.

pub mod model;
pub mod random;
pub mod task;
pub mod training;
