//! Tokens read from a memory, written as `.npy` in C order while they are computed: rows of any sequence in any
//! order. Plain positioned writes are used instead of a mapping: on a full disk they return an error, while a
//! mapping would end the process.

use std::io::{Seek, SeekFrom, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use ndarray::ArrayView2;

use crate::error::{Error, Result};
use crate::io::dtype::{element_count, shape_text};
use crate::io::npy::header_bytes;
use crate::real::Real;
use crate::sequence::Shape;
use crate::storage::OutFile;

/// A `.npy` file that is being written. Rows that are never written contain zeros.
pub struct RetrievedWriter<T> {
    file: OutFile,
    path: PathBuf,
    shape: Shape,
    offset: u64,
    buffer: Vec<u8>,
    element: PhantomData<T>,
}

impl<T: Real> RetrievedWriter<T> {
    /// Creates the file with its header and full length. It has two axes (tokens, dim) for rank 2, else three.
    pub fn create(path: impl AsRef<Path>, shape: Shape, rank: usize) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let axes = match rank {
            2 => vec![shape.tokens, shape.dim],
            _ => vec![shape.sequences, shape.tokens, shape.dim],
        };
        assert!(rank == 3 || (rank == 2 && shape.sequences == 1), "rank {rank} for {shape:?}");
        let bytes = element_count(&axes)
            .ok_or_else(|| Error::file(&path, "an array that can be addressed", shape_text(&axes)))?
            as u64
            * size_of::<T>() as u64;
        let header = header_bytes(T::TYPE, &axes);
        let offset = header.len() as u64;
        let mut file = OutFile::create(&path).map_err(Error::io(&path, "create"))?;
        file.write_all(&header).map_err(Error::io(&path, "write"))?;
        file.set_length(offset + bytes).map_err(Error::io(&path, "write"))?;
        Ok(Self { file, path, shape, offset, buffer: Vec::new(), element: PhantomData })
    }

    /// Writes the tokens `start .. start + rows.nrows()` of one sequence; `rows` is (tokens, dim).
    pub fn write_rows(&mut self, sequence: usize, start: usize, rows: &ArrayView2<T>) -> Result<()> {
        let Shape { sequences, tokens, dim } = self.shape;
        assert!(sequence < sequences && start + rows.nrows() <= tokens, "rows outside the file");
        assert_eq!(rows.ncols(), dim, "columns");
        self.buffer.clear();
        rows.iter().for_each(|x| self.buffer.extend_from_slice(x.le_bytes().as_ref()));
        let at = ((sequence * tokens + start) * dim * size_of::<T>()) as u64;
        let write = |file: &mut OutFile, bytes: &[u8]| {
            file.seek(SeekFrom::Start(self.offset + at))?;
            file.write_all(bytes)
        };
        write(&mut self.file, &self.buffer).map_err(Error::io(&self.path, "write"))
    }

    /// Closes the file.
    pub fn finish(self) -> Result<()> {
        self.file.finish().map_err(Error::io(&self.path, "write"))
    }
}
