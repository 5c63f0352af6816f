//! Token sequences from a `.npy` file: (tokens, dim) or (sequences, tokens, dim) of f16, f32 or f64, in C or
//! Fortran order and either byte order. The file is mapped, never copied. Opening it makes one pass for the
//! SHA-256 and the search for NaN and infinity. After that, blocks of rows are converted on request.

use std::path::{Path, PathBuf};

use ndarray::{ArrayViewMut2, Axis};

use crate::error::{Error, Result};
use crate::io::dtype::{
    Dtype, Float, all_beyond, any_beyond, beyond, largest_finite, shape_text, with_float,
};
use crate::io::mapped::{Mapped, Progress};
use crate::io::npy::NpyHeader;
use crate::real::{ElementType, Real};
use crate::sequence::{Sequences, Shape};

/// Most bytes of a file that are copied before their pages are given back.
const COPIED: usize = 1 << 20;

/// Most bytes before a page that the system maps together with it: a huge page. They may have been given back
/// already.
const AROUND: usize = 2 << 20;

/// An open sequence file.
pub struct NpySequences {
    file: Mapped,
    header: NpyHeader,
    path: PathBuf,
    shape: Shape,
    sha256: String,
}

impl NpySequences {
    /// Opens a file, or standard input for `-`, which is spooled to a temporary file first. `element_type` is
    /// that of the run. Unless `allow_nonfinite`, it rejects NaN, infinity, and f64 numbers that would become
    /// infinite in f32. The error names the place of the first one.
    pub fn open(
        path: impl AsRef<Path>,
        element_type: ElementType,
        allow_nonfinite: bool,
        progress: Progress,
    ) -> Result<Self> {
        let file = Mapped::open(path.as_ref(), "a .npy file", progress)?;
        let header = NpyHeader::read(&mut file.bytes(), file.bytes().len() as u64)
            .map_err(|m| m.in_file(&file.name))?;
        let reject = |expected: &str, got: String| Err(Error::file(&file.name, expected, got));
        if !matches!(header.dtype, Dtype::F16 | Dtype::F32 | Dtype::F64) {
            return reject("numbers of type f16, f32 or f64", format!("{} ({})", header.dtype, header.descr));
        }
        let shape = match header.shape[..] {
            [tokens, dim] => Shape { sequences: 1, tokens, dim },
            [sequences, tokens, dim] => Shape { sequences, tokens, dim },
            _ => {
                let got = format!("shape {}", shape_text(&header.shape));
                return reject("shape (tokens, dim) or (sequences, tokens, dim)", got);
            }
        };
        if shape.sequences == 0 || shape.dim == 0 {
            let what = if shape.dim == 0 { "a dim of at least 1" } else { "at least one sequence" };
            return reject(what, format!("shape {}", shape_text(&header.shape)));
        }

        let limit = largest_finite(element_type);
        let mut found = false;
        let sha256 = file.sha256(header.offset, progress, |piece| {
            if !allow_nonfinite && !found {
                found = any_beyond(header.dtype, header.big_endian, piece, limit);
            }
        })?;
        let this = Self { file, header, path: path.as_ref().to_path_buf(), shape, sha256 };
        if found { Err(this.first_beyond(limit)) } else { Ok(this) }
    }

    /// Returns the number of axes, 2 or 3; results have the input's rank.
    pub fn rank(&self) -> usize {
        self.header.shape.len()
    }

    /// Returns the element type in the file.
    pub fn dtype(&self) -> Dtype {
        self.header.dtype
    }

    /// Returns (sequences, tokens, dim), with one sequence for rank 2. Unlike [`Sequences::shape`], it does not
    /// need an element type.
    pub fn dims(&self) -> Shape {
        self.shape
    }

    /// Returns the lengths of the file's two or three axes.
    pub fn file_shape(&self) -> &[usize] {
        &self.header.shape
    }

    /// Returns the SHA-256 of the whole file in hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Returns the path as given: "-" for standard input.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the size of the whole file in bytes.
    pub fn bytes(&self) -> u64 {
        self.file.bytes().len() as u64
    }

    /// Returns an error if the file has changed since it was opened. Size and times are compared. The content
    /// is compared if these differ or, if `content`, where that is cheap.
    pub fn check_unchanged(&self, content: bool) -> Result<()> {
        self.file.check_unchanged(&self.sha256, content)
    }

    /// Copies all rows of a sequence into `out` (tokens, dim), and gives the pages of the file back as it copies.
    /// When sequences are copied in turn, memory holds little more than the copies. Every row of a Fortran file is
    /// spread over all of it, so its pages stay until its last sequence is copied.
    pub fn copy_sequence<T: Real>(&self, sequence: usize, mut out: ArrayViewMut2<T>) -> Result<()> {
        assert_eq!(out.nrows(), self.shape.tokens, "rows");
        if self.header.fortran {
            self.read_rows(sequence, 0, out)?;
            if sequence + 1 == self.shape.sequences {
                self.file.release(0..self.file.bytes().len());
            }
            return Ok(());
        }
        let row_bytes = self.shape.dim * self.header.dtype.item_bytes().expect("a type of numbers");
        let block = (COPIED / row_bytes).max(1);
        for (i, rows) in out.axis_chunks_iter_mut(Axis(0), block).enumerate() {
            let from = self.header.offset + (sequence * self.shape.tokens + i * block) * row_bytes;
            let to = from + rows.nrows() * row_bytes;
            self.read_rows(sequence, i * block, rows)?;
            self.file.release(from.saturating_sub(AROUND)..to);
        }
        Ok(())
    }

    fn data(&self) -> &[u8] {
        &self.file.bytes()[self.header.offset..]
    }

    /// Returns the error for the first number in logical order that is beyond the limit. There must be one.
    fn first_beyond(&self, limit: f64) -> Error {
        let Shape { sequences, tokens, dim } = self.shape;
        let ((sequence, token, coordinate), value) =
            all_beyond(self.header.dtype, self.header.big_endian, self.data(), limit)
                .map(|(i, value)| {
                    let place = if self.header.fortran {
                        (i % sequences, i / sequences % tokens, i / sequences / tokens)
                    } else {
                        (i / dim / tokens, i / dim % tokens, i % dim)
                    };
                    (place, value)
                })
                .min_by_key(|&(place, _)| place)
                .expect("a number beyond the limit was seen");
        let mut place = format!("token {token}, coordinate {coordinate}");
        if self.rank() == 3 {
            place = format!("sequence {sequence}, {place}");
        }
        beyond(&self.file.name, value, place)
    }

    fn convert_rows<T: Real, E: Float, const BIG: bool>(
        &self,
        sequence: usize,
        start: usize,
        mut out: ArrayViewMut2<T>,
    ) {
        // For E = T this is a copy: the compiler removes the widening and the rounding.
        let convert = |bytes: &[u8]| T::from_f64(E::read::<BIG>(bytes).to_f64());
        let Shape { sequences, tokens, dim } = self.shape;
        let data = self.data();
        if self.header.fortran {
            for (coordinate, mut column) in out.columns_mut().into_iter().enumerate() {
                let first = sequence + sequences * (start + tokens * coordinate);
                if column.is_empty() {
                    continue;
                }
                let run = data[first * E::BYTES..].chunks(E::BYTES * sequences);
                for (to, from) in column.iter_mut().zip(run) {
                    *to = convert(&from[..E::BYTES]);
                }
            }
            return;
        }
        for (r, mut row) in out.rows_mut().into_iter().enumerate() {
            let first = (sequence * tokens + start + r) * dim * E::BYTES;
            let from = data[first..first + dim * E::BYTES].chunks_exact(E::BYTES);
            if let Some(row) = row.as_slice_mut() {
                row.iter_mut().zip(from).for_each(|(to, from)| *to = convert(from));
            } else {
                row.iter_mut().zip(from).for_each(|(to, from)| *to = convert(from));
            }
        }
    }
}

impl<T: Real> Sequences<T> for NpySequences {
    fn shape(&self) -> Shape {
        self.shape
    }

    fn read_rows(&self, sequence: usize, start: usize, out: ArrayViewMut2<T>) -> Result<()> {
        assert!(sequence < self.shape.sequences, "sequence {sequence} of {}", self.shape.sequences);
        assert!(start + out.nrows() <= self.shape.tokens, "tokens beyond {}", self.shape.tokens);
        assert_eq!(out.ncols(), self.shape.dim, "columns");
        with_float!(self.header.dtype, E => if self.header.big_endian {
            self.convert_rows::<T, E, true>(sequence, start, out);
        } else {
            self.convert_rows::<T, E, false>(sequence, start, out);
        });
        Ok(())
    }
}
