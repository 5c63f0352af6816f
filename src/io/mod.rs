//! Files: input sequences (`.npy`, memory-mapped), retrieved tokens (`.npy`, written block by block), weights
//! and memories (`.safetensors`, `.npz`), and the summaries of `nmem inspect`.
//!
//! - [`dtype`]: element types and their bytes;
//! - `mapped`: a file's bytes and SHA-256;
//! - [`npy`]: the `.npy` header; [`npz`]: archives that are written;
//! - [`export`](mod@export): names of titans-pytorch;
//! - [`sequences`] and [`retrieved`]: input and output tokens of a run;
//! - [`tensors`]: named tensors;
//! - [`summary`]: ranges and counts;
//! - [`text`]: files that are read once.
//!
//! # Example
//!
//! Write tokens to a `.npy` file and read them back:
//!
//! ```
//! use ndarray::{Array2, array};
//! use nmem::io::{NpySequences, RetrievedWriter};
//! use nmem::real::ElementType;
//! use nmem::sequence::{Sequences, Shape};
//!
//! let path = std::env::temp_dir().join(format!("nmem-example-{}.npy", std::process::id()));
//! let tokens = array![[1.0_f32, 2.0], [3.0, 4.0], [5.0, 6.0]]; // (tokens, dim)
//! let shape = Shape { sequences: 1, tokens: 3, dim: 2 };
//! let mut writer = RetrievedWriter::create(&path, shape, 2)?;
//! writer.write_rows(0, 0, &tokens.view())?;
//! writer.finish()?;
//!
//! let file = NpySequences::open(&path, ElementType::F32, false, &mut |_| Ok(()))?;
//! let mut read = Array2::<f32>::zeros((3, 2));
//! file.read_rows(0, 0, read.view_mut())?;
//! assert_eq!(read, tokens);
//! # std::fs::remove_file(&path).expect("the file exists");
//! # Ok::<(), nmem::Error>(())
//! ```

pub mod dtype;
pub mod export;
pub mod import;
pub mod labels;
pub(crate) mod mapped;
pub mod memory_config;
pub mod memory_file;
pub mod npy;
pub mod npz;
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

/// Serializes a path as text, because JSON has no other form. Bytes that are not UTF-8 become U+FFFD.
pub(crate) fn path_as_text<S: serde::Serializer>(
    path: &impl AsRef<std::path::Path>,
    to: S,
) -> std::result::Result<S::Ok, S::Error> {
    to.serialize_str(&path.as_ref().to_string_lossy())
}
