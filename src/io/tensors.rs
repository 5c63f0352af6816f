//! Named tensors: parameters and memories. They are read from `.safetensors` or `.npz` (distinguished by
//! content) and written as `.safetensors`, whose bytes depend only on names, numbers and metadata. A tensor
//! keeps the file's own bytes, so that reading and writing lose nothing, including NaN payloads. Only `.npz`
//! members in Fortran or big-endian order are rearranged.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufWriter, Cursor, Read, Write};
use std::path::{Path, PathBuf};

use ndarray::{ArrayD, ArrayView, ArrayViewD, Dimension, IxDyn, ShapeBuilder};
use safetensors::tensor::{Dtype as SafeDtype, Metadata, TensorInfo};
use zip::ZipArchive;

use crate::error::{Error, Result};
use crate::io::dtype::{
    Dtype, Element, Float, all_beyond, beyond, element_count, largest_finite, shape_text, with_float,
};
use crate::io::mapped::{Mapped, Progress, guess, is_safetensors, is_zip};
use crate::io::npy::{FormatMismatch, NpyHeader, one_line, read_up_to};
use crate::real::{ElementType, Real};
use crate::storage::OutFile;

/// The only key of a memory's metadata; its value is the configuration in JSON.
pub const METADATA_KEY: &str = "nmem";

/// Metadata key that names the model of a file of parameters.
pub const MODEL_KEY: &str = "model";

const EXPECTED: &str = "a .safetensors or .npz file";

/// Most bytes of a memory's configuration; nmem writes some five hundred.
pub(crate) const MAX_CONFIGURATION: usize = 16 << 10;
/// Most bytes of a `.safetensors` header: enough for some eighty thousand tensors. The format allows 100 MB.
/// Parsing takes seventeen times as much memory.
const MAX_HEADER: usize = 8 << 20;
/// Most members of a `.npz` archive: ten times the tensors of the largest language models. Each takes half a
/// kilobyte in the archive's index.
const MAX_MEMBERS: u64 = 1 << 14;
/// Most bytes of the tensors in a compressed archive: half a gigabyte of memory. Uncompressed arrays take no
/// more than their file.
const MAX_UNPACKED: u64 = 512 << 20;

/// An array in its file's form: little-endian, C order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

impl Tensor {
    /// Creates a tensor; `None` if the number of bytes does not match type and shape.
    pub fn new(dtype: Dtype, shape: Vec<usize>, data: Vec<u8>) -> Option<Self> {
        let count = element_count(&shape)?;
        let fits = dtype.item_bytes().is_none_or(|item| count * item == data.len());
        fits.then_some(Self { dtype, shape, data })
    }

    /// Copies an array bit for bit.
    pub fn from_array<T: Real, D: Dimension>(array: &ArrayView<T, D>) -> Self {
        let dtype = match T::TYPE {
            ElementType::F32 => Dtype::F32,
            ElementType::F64 => Dtype::F64,
        };
        let mut data = Vec::with_capacity(array.len() * size_of::<T>());
        array.iter().for_each(|x| data.extend_from_slice(x.le_bytes().as_ref()));
        Self { dtype, shape: array.shape().to_vec(), data }
    }

    /// Creates a tensor of counters: shape (n), u64.
    pub fn from_counters(counters: &[u64]) -> Self {
        let data = counters.iter().flat_map(|n| n.to_le_bytes()).collect();
        Self { dtype: Dtype::U64, shape: vec![counters.len()], data }
    }

    /// Returns the element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Returns the lengths of its axes; none for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Returns the bytes: little-endian, C order.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Converts to numbers of a run, rounding f64 for f32. `None` unless the type is f16, bf16, f32 or f64.
    pub fn to_array<T: Real>(&self) -> Option<ArrayD<T>> {
        fn convert<T: Real, E: Float>(data: &[u8]) -> Vec<T> {
            data.chunks_exact(E::BYTES).map(|x| T::from_f64(E::read::<false>(x).to_f64())).collect()
        }
        self.dtype.is_float().then(|| {
            let numbers = with_float!(self.dtype, E => convert::<T, E>(&self.data));
            ArrayD::from_shape_vec(IxDyn(&self.shape), numbers)
                .expect("length checked when the tensor was made")
        })
    }

    /// Converts to counters; `None` unless the type is u64.
    pub fn to_counters(&self) -> Option<Vec<u64>> {
        (self.dtype == Dtype::U64)
            .then(|| self.data.chunks_exact(8).map(<u64 as Element>::read::<false>).collect())
    }

    /// Returns index and value of the first number that is not finite in the run's type: NaN, infinity, or f64
    /// too large for f32. `None` also for types without such numbers.
    pub fn first_nonfinite(&self, element_type: ElementType) -> Option<(Vec<usize>, f64)> {
        if !self.dtype.is_float() {
            return None;
        }
        let (mut flat, value) =
            all_beyond(self.dtype, false, &self.data, largest_finite(element_type)).next()?;
        let mut index = vec![0; self.shape.len()];
        for (i, &n) in index.iter_mut().zip(&self.shape).rev() {
            *i = flat % n;
            flat /= n;
        }
        Some((index, value))
    }
}

/// A callback that checks a file's name, its tensors' names and shapes, and its metadata.
pub(crate) type Check<'a> =
    &'a dyn Fn(&Path, &BTreeMap<String, Vec<usize>>, &BTreeMap<String, String>) -> Result<()>;

/// The tensors of a file, with its metadata and hash.
#[derive(Clone, Debug)]
pub struct TensorFile {
    path: PathBuf,
    sha256: String,
    tensors: BTreeMap<String, Tensor>,
    metadata: BTreeMap<String, String>,
}

impl TensorFile {
    /// Reads a whole `.safetensors` or `.npz` file into memory; `-` is standard input. Weights are small
    /// compared with the memory that runs need.
    pub fn open(path: impl AsRef<Path>, progress: Progress) -> Result<Self> {
        Self::open_checked(path, progress, &|_, _, _| Ok(()))
    }

    /// Opens a file like [`open`](Self::open). `check` receives all names and shapes before any data is copied
    /// or unpacked.
    pub(crate) fn open_checked(path: impl AsRef<Path>, progress: Progress, check: Check) -> Result<Self> {
        let file = Mapped::open(path.as_ref(), EXPECTED, progress)?;
        let (tensors, metadata) = if is_zip(file.bytes()) {
            let mut shapes = BTreeMap::new();
            let mut unpacked = 0_u64;
            visit_npz(&file, &mut |name, header, _| {
                shapes.insert(name.to_owned(), header.shape.clone());
                unpacked = unpacked.saturating_add(header.data_bytes as u64);
                Ok(())
            })?;
            check(&file.name, &shapes, &BTreeMap::new())?;
            if unpacked > MAX_UNPACKED.max(file.bytes().len() as u64) {
                let expected = format!("arrays that unpack to at most {MAX_UNPACKED} bytes");
                let got = format!("{unpacked} (use numpy.savez, which stores them uncompressed)");
                return Err(Error::file(&file.name, expected, got));
            }
            let mut tensors = BTreeMap::new();
            visit_npz(&file, &mut |name, header, reader| {
                let tensor = npz_tensor(header, reader).map_err(|m| m.in_tensor(&file.name, name))?;
                tensors.insert(name.to_owned(), tensor);
                Ok(())
            })?;
            (tensors, BTreeMap::new())
        } else {
            let index = SafetensorsIndex::read(&file)?;
            let shapes = index.entries.iter().map(|entry| (entry.name.clone(), entry.shape.clone()));
            check(&file.name, &shapes.collect(), &index.metadata)?;
            let tensors = index
                .entries
                .iter()
                .map(|entry| {
                    let data = index.data(&file, entry).to_vec();
                    let Some(tensor) = Tensor::new(entry.dtype, entry.shape.clone(), data) else {
                        let got = format!("shape {}", shape_text(&entry.shape));
                        let mismatch = FormatMismatch::new("a tensor that can be addressed", got);
                        return Err(mismatch.in_tensor(&file.name, &entry.name));
                    };
                    Ok((entry.name.clone(), tensor))
                })
                .collect::<Result<_>>()?;
            (tensors, index.metadata)
        };
        let sha256 = file.sha256(0, progress, |_| {})?;
        file.check_unchanged(&sha256, false)?;
        Ok(Self { path: file.name, sha256, tensors, metadata })
    }

    /// Returns the name of the file in messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the SHA-256 of the whole file in hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Returns the tensors by name, sorted.
    pub fn tensors(&self) -> &BTreeMap<String, Tensor> {
        &self.tensors
    }

    /// Returns all metadata of `.safetensors`; empty for `.npz`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Returns the configuration of a memory in JSON; `None` for any other file.
    pub fn memory_json(&self) -> Option<&str> {
        self.metadata.get(METADATA_KEY).map(String::as_str)
    }

    /// Returns a tensor, or an error if it is missing.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| self.mismatch(name, "a tensor of this name", "none"))
    }

    /// Returns a tensor as numbers, or an error if it is missing.
    pub fn array<T: Real>(&self, name: &str) -> Result<ArrayD<T>> {
        let tensor = self.get(name)?;
        tensor
            .to_array()
            .ok_or_else(|| self.mismatch(name, "type f16, bf16, f32 or f64", tensor.dtype.name()))
    }

    /// Rejects numbers that are not finite in the run's type. The error names the first one, by sorted names.
    pub fn check_finite(&self, element_type: ElementType) -> Result<()> {
        let first =
            |(name, tensor): (&String, &Tensor)| Some((name.clone(), tensor.first_nonfinite(element_type)?));
        match self.tensors.iter().find_map(first) {
            None => Ok(()),
            Some((name, (index, value))) => {
                Err(beyond(&self.path, value, format!("tensor {name}, element {index:?}")))
            }
        }
    }

    fn mismatch(&self, tensor: &str, expected: &str, got: &str) -> Error {
        FormatMismatch::new(expected, got).in_tensor(&self.path, tensor)
    }
}

/// Writes tensors and a configuration in JSON. Widest elements come first, then sorted names, so that every
/// tensor is aligned and the same input gives the same bytes. The crate's own writer is not used. It takes a
/// hash map of metadata, whose order varies with more than one key, and its files are readable only by their
/// owner.
pub fn write_safetensors(
    path: impl AsRef<Path>,
    tensors: &BTreeMap<String, Tensor>,
    metadata_json: &str,
) -> Result<()> {
    let path = path.as_ref();
    let write = || {
        let mut out = BufWriter::new(OutFile::create(path)?);
        write_memory(&mut out, tensors, metadata_json)?;
        out.into_inner()?.finish()
    };
    write().map_err(Error::io(path, "write"))
}

/// Writes tensors and a memory's configuration in JSON, like [`write_safetensors`].
pub fn write_memory(
    out: &mut dyn Write,
    tensors: &BTreeMap<String, Tensor>,
    metadata_json: &str,
) -> io::Result<()> {
    write(out, tensors, HashMap::from([(METADATA_KEY.to_owned(), metadata_json.to_owned())]))
}

/// Writes tensors as a file of parameters, with the name of their model.
pub fn write_parameters(
    out: &mut dyn Write,
    tensors: &BTreeMap<String, Tensor>,
    model: &str,
) -> io::Result<()> {
    write(out, tensors, HashMap::from([(MODEL_KEY.to_owned(), model.to_owned())]))
}

/// Writes a file. It fails for a type that .safetensors does not support: such tensors are never read, and so
/// never written.
fn write(
    out: &mut dyn Write,
    tensors: &BTreeMap<String, Tensor>,
    metadata: HashMap<String, String>,
) -> io::Result<()> {
    let mut order: Vec<_> = tensors.iter().collect();
    order.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.dtype.item_bytes()));
    let mut offset = 0;
    let mut infos = Vec::with_capacity(order.len());
    for (name, tensor) in &order {
        let unknown = || io::Error::other(format!("{name} has the type {}", tensor.dtype));
        let dtype = to_safe(tensor.dtype).ok_or_else(unknown)?;
        let end = offset + tensor.data.len();
        infos.push((
            (*name).clone(),
            TensorInfo { dtype, shape: tensor.shape.clone(), data_offsets: (offset, end) },
        ));
        offset = end;
    }
    let metadata = Metadata::new(Some(metadata), infos).expect("offsets and shapes follow from the tensors");
    let mut header = serde_json::to_vec(&metadata).expect("text and numbers");
    // The format pads with spaces; a multiple of eight keeps the widest elements aligned.
    header.resize(header.len().next_multiple_of(8), b' ');

    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    order.iter().try_for_each(|(_, tensor)| out.write_all(&tensor.data))
}

/// The place of one tensor in a `.safetensors` file.
pub(crate) struct Entry {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    begin: usize,
    end: usize,
}

/// The header of a `.safetensors` file, with entries in the order of their data.
pub(crate) struct SafetensorsIndex {
    pub entries: Vec<Entry>,
    pub metadata: BTreeMap<String, String>,
    data_start: usize,
}

impl SafetensorsIndex {
    pub fn read(file: &Mapped) -> Result<Self> {
        let bytes = file.bytes();
        if !is_safetensors(bytes) {
            return Err(Error::file(&file.name, EXPECTED, guess(bytes)));
        }
        let (length, rest) = bytes.split_first_chunk::<8>().expect("at least nine bytes were checked");
        let length = u64::from_le_bytes(*length) as usize;
        let reject = |expected: String, got: String| Error::file(&file.name, expected, got);
        let Some((header, data)) = rest.split_at_checked(length) else {
            return Err(reject(
                format!("a header of {length} bytes"),
                format!("{} bytes after its length", rest.len()),
            ));
        };
        if length > MAX_HEADER {
            return Err(reject(format!("a header of at most {MAX_HEADER} bytes"), length.to_string()));
        }
        let header: Metadata = serde_json::from_slice(header)
            .map_err(|error| reject("a .safetensors header".into(), one_line(&error.to_string())))?;
        if header.data_len() != data.len() {
            let expected = format!("{} bytes of tensors after the header", header.data_len());
            return Err(reject(expected, format!("{}", data.len())));
        }
        let entries = header
            .offset_keys()
            .into_iter()
            .filter_map(|name| {
                let info = header.info(&name)?;
                let (begin, end) = info.data_offsets;
                Some(Entry { dtype: from_safe(info.dtype), shape: info.shape.clone(), begin, end, name })
            })
            .collect();
        let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
        Ok(Self { entries, metadata, data_start: 8 + length })
    }

    pub fn data<'a>(&self, file: &'a Mapped, entry: &Entry) -> &'a [u8] {
        &file.bytes()[self.data_start..][entry.begin..entry.end]
    }
}

/// A callback of [`visit_npz`]: it receives array name, header, and the stream of the data.
pub(crate) type VisitMember<'a> = &'a mut dyn FnMut(&str, &NpyHeader, &mut dyn Read) -> Result<()>;

/// Calls `visit` for each `.npy` member of a zip archive, in the archive's order, at the start of its data.
/// Other members are skipped, as in `NumPy`.
pub(crate) fn visit_npz(file: &Mapped, visit: VisitMember) -> Result<()> {
    let damaged = |error: &zip::result::ZipError| {
        Error::file(
            &file.name,
            "an intact .npz archive",
            format!("a damaged one ({})", one_line(&error.to_string())),
        )
    };
    if members(file.bytes()) > MAX_MEMBERS {
        return Err(Error::file(
            &file.name,
            format!("a .npz archive of at most {MAX_MEMBERS} members"),
            "more",
        ));
    }
    let mut archive = ZipArchive::new(Cursor::new(file.bytes())).map_err(|e| damaged(&e))?;
    if archive.has_overlapping_files().map_err(|e| damaged(&e))? {
        return Err(Error::file(&file.name, "an intact .npz archive", "members that share their bytes"));
    }
    let mut empty = true;
    for index in 0..archive.len() {
        let Some(name) = archive.name_for_index(index).map(str::to_owned) else { continue };
        let Some(array) = name.strip_suffix(".npy") else { continue };
        let mut member = archive.by_index(index).map_err(|e| {
            FormatMismatch::new("a readable member", one_line(&e.to_string())).in_tensor(&file.name, array)
        })?;
        let len = member.size();
        let header = NpyHeader::read(&mut member, len).map_err(|m| m.in_tensor(&file.name, array))?;
        visit(array, &header, &mut member)?;
        empty = false;
    }
    if empty {
        let pickle = archive.file_names().any(|name| name.ends_with("data.pkl"));
        let got = if pickle {
            "a PyTorch checkpoint (save its state_dict with safetensors.torch.save_file)"
        } else {
            "a zip archive without .npy members"
        };
        return Err(Error::file(&file.name, EXPECTED, got));
    }
    Ok(())
}

/// Returns the number of members that a zip archive has or claims to have: the larger of the entries of its
/// directory and the count at the directory's end. The zip reader allocates memory for that count in advance.
fn members(bytes: &[u8]) -> u64 {
    let (mut entries, mut claimed) = (0, 0);
    let mut rest = bytes;
    while let Some(at) = rest.windows(2).position(|pair| pair == b"PK") {
        rest = &rest[at + 2..];
        match rest {
            [1, 2, ..] => entries += 1,
            // Version, needed version, disks and the count on this disk precede the total count.
            [6, 6, end @ ..] => {
                let counts = [20, 28].map(|at| end.get(at..at + 8).and_then(|count| count.try_into().ok()));
                claimed = counts.into_iter().flatten().map(u64::from_le_bytes).fold(claimed, u64::max);
            }
            _ => {}
        }
    }
    entries.max(claimed)
}

/// Reads a member's data and converts it to little-endian C order.
fn npz_tensor(header: &NpyHeader, reader: &mut dyn Read) -> Result<Tensor, FormatMismatch> {
    let Some(item) = header.dtype.item_bytes() else {
        return Err(FormatMismatch::new("numbers", format!("{} ({})", header.dtype, header.descr)));
    };
    let bytes = header.data_bytes;
    let mut data = Vec::new();
    read_up_to(reader, &mut data, bytes as u64)?;
    if data.len() < bytes {
        return Err(FormatMismatch::new(format!("{bytes} bytes of data"), format!("{}", data.len())));
    }
    // The checksum is compared at the end of the stream.
    read_up_to(reader, &mut Vec::new(), 1)?;
    if header.big_endian {
        data.chunks_exact_mut(item).for_each(<[u8]>::reverse);
    }
    if header.fortran && header.shape.len() > 1 {
        data = match item {
            1 => to_c_order::<1>(&header.shape, &data),
            2 => to_c_order::<2>(&header.shape, &data),
            4 => to_c_order::<4>(&header.shape, &data),
            _ => to_c_order::<8>(&header.shape, &data),
        };
    }
    Ok(Tensor::new(header.dtype, header.shape.clone(), data).expect("as many bytes as the header said"))
}

fn to_c_order<const BYTES: usize>(shape: &[usize], data: &[u8]) -> Vec<u8> {
    let (items, _) = data.as_chunks::<BYTES>();
    let fortran = ArrayViewD::from_shape(IxDyn(shape).f(), items).expect("as many items as the shape has");
    fortran.iter().flatten().copied().collect()
}

fn from_safe(dtype: SafeDtype) -> Dtype {
    match dtype {
        SafeDtype::F16 => Dtype::F16,
        SafeDtype::BF16 => Dtype::BF16,
        SafeDtype::F32 => Dtype::F32,
        SafeDtype::F64 => Dtype::F64,
        SafeDtype::I8 => Dtype::I8,
        SafeDtype::I16 => Dtype::I16,
        SafeDtype::I32 => Dtype::I32,
        SafeDtype::I64 => Dtype::I64,
        SafeDtype::U8 => Dtype::U8,
        SafeDtype::U16 => Dtype::U16,
        SafeDtype::U32 => Dtype::U32,
        SafeDtype::U64 => Dtype::U64,
        SafeDtype::BOOL => Dtype::Bool,
        SafeDtype::C64 => Dtype::Other("complex"),
        SafeDtype::F4 => Dtype::Other("f4"),
        SafeDtype::F6_E2M3 | SafeDtype::F6_E3M2 => Dtype::Other("f6"),
        SafeDtype::F8_E5M2
        | SafeDtype::F8_E4M3
        | SafeDtype::F8_E8M0
        | SafeDtype::F8_E4M3FNUZ
        | SafeDtype::F8_E5M2FNUZ => Dtype::Other("f8"),
        _ => Dtype::Other("unknown"),
    }
}

fn to_safe(dtype: Dtype) -> Option<SafeDtype> {
    Some(match dtype {
        Dtype::F16 => SafeDtype::F16,
        Dtype::BF16 => SafeDtype::BF16,
        Dtype::F32 => SafeDtype::F32,
        Dtype::F64 => SafeDtype::F64,
        Dtype::I8 => SafeDtype::I8,
        Dtype::I16 => SafeDtype::I16,
        Dtype::I32 => SafeDtype::I32,
        Dtype::I64 => SafeDtype::I64,
        Dtype::U8 => SafeDtype::U8,
        Dtype::U16 => SafeDtype::U16,
        Dtype::U32 => SafeDtype::U32,
        Dtype::U64 => SafeDtype::U64,
        Dtype::Bool => SafeDtype::BOOL,
        Dtype::Other(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use zip::write::SimpleFileOptions;
    use zip::{CompressionMethod, ZipWriter};

    use super::{MAX_UNPACKED, TensorFile};

    /// Returns the message for an archive with one array of `elements` bytes, which says that it unpacks to them and ends
    /// after its header.
    fn opened(elements: u64) -> String {
        let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
        let mut archive = ZipWriter::new(std::io::Cursor::new(Vec::new()));
        archive.start_file("x.npy", options).unwrap();
        let header = format!("{{'descr': '|i1', 'fortran_order': False, 'shape': ({elements},), }}");
        let header = [b"\x93NUMPY\x01\0\x76\0", format!("{header:<117}\n").as_bytes()].concat();
        archive.write_all(&header).unwrap();
        let mut bytes = archive.finish().unwrap().into_inner();
        let entry = bytes.windows(4).position(|magic| magic == b"PK\x01\x02").unwrap();
        let unpacked = u32::try_from(header.len() as u64 + elements).unwrap();
        // The size after unpacking in the archive's index.
        bytes[entry + 24..entry + 28].copy_from_slice(&unpacked.to_le_bytes());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        TensorFile::open(file.path(), &mut |_| Ok(())).unwrap_err().to_string()
    }

    #[test]
    fn archives_that_unpack_to_too_much_are_rejected_before() {
        for more in [1, 1 << 20] {
            let message = opened(MAX_UNPACKED + more);
            assert!(message.contains("expected arrays that unpack to at most 536870912 bytes"), "{message}");
        }
        for elements in [1, MAX_UNPACKED] {
            let message = opened(elements);
            assert!(message.contains(&format!("expected {elements} bytes of data, got 0")), "{message}");
        }
    }
}
