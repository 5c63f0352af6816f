//! Files: sequences in (`.npy`, memory-mapped), what was read out (`.npy`, written block by block), weights and
//! memories (`.safetensors`, `.npz`), and what `nmem inspect` says of any of them.
//!
//! [`dtype`] element types and their bytes, `mapped` a file as bytes and its SHA-256, [`npy`] the `.npy` header,
//! [`sequences`] and [`retrieved`] the two ways of a run's tokens, [`tensors`] named tensors, [`summary`] ranges,
//! [`text`] files read once.

pub mod dtype;
pub mod labels;
pub(crate) mod mapped;
pub mod memory_file;
pub mod npy;
pub mod retrieved;
pub mod sequences;
pub mod summary;
pub(crate) mod table;
pub mod tensors;
pub mod text;

pub use dtype::Dtype;
pub use mapped::Progress;
pub use retrieved::RetrievedWriter;
pub use sequences::NpySequences;
pub use tensors::{METADATA_KEY, Tensor, TensorFile, write_safetensors};

/// Serializes a path as text: JSON has no other. Bytes that are not UTF-8 become U+FFFD.
pub(crate) fn path_as_text<S: serde::Serializer>(
    path: &impl AsRef<std::path::Path>,
    to: S,
) -> std::result::Result<S::Ok, S::Error> {
    to.serialize_str(&path.as_ref().to_string_lossy())
}
