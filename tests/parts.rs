//! A life in several calls gives the same results as one call. Chunk numbers continue, a chunk cut by the end
//! of a call is completed by the next, and left-over tokens are kept bit for bit.

mod support;

use ndarray::{Array2, Array3, Axis, concatenate, s};
use nmem::engine::{Memory, Work};
use nmem::memory::parameters::Init;
use nmem::memory::state::StreamPosition;
use nmem::memory::{Gates, State};
use nmem::metrics::ChunkMetrics;
use nmem::real::Real;
use rayon::prelude::*;
use support::{
    Collect, RandomMemory, assert_close_to_largest, assert_rows_close, assert_state_close, dyn3, run_through,
    uniform, weight,
};

const DIM: usize = 5;
const CHUNK: usize = 5;
const SEQUENCES: usize = 2;

/// The tolerance of tests/engine.rs against the oracle.
const ORACLE: f64 = 1e-10;

fn random() -> RandomMemory {
    RandomMemory::new((DIM, 2, 3), CHUNK, Init::Xavier, 1).past(0.3, 2)
}

fn tokens<T: Real>(tokens: usize, seed: u64) -> Array3<T> {
    uniform((SEQUENCES, tokens, DIM), 1.0, seed).mapv(T::from_f64)
}

/// A memory and its results over the calls so far.
struct RunningMemory<T: Real> {
    memory: Memory<T>,
    state: State<T>,
    /// Metrics by call, then sequence, chunk and head.
    rows: Vec<ChunkMetrics>,
    retrieved: Vec<Array3<T>>,
}

impl<T: Real> RunningMemory<T> {
    fn new(memory: Memory<T>) -> Self {
        let state = memory.initial_state(SEQUENCES);
        Self { memory, state, rows: Vec::new(), retrieved: Vec::new() }
    }

    fn add(&mut self, collected: Collect<T>) {
        self.rows.extend(collected.rows);
        self.retrieved.push(collected.retrieved);
    }

    fn online(&mut self, read: &Array3<T>, store: &Array3<T>) {
        let work = Work::Online { read, store, probe: true };
        let collected = run_through(&self.memory, &mut self.state, work, read.dim());
        self.add(collected);
    }

    fn store(&mut self, sequences: &Array3<T>) {
        let work = Work::Store { sequences, probe: true };
        let collected = run_through(&self.memory, &mut self.state, work, (SEQUENCES, 0, DIM));
        self.add(collected);
    }

    fn read(&mut self, queries: &Array3<T>) -> Array3<T> {
        let before = self.state.clone();
        let work = Work::Read(queries);
        let retrieved = run_through(&self.memory, &mut self.state, work, queries.dim()).retrieved;
        assert_eq!(self.state, before, "a plain read does not change the state");
        retrieved
    }

    fn retrieved(&self) -> Array3<T> {
        let parts: Vec<_> = self.retrieved.iter().map(|part| part.view()).collect();
        concatenate(Axis(1), &parts).unwrap()
    }

    /// Compares with a life in one call, bit for bit: metrics, the last tokens read, and the state.
    fn assert_same(mut self, what: &str, whole: &Self) {
        self.rows.sort_by_key(|row| (row.sequence, row.chunk, row.head));
        assert_eq!(self.rows.len(), whole.rows.len(), "{what}: rows");
        for (got, expected) in self.rows.iter().zip(&whole.rows) {
            assert_eq!(format!("{got:?}"), format!("{expected:?}"), "{what}");
        }
        let (got, all) = (self.retrieved(), whole.retrieved());
        let expected = all.slice(s![.., all.dim().1 - got.dim().1.., ..]).to_owned();
        assert_same_bits(&format!("{what}, retrieved"), &got, &expected);
        assert_eq!(self.state.stored, whole.state.stored, "{what}: tokens stored");
        assert_eq!(self.state.read, whole.state.read, "{what}: tokens read");
        assert_same_bits(&format!("{what}, U"), &self.state.arrays[0], &whole.state.arrays[0]);
        assert_same_bits(&format!("{what}, S"), &self.state.arrays[1], &whole.state.arrays[1]);
    }
}

/// Fails and names the first number whose bits differ.
fn assert_same_bits<T: Real>(what: &str, got: &Array3<T>, expected: &Array3<T>) {
    assert_eq!(got.dim(), expected.dim(), "{what}: shapes");
    for ((place, got), expected) in got.indexed_iter().zip(expected) {
        let same = got.le_bytes().as_ref() == expected.le_bytes().as_ref();
        assert!(same, "{what}, {place:?}: {got:e}, expected {expected:e}");
    }
}

/// Splits `of` into consecutive parts of these lengths.
fn cut<T: Real>(of: &Array3<T>, lengths: &[usize]) -> Vec<Array3<T>> {
    assert_eq!(lengths.iter().sum::<usize>(), of.dim().1, "the parts cover the whole");
    let mut start = 0;
    let parts = lengths.iter().map(|length| {
        start += length;
        of.slice(s![.., start - length..start, ..]).to_owned()
    });
    parts.collect()
}

/// Two, three and seven pieces: cut within chunks, at their ends, into single tokens, into no tokens, and
/// longer than a block.
const PIECES: [&[usize]; 6] =
    [&[23, 14], &[5, 20], &[3, 30, 4], &[1, 0, 12, 2, 1, 20, 1], &[4, 1, 5, 1, 3, 1, 1], &[258, 3, 540]];

fn online_in_pieces<T: Real>() {
    for lengths in PIECES {
        let all = tokens::<T>(lengths.iter().sum(), 3);
        let mut whole = RunningMemory::new(random().memory::<T>());
        whole.online(&all, &all);
        let mut parts = RunningMemory::new(random().memory::<T>());
        for part in cut(&all, lengths) {
            parts.online(&part, &part);
        }
        let kept = all.dim().1 / CHUNK * CHUNK;
        let left_over = all.slice(s![.., kept.., ..]).to_owned();
        let position = StreamPosition { tokens: all.dim().1, left_over };
        assert_eq!(
            (&parts.state.stored, &parts.state.read),
            (&position, &position),
            "{lengths:?}: tokens kept"
        );
        parts.assert_same(&format!("online in {lengths:?}, {}", T::TYPE), &whole);
    }
}

#[test]
fn online_in_pieces_f64() {
    online_in_pieces::<f64>();
}

#[test]
fn online_in_pieces_f32() {
    online_in_pieces::<f32>();
}

/// Chunks shorter than a register, as long as one, and longer, cut at every token. The shapes of partial chunks
/// must not affect results.
fn online_cut_anywhere<T: Real>() {
    [100, 64, 31, 17, 16, 9, 8, 7].into_par_iter().for_each(|chunk| {
        for (dim, heads, dim_head) in [(19, 2, 33), (13, 1, 13)] {
            let random = RandomMemory::new((dim, heads, dim_head), chunk, Init::Xavier, 16).past(0.3, 17);
            let memory = random.memory::<T>();
            let length = 2 * chunk + 3;
            let all: Array3<T> = uniform((1, length, dim), 1.0, 18).mapv(T::from_f64);
            let online = |state: &mut State<T>, part: &Array3<T>| {
                run_through(
                    &memory,
                    state,
                    Work::Online { read: part, store: part, probe: false },
                    part.dim(),
                )
            };
            let mut state_of_whole = memory.initial_state(1);
            let whole = online(&mut state_of_whole, &all);
            for at in 0..=length {
                let what = format!("chunks of {chunk}, {heads} heads, {}, cut at {at}", T::TYPE);
                let mut state = memory.initial_state(1);
                let parts = <[_; 2]>::try_from(cut(&all, &[at, length - at])).unwrap();
                let parts = parts.map(|part| online(&mut state, &part));
                let retrieved = concatenate![Axis(1), parts[0].retrieved, parts[1].retrieved];
                assert_same_bits(&format!("{what}, retrieved"), &retrieved, &whole.retrieved);
                assert_same_bits(&format!("{what}, U"), &state.arrays[0], &state_of_whole.arrays[0]);
                assert_same_bits(&format!("{what}, S"), &state.arrays[1], &state_of_whole.arrays[1]);
                let rows: Vec<_> = parts.iter().flat_map(|part| &part.rows).collect();
                assert_eq!(format!("{rows:?}"), whole.rows_text(), "{what}");
            }
        }
    });
}

#[test]
fn online_cut_anywhere_f64() {
    online_cut_anywhere::<f64>();
}

#[test]
fn online_cut_anywhere_f32() {
    online_cut_anywhere::<f32>();
}

/// The oracle in one call agrees with the engine in several.
#[test]
fn pieces_against_the_oracle() {
    for lengths in PIECES {
        let all = tokens::<f64>(lengths.iter().sum(), 3);
        let mut parts = RunningMemory::new(random().memory::<f64>());
        for part in cut(&all, lengths) {
            parts.online(&part, &part);
        }
        let mut reference = random().reference::<f64>(SEQUENCES);
        let (retrieved, rows) = reference.online(&all, &all);
        let what = format!("{lengths:?} against the oracle");
        parts.rows.sort_by_key(|row| (row.sequence, row.chunk, row.head));
        assert_rows_close(&what, &parts.rows, &rows, ORACLE);
        let got = parts.retrieved();
        assert_close_to_largest(&what, dyn3(&got).view(), retrieved.view().into_dyn(), ORACLE);
        assert_state_close(&what, &parts.memory, &parts.state, &reference, ORACLE);
    }
}

/// A separate stored sequence: at the end of each call both streams have the same number of complete chunks,
/// and their own left-over tokens.
#[test]
fn two_sequences_in_pieces() {
    let cases: [(&[usize], &[usize]); 3] = [
        (&[9, 1, 12, 12], &[7, 4, 13, 6]),
        (&[0, 4, 1, 20, 4], &[4, 0, 2, 23, 0]),
        (&[12, 266, 3, 4], &[14, 261, 9, 0]),
    ];
    for (read_lengths, store_lengths) in cases {
        let read = tokens::<f64>(read_lengths.iter().sum(), 4);
        let store = tokens::<f64>(store_lengths.iter().sum(), 5);
        let mut whole = RunningMemory::new(random().memory::<f64>());
        whole.online(&read, &store);
        let mut parts = RunningMemory::new(random().memory::<f64>());
        for (read, store) in cut(&read, read_lengths).iter().zip(&cut(&store, store_lengths)) {
            parts.online(read, store);
        }
        assert_ne!(parts.state.stored.left_over, parts.state.read.left_over);
        parts.assert_same(&format!("{read_lengths:?} read, {store_lengths:?} stored"), &whole);
    }
}

/// A plain store counts its tokens as read too, so online work continues from there. Reads in between change nothing.
#[test]
fn store_then_online_with_reads_between() {
    for lengths in [[13, 24], [15, 8], [3, 40], [4, 1], [270, 300]] {
        let all = tokens::<f64>(lengths.iter().sum(), 6);
        let queries = tokens::<f64>(12, 7);
        let [first, second] = <[_; 2]>::try_from(cut(&all, &lengths)).unwrap();
        let mut whole = RunningMemory::new(random().memory::<f64>());
        whole.online(&all, &all);
        let mut reference = random().reference::<f64>(SEQUENCES);
        reference.store(&first);

        let mut parts = RunningMemory::new(random().memory::<f64>());
        parts.store(&first);
        let read = parts.read(&queries);
        let expected = reference.read(&queries);
        let what = format!("{lengths:?}");
        assert_close_to_largest(&what, dyn3(&read).view(), expected.view().into_dyn(), ORACLE);
        assert_eq!(read, parts.read(&queries), "{what}: the same read twice");
        parts.online(&second, &second);
        parts.assert_same(&what, &whole);
    }
}

#[test]
fn plain_stores_in_pieces() {
    for lengths in PIECES {
        let all = tokens::<f32>(lengths.iter().sum(), 8);
        let mut whole = RunningMemory::new(random().memory::<f32>());
        whole.store(&all);
        let mut parts = RunningMemory::new(random().memory::<f32>());
        for part in cut(&all, lengths) {
            parts.store(&part);
        }
        parts.assert_same(&format!("stored in {lengths:?}"), &whole);
    }
}

/// Left-over tokens of both streams survive a plain store, which adds the same tokens to each.
#[test]
fn online_then_store() {
    let (read, store, more) = (tokens::<f64>(13, 9), tokens::<f64>(11, 10), tokens::<f64>(9, 11));
    let join = |a: &Array3<f64>, b: &Array3<f64>| concatenate(Axis(1), &[a.view(), b.view()]).unwrap();
    let mut parts = RunningMemory::new(random().memory::<f64>());
    parts.online(&read, &store);
    parts.store(&more);
    let (all_read, all_stored) = (join(&read, &more), join(&store, &more));
    let mut whole = RunningMemory::new(random().memory::<f64>());
    whole.online(&all_read, &all_stored);
    // A plain store retrieves nothing.
    whole.retrieved = vec![whole.retrieved().slice(s![.., ..13, ..]).to_owned()];
    parts.assert_same("online, then a plain store", &whole);
}

/// One sequence alone gives the bits of the same sequence in a batch.
#[test]
fn sequences_do_not_touch_each_other() {
    let all = tokens::<f64>(37, 12);
    let mut together = RunningMemory::new(random().memory::<f64>());
    together.online(&all, &all);
    for sequence in 0..SEQUENCES {
        let alone = |of: &Array3<f64>| of.slice(s![sequence..=sequence, .., ..]).to_owned();
        let memory = random().memory::<f64>();
        let (mut state, one) = (memory.initial_state(1), alone(&all));
        let work = Work::Online { read: &one, store: &one, probe: false };
        let collected = run_through(&memory, &mut state, work, one.dim());
        assert_eq!(collected.retrieved, alone(&together.retrieved()), "sequence {sequence}: the same bits");
        assert_eq!(state.arrays[0], alone(&together.state.arrays[0]), "sequence {sequence}: the same bits");
    }
}

/// Reads any range of a stream: left-over tokens, following tokens, and both.
#[test]
fn rows_of_a_stream() {
    let all = tokens::<f64>(20, 15);
    let (first, kept, before) = (10, 4, 14);
    let given = all.slice(s![.., before.., ..]).to_owned();
    let position =
        StreamPosition { tokens: before, left_over: all.slice(s![.., first..before, ..]).to_owned() };
    assert_eq!((position.left_over.dim().1, position.chunks(CHUNK)), (kept, 2));
    for (start, end) in (first..=20).flat_map(|start| (start..=20).map(move |end| (start, end))) {
        for sequence in 0..SEQUENCES {
            let mut rows = Array2::from_elem((end - start, DIM), f64::NAN);
            position.read_rows(&given, sequence, start, rows.view_mut()).unwrap();
            assert_eq!(rows, all.slice(s![sequence, start..end, ..]), "sequence {sequence}, {start}..{end}");
        }
    }
}

/// The recurrences are linear. With S set to zero at a chunk's end, the result is that of the second part from
/// zero plus the rest of U: S = S₂, U = U₂ + Π (1 − α) U₁.
#[test]
fn restarted_momentum() {
    let random = RandomMemory { past: None, ..random() }.gates(Gates::default());
    let (first, second) = (tokens::<f64>(4 * CHUNK, 13), tokens::<f64>(3 * CHUNK, 14));
    let mut running = RunningMemory::new(random.memory::<f64>());
    running.store(&first);
    let before = running.state.arrays[0].clone();
    assert!(running.state.arrays[1].iter().any(|&x| x != 0.0));
    running.state.arrays[1].fill(0.0);
    running.store(&second);

    let mut reference = random.reference::<f64>(SEQUENCES);
    let rows = reference.store(&second);
    let shapes = running.memory.weight_shapes();
    for sequence in 0..SEQUENCES {
        for head in 0..2 {
            let of_head = rows.iter().filter(|row| (row.sequence, row.head) == (sequence, head));
            let kept: f64 = of_head.map(|row| 1.0 - row.decay).product();
            for p in 0..shapes.len() {
                let part = |of: &Array3<f64>| {
                    weight(of, &shapes, p).index_axis(Axis(0), sequence).index_axis(Axis(0), head).to_owned()
                };
                let expected = &reference.head(sequence, head).update[p] + &(kept * part(&before));
                let what = format!("sequence {sequence}, head {head}, weight {p}");
                assert_close_to_largest(
                    &what,
                    part(&running.state.arrays[0]).view(),
                    expected.view(),
                    ORACLE,
                );
                let expected = reference.head(sequence, head).momentum[p].clone().into_dyn();
                assert_close_to_largest(
                    &what,
                    part(&running.state.arrays[1]).view(),
                    expected.view(),
                    ORACLE,
                );
            }
        }
    }
}
