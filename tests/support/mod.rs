//! Code that several test files share: the closeness check, golden cases, and a collector of the engine's results.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::needless_pass_by_value, reason = "views are passed by value, as ndarray does")]

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use ndarray::{Array1, Array2, Array3, Array4, ArrayD, ArrayView2, ArrayViewD, Axis, Dimension, Ix2, Ix3, s};
use ndarray_npy::{NpzReader, ReadNpyExt};
use nmem::engine::{Engine, Memory, Outcome, Sink, Work};
use nmem::memory::parameters::{Init, random_tensors};
use nmem::memory::reference::Reference;
use nmem::memory::{Dimensions, Gates, Parameters, Program, State};
use nmem::metrics::{ChunkMetrics, Retained};
use nmem::real::Real;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::{Dtype, SafeTensors};

/// Fails unless |got − expected| ≤ abs + rel · |expected| everywhere. NaN fails.
pub fn assert_close(what: &str, got: ArrayViewD<f64>, expected: ArrayViewD<f64>, abs: f64, rel: f64) {
    assert_eq!(got.shape(), expected.shape(), "{what}: shapes");
    let count = expected.len();
    let (mut failures, mut worst, mut place) = (0, 0.0, None);
    for ((index, &got), &expected) in got.indexed_iter().zip(&expected) {
        let (difference, bound) = ((got - expected).abs(), abs + rel * expected.abs());
        #[expect(clippy::neg_cmp_op_on_partial_ord, reason = "a NaN fails")]
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

/// Checks closeness with the golden tolerance: `rel` of the array's largest magnitude.
pub fn assert_close_to_largest(what: &str, got: ArrayViewD<f64>, expected: ArrayViewD<f64>, rel: f64) {
    let abs = rel * largest(expected.view());
    assert_close(what, got, expected, abs, 0.0);
}

pub fn largest(of: ArrayViewD<f64>) -> f64 {
    of.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()))
}

/// Norms below this are zero in the oracle, whose squares vanish: gradients of a saturated softmax.
const VANISHING: f64 = 1e-150;

/// One directory of tests/golden.
pub struct Golden {
    pub name: String,
    pub directory: PathBuf,
    pub chunk_size: usize,
    pub heads: usize,
    pub seq: Array3<f64>,
    pub store_seq: Option<Array3<f64>>,
}

impl Golden {
    pub fn all() -> Vec<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        let mut directories: Vec<_> =
            std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
        directories.sort();
        let cases: Vec<_> = directories.into_iter().filter(|path| path.is_dir()).map(Self::open).collect();
        assert_eq!(cases.len(), 14, "all golden cases exist");
        cases
    }

    fn open(directory: PathBuf) -> Self {
        let case: serde_json::Value =
            serde_json::from_reader(File::open(directory.join("case.json")).unwrap()).unwrap();
        let number = |key: &str| usize::try_from(case[key].as_u64().unwrap()).unwrap();
        let sequence = |name: &str| {
            let file = File::open(directory.join(name)).ok()?;
            Some(Array3::<f32>::read_npy(file).unwrap().mapv(f64::from))
        };
        Self {
            name: case["name"].as_str().unwrap().to_owned(),
            chunk_size: number("chunk_size"),
            heads: number("heads"),
            seq: sequence("seq.npy").unwrap(),
            store_seq: sequence("store_seq.npy"),
            directory,
        }
    }

    pub fn stored(&self) -> &Array3<f64> {
        self.store_seq.as_ref().unwrap_or(&self.seq)
    }

    pub fn parameters<T: Real>(&self) -> Parameters<T> {
        parameters(&self.directory.join("weights.safetensors"))
    }

    pub fn past<T: Real>(&self) -> Option<Vec<Array2<T>>> {
        let path = self.directory.join("past.safetensors");
        path.exists().then(|| {
            let tensors = tensors(&path);
            (0..4)
                .map(|p| {
                    to_type(tensors[&format!("weights.{p}")].clone()).into_dimensionality::<Ix2>().unwrap()
                })
                .collect()
        })
    }

    /// Returns the arrays of `expected.npz` or `expected_f32eps.npz`.
    pub fn expected(&self, file: &str) -> BTreeMap<String, ArrayD<f64>> {
        let mut npz = NpzReader::new(File::open(self.directory.join(file)).unwrap()).unwrap();
        let names = npz.names().unwrap();
        names.into_iter().map(|name| (name.clone(), npz.by_name(&name).unwrap())).collect()
    }
}

/// Returns all float32 tensors of a .safetensors file.
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
    let program = Program::titans_0_0_17(2);
    let dimensions = Dimensions::infer(&shapes, &program).unwrap();
    Parameters::collect(dimensions, &program, |name| to_type(tensors[name].clone()))
}

pub fn to_type<T: Real>(array: ArrayD<f64>) -> ArrayD<T> {
    array.mapv(T::from_f64)
}

/// Collects the engine's results for complete sequences and checks the engine's contract. Sequences are
/// completed in order, rows of a sequence come by chunk and head, and no token is delivered twice.
#[derive(Default)]
pub struct Collect<T> {
    /// Metrics by sequence, chunk and head.
    pub rows: Vec<ChunkMetrics>,
    /// Retrieved tokens; NaN where nothing was delivered.
    pub retrieved: Array3<T>,
    /// Losses of kept chunks by sequence, then time of reading, chunk and head.
    pub retained: Vec<Retained>,
    /// Number of complete sequences.
    pub done: usize,
    pending: BTreeMap<usize, Vec<ChunkMetrics>>,
}

impl<T: Real> Collect<T> {
    pub fn new(shape: (usize, usize, usize)) -> Self {
        let retrieved = Array3::from_elem(shape, T::nan());
        Self { rows: Vec::new(), retrieved, retained: Vec::new(), done: 0, pending: BTreeMap::new() }
    }

    /// Returns the rows as text that shows every bit of every number, except for the kind of a NaN.
    pub fn rows_text(&self) -> String {
        format!("{:?}", self.rows)
    }
}

impl<T: Real> Sink<T> for Collect<T> {
    fn metrics(&mut self, rows: &[ChunkMetrics]) -> nmem::Result<()> {
        for row in rows {
            self.pending.entry(row.sequence).or_default().push(row.clone());
        }
        Ok(())
    }
    fn retrieved(&mut self, sequence: usize, start: usize, rows: ArrayView2<T>) -> nmem::Result<()> {
        let mut place = self.retrieved.slice_mut(s![sequence, start..start + rows.nrows(), ..]);
        assert!(place.iter().all(|x| x.is_nan()), "sequence {sequence}, token {start}: delivered twice");
        place.assign(&rows);
        Ok(())
    }
    fn retained(&mut self, rows: &[Retained]) -> nmem::Result<()> {
        self.retained.extend_from_slice(rows);
        Ok(())
    }
    fn sequence_done(&mut self, sequence: usize) -> nmem::Result<()> {
        let of_sequence = self.retained.iter().filter(|row| row.sequence == sequence);
        let by_moment = |row: &Retained| (row.after, row.chunk, row.head);
        assert!(of_sequence.is_sorted_by_key(by_moment), "kept chunks by moment, chunk and head");
        assert_eq!(sequence, self.done, "sequences are completed in order");
        self.done += 1;
        let rows = self.pending.remove(&sequence).unwrap_or_default();
        assert!(rows.is_sorted_by_key(|row| (row.chunk, row.head)), "rows by chunk and head");
        self.rows.extend(rows);
        Ok(())
    }
}

/// Runs the engine on arrays; `shape` is that of the queries.
pub fn run<T: Real>(
    memory: &Memory<T>,
    state: &mut State<T>,
    work: Work<'_, T>,
    shape: (usize, usize, usize),
) -> (Collect<T>, Outcome) {
    let mut sink = Collect::new(shape);
    let outcome = Engine::new(memory).run(state, work, &mut sink, &mut |_| Ok(())).unwrap();
    assert_eq!(outcome.rows, sink.rows.len(), "counted rows are those of complete sequences");
    (sink, outcome)
}

/// Runs the engine and expects no divergence.
pub fn run_through<T: Real>(
    memory: &Memory<T>,
    state: &mut State<T>,
    work: Work<'_, T>,
    shape: (usize, usize, usize),
) -> Collect<T> {
    let (collected, outcome) = run(memory, state, work, shape);
    assert_eq!(outcome.divergence, None);
    collected
}

/// Random parameters with their settings, for either element type and for the oracle.
#[derive(Clone, Debug)]
pub struct RandomMemory {
    pub dimensions: Dimensions,
    pub program: Program,
    pub gates: Gates,
    pub past: Option<Vec<Array2<f64>>>,
    pub tensors: BTreeMap<String, ArrayD<f32>>,
}

impl RandomMemory {
    /// Creates a memory with all norms, learned gates and no past weights.
    pub fn new(
        (dim, heads, dim_head): (usize, usize, usize),
        chunk_size: usize,
        init: Init,
        seed: u64,
    ) -> Self {
        let dimensions = Dimensions { dim, heads, dim_head, pre_norm: true, post_norm: true };
        Self::of_program(Program::titans_0_0_17(chunk_size), dimensions, init, seed)
    }

    /// Creates a memory of any program.
    pub fn of_program(program: Program, dimensions: Dimensions, init: Init, seed: u64) -> Self {
        let tensors = random_tensors(&dimensions, &program, init, seed).into_iter().collect();
        Self { dimensions, program, gates: Gates::default(), past: None, tensors }
    }

    pub fn norms(mut self, pre_norm: bool, post_norm: bool) -> Self {
        self.dimensions = Dimensions { pre_norm, post_norm, ..self.dimensions };
        self
    }

    pub fn gates(self, gates: Gates) -> Self {
        Self { gates, ..self }
    }

    /// Adds past weights uniform in ±`size`.
    pub fn past(mut self, size: f64, seed: u64) -> Self {
        let d = self.dimensions.dim_head;
        let all = uniform((4, d, d), size, seed);
        self.past = Some(all.outer_iter().map(|part| part.to_owned()).collect());
        self
    }

    pub fn parameters<T: Real>(&self) -> Parameters<T> {
        Parameters::collect(self.dimensions, &self.program, |name| {
            self.tensors[name].mapv(|x| T::from_f64(f64::from(x)))
        })
    }

    pub fn memory<T: Real>(&self) -> Memory<T> {
        let past: Option<Vec<_>> =
            self.past.as_ref().map(|past| past.iter().map(|w| w.mapv(T::from_f64)).collect());
        Memory::new(self.parameters(), self.program, self.gates, past.as_deref()).unwrap()
    }

    /// Returns the oracle, with the ε of `T`.
    pub fn reference<T: Real>(&self, sequences: usize) -> Reference {
        let past = self.past.as_deref();
        Reference::new(self.parameters(), self.program, self.gates, T::EPS.to_f64(), past, sequences)
    }
}

/// Returns numbers uniform in ±`size` that f32 holds exactly, so that every element type gets the same numbers.
pub fn uniform(shape: (usize, usize, usize), size: f64, seed: u64) -> Array3<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    Array3::from_shape_simple_fn(shape, || f64::from((size * (2.0 * rng.random::<f64>() - 1.0)) as f32))
}

/// Compares every column of the metrics within `rel` of its largest magnitude, and probes where they exist.
pub fn assert_rows_close(what: &str, got: &[ChunkMetrics], expected: &[ChunkMetrics], rel: f64) {
    assert_eq!(places(got), places(expected), "{what}: sequence, chunk, head, start, end");
    let (got, expected) = (columns(got), columns(expected));
    for (name, got) in &got {
        let (what, expected) = (format!("{what}, {name}"), &expected[name]);
        let abs = (rel * largest(expected.view().into_dyn())).max(VANISHING);
        assert_close(&what, got.view().into_dyn(), expected.view().into_dyn(), abs, 0.0);
    }
}

fn places(rows: &[ChunkMetrics]) -> Vec<[usize; 5]> {
    rows.iter().map(|row| [row.sequence, row.chunk, row.head, row.start, row.end]).collect()
}

/// Returns the columns of metrics by name; those of probes if all rows have them.
pub fn columns(rows: &[ChunkMetrics]) -> BTreeMap<String, Array1<f64>> {
    let mut columns = BTreeMap::new();
    let mut add = |name: &str, of: &dyn Fn(&ChunkMetrics) -> Option<f64>| {
        let values: Option<Vec<f64>> = rows.iter().map(of).collect();
        values.and_then(|values| columns.insert(name.to_owned(), Array1::from(values)));
    };
    add("loss", &|row| Some(row.loss));
    add("loss_before", &|row| row.loss_before);
    add("loss_after", &|row| row.loss_after);
    add("surprise", &|row| Some(row.surprise));
    add("learning_rate", &|row| Some(row.learning_rate));
    add("momentum", &|row| Some(row.momentum));
    add("decay", &|row| Some(row.decay));
    add("surprise_norm", &|row| Some(row.surprise_norm));
    add("momentum_norm", &|row| Some(row.momentum_norm));
    add("update_norm", &|row| Some(row.update_norm));
    add("weight_norm", &|row| Some(row.weight_norm));
    add("loss_zero", &|row| row.loss_zero);
    add("surprise_now", &|row| row.surprise_now);
    add("key_cosine", &|row| row.key_cosine);
    for p in 0..rows.first().map_or(0, |row| row.weights.len()) {
        add(&format!("weight {p}, surprise"), &|row| Some(row.weights[p].surprise));
        add(&format!("weight {p}, momentum_norm"), &|row| Some(row.weights[p].momentum_norm));
        add(&format!("weight {p}, update_norm"), &|row| Some(row.weights[p].update_norm));
    }
    columns
}

/// Compares U and S of every sequence and head with the oracle's, per memory weight.
pub fn assert_state_close<T: Real>(
    what: &str,
    memory: &Memory<T>,
    state: &State<T>,
    expected: &Reference,
    rel: f64,
) {
    let (sequences, heads, _) = state.arrays[0].dim();
    let shapes = memory.weight_shapes();
    for (p, &(rows, cols)) in shapes.iter().enumerate() {
        let (mut update, mut momentum) =
            (Array4::zeros((sequences, heads, rows, cols)), Array4::zeros((sequences, heads, rows, cols)));
        for (i, j) in (0..sequences).flat_map(|i| (0..heads).map(move |j| (i, j))) {
            update.slice_mut(s![i, j, .., ..]).assign(&expected.head(i, j).update[p]);
            momentum.slice_mut(s![i, j, .., ..]).assign(&expected.head(i, j).momentum[p]);
        }
        for (name, got, expected) in [("U", Some(state.update()), update), ("S", state.momentum(), momentum)]
        {
            // A rule without momentum keeps no S.
            let Some(got) = got else { continue };
            let got = weight(got, &shapes, p);
            assert_close_to_largest(
                &format!("{what}, {name} of weight {p}"),
                got.view(),
                expected.view().into_dyn(),
                rel,
            );
        }
    }
}

/// Returns the arrays of expected.npz that metrics rows contain.
pub fn from_rows(rows: &[ChunkMetrics], sequences: usize, heads: usize) -> BTreeMap<String, ArrayD<f64>> {
    let per_weight = |of: fn(&ChunkMetrics, usize) -> f64| {
        let parts: Vec<_> = (0..4).map(|p| column(rows, sequences, heads, |row| of(row, p))).collect();
        let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
        ndarray::stack(Axis(3), &views).unwrap()
    };
    let mut arrays = BTreeMap::new();
    let mut add = |name: &str, array| arrays.insert(name.to_owned(), array);
    add("learning_rate", column(rows, sequences, heads, |row| row.learning_rate));
    add("momentum_gate", column(rows, sequences, heads, |row| row.momentum));
    add("decay_gate", column(rows, sequences, heads, |row| row.decay));
    add("loss", column(rows, sequences, heads, |row| row.loss));
    add("grad_norm", per_weight(|row, p| row.weights[p].surprise));
    add("momentum_norm", per_weight(|row, p| row.weights[p].momentum_norm));
    add("update_norm", per_weight(|row, p| row.weights[p].update_norm));
    arrays
}

/// Compares results with a file of a golden case.
pub fn compare(who: &str, case: &Golden, file: &str, got: &BTreeMap<String, ArrayD<f64>>, tolerance: f64) {
    for (name, expected) in case.expected(file) {
        let what = format!("{who}, {}, {name}", case.name);
        let got = got.get(&name).unwrap_or_else(|| panic!("{what}: nothing to compare"));
        assert_close_to_largest(&what, got.view(), expected.view(), tolerance);
    }
}

/// Returns the results of an engine, run by `run`, on a golden case, with the names of expected.npz.
pub fn golden_results<T: Real>(
    case: &Golden,
    run: impl FnOnce(&Memory<T>, &mut State<T>, Work<'_, T>, (usize, usize, usize)) -> (Collect<T>, Outcome),
) -> BTreeMap<String, ArrayD<f64>> {
    let memory = memory::<T>(case);
    let (read, store) = (case.seq.mapv(T::from_f64), case.stored().mapv(T::from_f64));
    let sequences = read.dim().0;
    let mut state = memory.initial_state(sequences);
    let work = Work::Online { read: &read, store: &store, probe: false };
    let (collected, outcome) = run(&memory, &mut state, work, read.dim());
    assert_eq!((outcome.divergence, outcome.read_past_store), (None, None));
    let mut results = from_rows(&collected.rows, sequences, case.heads);
    results.insert("retrieved".into(), dyn3(&collected.retrieved));
    let shapes = memory.weight_shapes();
    for (p, w) in memory.weights(0).iter().enumerate() {
        let update = weight(&state.arrays[0], &shapes, p);
        results.insert(format!("next_weights_{p}"), &update + &w.mapv(Real::to_f64));
        results.insert(format!("last_update_{p}"), update);
        results.insert(format!("last_momentum_{p}"), weight(&state.arrays[1], &shapes, p));
    }
    results
}

/// Returns a memory of the golden case in T.
pub fn memory<T: Real>(case: &Golden) -> Memory<T> {
    let program = Program::titans_0_0_17(case.chunk_size);
    Memory::new(case.parameters(), program, Gates::default(), case.past().as_deref()).unwrap()
}

/// Returns a column of metrics as (sequences, heads, chunks).
pub fn column(
    rows: &[ChunkMetrics],
    sequences: usize,
    heads: usize,
    of: impl Fn(&ChunkMetrics) -> f64,
) -> ArrayD<f64> {
    let chunks = rows.len() / (sequences * heads);
    let values: Vec<f64> = rows.iter().map(of).collect();
    let array = Array3::from_shape_vec((sequences, chunks, heads), values).unwrap();
    array.permuted_axes([0, 2, 1]).as_standard_layout().into_owned().into_dyn()
}

/// Returns one memory weight's part of U or S as (sequences, heads, rows, cols).
pub fn weight<T: Real>(of: &Array3<T>, shapes: &[(usize, usize)], p: usize) -> ArrayD<f64> {
    let offset: usize = shapes[..p].iter().map(|(rows, cols)| rows * cols).sum();
    let (rows, cols) = shapes[p];
    let part = of.slice(s![.., .., offset..offset + rows * cols]).mapv(Real::to_f64);
    let (sequences, heads, _) = part.dim();
    part.into_shape_with_order((sequences, heads, rows, cols)).unwrap().into_dyn()
}

pub fn dyn3<T: Real>(array: &Array3<T>) -> ArrayD<f64> {
    array.mapv(Real::to_f64).into_dimensionality::<Ix3>().unwrap().into_dyn()
}
