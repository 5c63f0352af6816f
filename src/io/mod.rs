//! Files: one module a format. Every error carries the path, what was expected and what is there.

pub mod labels;
