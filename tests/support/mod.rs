//! What several test files share: the one closeness check, golden cases, and collecting what the engine delivers.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use ndarray::{Array2, Array3, ArrayD, ArrayView2, ArrayViewD, Dimension, Ix2, Ix3, s};
use ndarray_npy::{NpzReader, ReadNpyExt};
use nmem::engine::{self, Memory, Outcome, Sink, Work};
use nmem::memory::{Dimensions, Gates, Parameters, State};
use nmem::metrics::ChunkMetrics;
use nmem::real::Real;
use safetensors::{Dtype, SafeTensors};

/// Fails unless |got − expected| ≤ abs + rel · |expected| everywhere. NaN fails.
pub fn assert_close(what: &str, got: ArrayViewD<f64>, expected: ArrayViewD<f64>, abs: f64, rel: f64) {
    assert_eq!(got.shape(), expected.shape(), "{what}: shapes");
    let count = expected.len();
    let (mut failures, mut worst, mut place) = (0, 0.0, None);
    for ((index, &got), &expected) in got.indexed_iter().zip(&expected) {
        let (difference, bound) = ((got - expected).abs(), abs + rel * expected.abs());
        if !(difference <= bound) {
            failures += 1;
            let excess = if difference.is_nan() { f64::INFINITY } else { difference / bound };
            if place.is_none() || excess > worst {
                (worst, place) = (excess, Some((index.slice().to_vec(), got, expected)));
            }
        }
    }
    if let Some((index, got, expected)) = place {
        panic!(
            "{what}: {failures} of {count} differ; worst at {index:?}: got {got:e}, expected {expected:e}"
        );
    }
}

/// The golden tolerance: `rel` of the array's largest magnitude.
pub fn assert_close_to_largest(what: &str, got: ArrayViewD<f64>, expected: ArrayViewD<f64>, rel: f64) {
    let largest = expected.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
    assert_close(what, got, expected, rel * largest, 0.0);
}

/// One folder of tests/golden.
pub struct Golden {
    pub name: String,
    pub folder: PathBuf,
    pub chunk_size: usize,
    pub heads: usize,
    pub seq: Array3<f64>,
    pub store_seq: Option<Array3<f64>>,
}

impl Golden {
    pub fn all() -> Vec<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let mut folders: Vec<_> =
            std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
        folders.sort();
        let cases: Vec<_> = folders.into_iter().filter(|path| path.is_dir()).map(Self::open).collect();
        assert_eq!(cases.len(), 14, "all golden cases are there");
        cases
    }

    fn open(folder: PathBuf) -> Self {
        let case: serde_json::Value =
            serde_json::from_reader(File::open(folder.join("case.json")).unwrap()).unwrap();
        let number = |key: &str| usize::try_from(case[key].as_u64().unwrap()).unwrap();
        let sequence = |name: &str| {
            let file = File::open(folder.join(name)).ok()?;
            Some(Array3::<f32>::read_npy(file).unwrap().mapv(f64::from))
        };
        Self {
            name: case["name"].as_str().unwrap().to_owned(),
            chunk_size: number("chunk_size"),
            heads: number("heads"),
            seq: sequence("seq.npy").unwrap(),
            store_seq: sequence("store_seq.npy"),
            folder,
        }
    }

    pub fn stored(&self) -> &Array3<f64> {
        self.store_seq.as_ref().unwrap_or(&self.seq)
    }

    pub fn parameters<T: Real>(&self) -> Parameters<T> {
        parameters(&self.folder.join("weights.safetensors"))
    }

    pub fn past<T: Real>(&self) -> Option<Vec<Array2<T>>> {
        let path = self.folder.join("past.safetensors");
        path.exists().then(|| {
            let tensors = tensors(&path);
            (0..4)
                .map(|p| {
                    to_type(tensors[&format!("weights.{p}")].clone()).into_dimensionality::<Ix2>().unwrap()
                })
                .collect()
        })
    }

    /// Arrays of `expected.npz` or `expected_f32eps.npz`.
    pub fn expected(&self, file: &str) -> BTreeMap<String, ArrayD<f64>> {
        let mut npz = NpzReader::new(File::open(self.folder.join(file)).unwrap()).unwrap();
        let names = npz.names().unwrap();
        names.into_iter().map(|name| (name.clone(), npz.by_name(&name).unwrap())).collect()
    }
}

/// All float32 tensors of a .safetensors file.
pub fn tensors(path: &Path) -> BTreeMap<String, ArrayD<f64>> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter().map(|(name, tensor)| {
        assert_eq!(tensor.dtype(), Dtype::F32);
        let (values, _) = tensor.data().as_chunks::<4>();
        let values = values.iter().map(|&bytes| f64::from(f32::from_le_bytes(bytes))).collect();
        (name, ArrayD::from_shape_vec(tensor.shape(), values).unwrap())
    });
    tensors.collect()
}

pub fn parameters<T: Real>(path: &Path) -> Parameters<T> {
    let tensors = tensors(path);
    let shapes = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shape().to_vec())).collect();
    Parameters::collect(Dimensions::infer(&shapes).unwrap(), |name| to_type(tensors[name].clone()))
}

pub fn to_type<T: Real>(array: ArrayD<f64>) -> ArrayD<T> {
    array.mapv(T::of)
}

/// Keeps everything that the engine delivers.
#[derive(Default)]
pub struct Collect<T> {
    pub rows: Vec<ChunkMetrics<T>>,
    pub retrieved: Array3<T>,
}

impl<T: Real> Collect<T> {
    pub fn new(shape: (usize, usize, usize)) -> Self {
        Self { rows: Vec::new(), retrieved: Array3::from_elem(shape, T::nan()) }
    }
}

impl<T: Real> Sink<T> for Collect<T> {
    fn metrics(&mut self, rows: &[ChunkMetrics<T>]) -> nmem::Result<()> {
        self.rows.extend_from_slice(rows);
        Ok(())
    }
    fn retrieved(&mut self, sequence: usize, start: usize, rows: ArrayView2<T>) -> nmem::Result<()> {
        self.retrieved.slice_mut(s![sequence, start..start + rows.nrows(), ..]).assign(&rows);
        Ok(())
    }
    fn sequence_done(&mut self, _: usize) -> nmem::Result<()> {
        self.rows.sort_by_key(|row| (row.sequence, row.chunk, row.head));
        Ok(())
    }
}

/// Runs the engine on arrays.
pub fn run<T: Real>(
    memory: &Memory<T>,
    state: &mut State<T>,
    work: Work<'_, T>,
    shape: (usize, usize, usize),
) -> (Collect<T>, Outcome) {
    let mut sink = Collect::new(shape);
    let outcome = engine::run(memory, state, work, &mut sink, &mut |_| Ok(())).unwrap();
    (sink, outcome)
}

/// A memory of the golden case, in T.
pub fn memory<T: Real>(case: &Golden) -> Memory<T> {
    Memory::new(case.parameters(), case.chunk_size, Gates::default(), case.past().as_deref()).unwrap()
}

/// A column of metrics as (sequences, heads, chunks).
pub fn column<T: Real>(
    rows: &[ChunkMetrics<T>],
    sequences: usize,
    heads: usize,
    of: impl Fn(&ChunkMetrics<T>) -> T,
) -> ArrayD<f64> {
    let chunks = rows.len() / (sequences * heads);
    let values: Vec<f64> = rows.iter().map(|row| of(row).wide()).collect();
    let array = Array3::from_shape_vec((sequences, chunks, heads), values).unwrap();
    array.permuted_axes([0, 2, 1]).as_standard_layout().into_owned().into_dyn()
}

/// One memory weight's part of U or S, as (sequences, heads, rows, cols).
pub fn weight<T: Real>(of: &Array3<T>, shapes: &[(usize, usize)], p: usize) -> ArrayD<f64> {
    let offset: usize = shapes[..p].iter().map(|(rows, cols)| rows * cols).sum();
    let (rows, cols) = shapes[p];
    let part = of.slice(s![.., .., offset..offset + rows * cols]).mapv(Real::wide);
    let (sequences, heads, _) = part.dim();
    part.into_shape_with_order((sequences, heads, rows, cols)).unwrap().into_dyn()
}

pub fn dyn3<T: Real>(array: &Array3<T>) -> ArrayD<f64> {
    array.mapv(Real::wide).into_dimensionality::<Ix3>().unwrap().into_dyn()
}
