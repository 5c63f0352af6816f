//! Summaries of files, in one pass and flat memory: type, shape, range, mean and counts of non-finite numbers
//! for each array. It reads `.npy`, `.npz` and `.safetensors`, which are distinguished by content.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Number;

use crate::error::{Error, Result};
use crate::io::dtype::{Dtype, Element, Float, with_float};
use crate::io::mapped::{Mapped, PIECE, Progress, guess, is_safetensors, is_zip};
use crate::io::npy::{FormatMismatch, NpyHeader, read_up_to};
use crate::io::tensors::{SafetensorsIndex, visit_npz};

/// A file format, determined by content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FileFormat {
    /// One array.
    Npy,
    /// A zip archive of arrays.
    Npz,
    /// A file of named tensors with metadata.
    Safetensors,
}

/// The summary of one array.
#[derive(Clone, Debug, Serialize)]
pub struct ArraySummary {
    /// Name; `None` for the one array of a `.npy` file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Element type: "f32", "i64", "bool", "complex" …
    pub dtype: String,
    /// Description of the element type: "f32 big-endian Fortran".
    #[serde(skip)]
    pub described: String,
    /// Whether the most significant byte comes first.
    pub big_endian: bool,
    /// Whether the first axis varies fastest.
    pub fortran_order: bool,
    /// Lengths of its axes; none for a scalar.
    pub shape: Vec<usize>,
    /// Size of its data in bytes.
    pub bytes: u64,
    /// Statistics of its numbers.
    #[serde(flatten)]
    pub ranges: Ranges,
}

/// Statistics of an array's numbers. All are `None` if the type is not supported.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Ranges {
    /// Smallest finite number; `None` if there is none.
    pub min: Option<Number>,
    /// Largest finite number; `None` if there is none.
    pub max: Option<Number>,
    /// Mean of the finite numbers.
    pub mean: Option<f64>,
    /// Number of NaNs.
    pub nan: Option<u64>,
    /// Number of infinities.
    pub infinite: Option<u64>,
}

/// The summary of one file.
#[derive(Clone, Debug, Serialize)]
pub struct FileSummary {
    /// Path as given.
    #[serde(serialize_with = "crate::io::path_as_text")]
    pub file: PathBuf,
    /// Format, determined by content.
    pub format: FileFormat,
    /// Size of the whole file in bytes.
    pub bytes: u64,
    /// Metadata of `.safetensors`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Summaries of its arrays, in the file's order.
    pub arrays: Vec<ArraySummary>,
}

/// Reads a whole file and summarises it; `-` is standard input.
pub fn summarise(path: impl AsRef<Path>, progress: Progress) -> Result<FileSummary> {
    const EXPECTED: &str = "a .npy, .npz or .safetensors file";
    let file = Mapped::open(path.as_ref(), EXPECTED, progress)?;
    let bytes = file.bytes();
    let mut arrays = Vec::new();
    let mut metadata = BTreeMap::new();
    let format = if bytes.starts_with(b"\x93NUMPY") {
        let header =
            NpyHeader::read(&mut &bytes[..], bytes.len() as u64).map_err(|m| m.in_file(&file.name))?;
        arrays.push(summarise_npy(&file, None, &header, &mut &bytes[header.offset..], progress)?);
        FileFormat::Npy
    } else if is_zip(bytes) {
        visit_npz(&file, &mut |name, header, data| {
            arrays.push(summarise_npy(&file, Some(name), header, data, progress)?);
            Ok(())
        })?;
        FileFormat::Npz
    } else if is_safetensors(bytes) {
        let index = SafetensorsIndex::read(&file)?;
        for entry in &index.entries {
            let mut data = index.data(&file, entry);
            let bytes = data.len() as u64;
            let ranges = Ranges::read(entry.dtype, false, &mut data, bytes, progress)?
                .map_err(|m| m.in_tensor(&file.name, &entry.name))?;
            arrays.push(ArraySummary {
                name: Some(entry.name.clone()),
                dtype: entry.dtype.to_string(),
                described: entry.dtype.to_string(),
                big_endian: false,
                fortran_order: false,
                shape: entry.shape.clone(),
                bytes,
                ranges,
            });
        }
        metadata = index.metadata;
        FileFormat::Safetensors
    } else {
        return Err(Error::file(&file.name, EXPECTED, guess(bytes)));
    };
    Ok(FileSummary { file: path.as_ref().to_path_buf(), format, bytes: bytes.len() as u64, metadata, arrays })
}

fn summarise_npy(
    file: &Mapped,
    name: Option<&str>,
    header: &NpyHeader,
    data: &mut dyn Read,
    progress: Progress,
) -> Result<ArraySummary> {
    let bytes = header.data_bytes as u64;
    let ranges = Ranges::read(header.dtype, header.big_endian, data, bytes, progress)?.map_err(
        |mismatch| match name {
            Some(name) => mismatch.in_tensor(&file.name, name),
            None => mismatch.in_file(&file.name),
        },
    )?;
    Ok(ArraySummary {
        name: name.map(str::to_owned),
        dtype: header.dtype.to_string(),
        described: header.describe(),
        big_endian: header.big_endian && header.dtype.item_bytes() > Some(1),
        fortran_order: header.fortran,
        shape: header.shape.clone(),
        bytes,
        ranges,
    })
}

impl Ranges {
    /// Reads `bytes` bytes of elements. The outer error stops all work; the inner one still needs the array's name.
    fn read(
        dtype: Dtype,
        big: bool,
        data: &mut dyn Read,
        bytes: u64,
        progress: Progress,
    ) -> Result<Result<Self, FormatMismatch>> {
        if dtype.item_bytes().is_none() {
            return Ok(Ok(Self::default()));
        }
        let mut running = RunningRanges::default();
        let mut piece = Vec::with_capacity(PIECE);
        let mut seen = 0;
        loop {
            piece.clear();
            match read_up_to(data, &mut piece, PIECE as u64) {
                Err(mismatch) => return Ok(Err(mismatch)),
                Ok(0) => break,
                Ok(n) => seen += n as u64,
            }
            if big {
                running.add::<true>(dtype, &piece);
            } else {
                running.add::<false>(dtype, &piece);
            }
            progress(piece.len() as u64)?;
        }
        if seen != bytes {
            return Ok(Err(FormatMismatch::new(format!("{bytes} bytes of data"), format!("{seen}"))));
        }
        Ok(Ok(running.finish()))
    }
}

/// Running range and counts. Integers are kept as integers: in f64, 2^63 has no neighbour.
#[derive(Default)]
struct RunningRanges {
    float: Option<(f64, f64)>,
    whole: Option<(i128, i128)>,
    float_sum: f64,
    whole_sum: i128,
    finite: u64,
    nan: u64,
    infinite: u64,
}

impl RunningRanges {
    fn add<const BIG: bool>(&mut self, dtype: Dtype, piece: &[u8]) {
        match dtype {
            Dtype::I8 => self.add_whole::<i8, BIG>(piece),
            Dtype::I16 => self.add_whole::<i16, BIG>(piece),
            Dtype::I32 => self.add_whole::<i32, BIG>(piece),
            Dtype::I64 => self.add_whole::<i64, BIG>(piece),
            Dtype::U8 | Dtype::Bool => self.add_whole::<u8, BIG>(piece),
            Dtype::U16 => self.add_whole::<u16, BIG>(piece),
            Dtype::U32 => self.add_whole::<u32, BIG>(piece),
            Dtype::U64 => self.add_whole::<u64, BIG>(piece),
            _ => with_float!(dtype, E => self.add_float::<E, BIG>(piece)),
        }
    }

    fn add_whole<E: Element + Ord + Into<i128>, const BIG: bool>(&mut self, piece: &[u8]) {
        let numbers = || piece.chunks_exact(E::BYTES).map(E::read::<BIG>);
        if let (Some(low), Some(high)) = (numbers().min(), numbers().max()) {
            let (low, high) = (low.into(), high.into());
            self.whole = Some(self.whole.map_or((low, high), |(min, max)| (min.min(low), max.max(high))));
        }
        self.whole_sum += numbers().map(Into::into).sum::<i128>();
        self.finite += (piece.len() / E::BYTES) as u64;
    }

    fn add_float<E: Float, const BIG: bool>(&mut self, piece: &[u8]) {
        let (mut low, mut high, mut sum, mut finite) = (f64::INFINITY, f64::NEG_INFINITY, 0.0, 0);
        for x in piece.chunks_exact(E::BYTES).map(|x| E::read::<BIG>(x).to_f64()) {
            if x.is_finite() {
                low = low.min(x);
                high = high.max(x);
                sum += x;
                finite += 1;
            } else if x.is_nan() {
                self.nan += 1;
            } else {
                self.infinite += 1;
            }
        }
        // Without finite numbers the range stays (∞, −∞), which JSON has no numbers for.
        self.float = Some(self.float.map_or((low, high), |(min, max)| (min.min(low), max.max(high))));
        // Sums of pieces are added, so that the error grows with the number of pieces rather than of elements.
        self.float_sum += sum;
        self.finite += finite;
    }

    fn finish(self) -> Ranges {
        let (min, max) = match (self.whole, self.float) {
            (Some((min, max)), _) => (Number::from_i128(min), Number::from_i128(max)),
            (None, Some((min, max))) => (Number::from_f64(min), Number::from_f64(max)),
            (None, None) => (None, None),
        };
        let sum = if self.whole.is_some() { self.whole_sum as f64 } else { self.float_sum };
        // Numbers near the end of f64's range may overflow the sum. No mean is better than a wrong one.
        let mean = Some(sum / self.finite as f64).filter(|mean| mean.is_finite());
        Ranges { min, max, mean, nan: Some(self.nan), infinite: Some(self.infinite) }
    }
}
