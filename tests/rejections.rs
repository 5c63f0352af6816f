//! What the library refuses, and that it says what would have been right.

mod support;

use std::collections::BTreeMap;

use ndarray::Array3;
use nmem::Error;
use nmem::engine::{Discard, Engine, Memory, Work};
use nmem::memory::parameters::{Init, Mismatch};
use nmem::memory::{Dimensions, Gates, State};
use support::{RandomMemory, run_through, uniform};

fn message(work: Work<'_, f64>, memory: &Memory<f64>, state: &mut State<f64>) -> String {
    let before = state.clone();
    let error = Engine::new(memory).run(state, work, &mut Discard, &mut |_| Ok(())).unwrap_err();
    assert!(matches!(error, Error::Setting { .. }), "{error}");
    assert_eq!(*state, before, "a refusal leaves the state alone");
    error.to_string()
}

fn tokens(sequences: usize, tokens: usize, dim: usize) -> Array3<f64> {
    uniform((sequences, tokens, dim), 1.0, 1)
}

#[test]
fn online_from_streams_at_different_chunks() {
    let memory = RandomMemory::new((4, 1, 4), 5, Init::Xavier, 1).memory::<f64>();
    let (some, more) = (tokens(2, 3, 4), tokens(2, 12, 4));
    for (read, stored, got) in [
        (4, 5, "1 stored (5 tokens) and 0 read (4 tokens)"),
        (15, 14, "2 stored (14 tokens) and 3 read (15 tokens)"),
        (0, 11, "2 stored (11 tokens) and 0 read (0 tokens)"),
    ] {
        let mut state = memory.initial_state(2);
        let (read, stored) = (tokens(2, read, 4), tokens(2, stored, 4));
        let work = Work::Online { read: &read, store: &stored, probe: false };
        run_through(&memory, &mut state, work, read.dim());
        let work = Work::Online { read: &some, store: &some, probe: false };
        let expected =
            "--online: expected a memory that has stored and read the same number of complete chunks";
        assert_eq!(message(work, &memory, &mut state), format!("{expected}, got {got}"));
        // What needs no earlier U still goes.
        run_through(&memory, &mut state, Work::Read(&more), more.dim());
        run_through(&memory, &mut state, Work::Store { sequences: &more, probe: false }, (0, 0, 0));
    }
    // Left-overs of different lengths within the same chunk are in step.
    let mut state = memory.initial_state(2);
    for (read, stored) in [(9, 5), (0, 4), (1, 1)] {
        let (read, stored) = (tokens(2, read, 4), tokens(2, stored, 4));
        let work = Work::Online { read: &read, store: &stored, probe: false };
        run_through(&memory, &mut state, work, read.dim());
    }
}

#[test]
fn wrong_number_of_sequences() {
    let memory = RandomMemory::new((4, 1, 4), 5, Init::Xavier, 1).memory::<f64>();
    let (one, two, three) = (tokens(1, 7, 4), tokens(2, 7, 4), tokens(3, 7, 4));
    let mut state = memory.initial_state(2);
    let expected = "expected as many sequences as the memory's state, 2, got";
    for (given, got) in [(&one, 1), (&three, 3)] {
        let work = Work::Store { sequences: given, probe: false };
        let to_store = format!("sequences to store: {expected} {got}");
        let to_read = format!("sequences to read: {expected} {got}");
        assert_eq!(message(work, &memory, &mut state), to_store);
        let work = Work::Online { read: &two, store: given, probe: false };
        assert_eq!(message(work, &memory, &mut state), to_store);
        let work = Work::Online { read: given, store: &two, probe: false };
        assert_eq!(message(work, &memory, &mut state), to_read);
        assert_eq!(message(Work::Read(given), &memory, &mut state), to_read);
    }
    // A state of one can be read by any number, but not stored into, nor gone on from online.
    let mut state = memory.initial_state(1);
    let expected = "expected as many sequences as the memory's state, 1, got 3";
    let work = Work::Store { sequences: &three, probe: false };
    assert_eq!(message(work, &memory, &mut state), format!("sequences to store: {expected}"));
    let work = Work::Online { read: &three, store: &one, probe: false };
    assert_eq!(message(work, &memory, &mut state), format!("sequences to read: {expected}"));
    run_through(&memory, &mut state, Work::Read(&three), three.dim());
}

#[test]
fn wrong_width() {
    let memory = RandomMemory::new((4, 1, 4), 5, Init::Xavier, 1).memory::<f64>();
    let (right, wrong) = (tokens(1, 7, 4), tokens(1, 7, 3));
    let mut state = memory.initial_state(1);
    for work in [
        Work::Read(&wrong),
        Work::Store { sequences: &wrong, probe: false },
        Work::Online { read: &right, store: &wrong, probe: false },
        Work::Online { read: &wrong, store: &right, probe: false },
    ] {
        let expected = "sequence: expected tokens of the memory's width, 4, got 3";
        assert_eq!(message(work, &memory, &mut state), expected);
    }
}

#[test]
fn invalid_dimensions() {
    let check = |dim, heads, dim_head, pre_norm, chunk_size| {
        let dimensions = Dimensions { dim, heads, dim_head, pre_norm, post_norm: pre_norm };
        dimensions.check(chunk_size).map_err(|error| error.to_string())
    };
    let chunk = |size: usize, problem: &str| format!("chunk_size {size} is {problem}; use 2 to 16384");
    let short =
        |size: usize| chunk(size, "below 2: a token of the attention memory looks back within its chunk");
    let long = |size: usize| {
        chunk(size, "above 16384: attention within a chunk takes the square of its size in memory")
    };
    let one_head =
        "dim_head: expected dim_head = dim = 4 with one head (nothing would map the output back to dim)";
    // Whatever the norms.
    for norms in [false, true] {
        assert_eq!(check(4, 1, 4, norms, 1), Err(short(1)));
        assert_eq!(check(4, 2, 3, norms, 0), Err(short(0)));
        assert_eq!(check(4, 1, 3, norms, 2), Err(format!("{one_head}, got 3")));
        assert_eq!(check(4, 1, 5, norms, 2), Err(format!("{one_head}, got 5")));
        assert_eq!(check(0, 1, 1, norms, 2), Err("dim: expected at least 1, got 0".into()));
        assert_eq!(check(4, 0, 4, norms, 2), Err("heads: expected at least 1, got 0".into()));
        assert_eq!(check(4, 1, 0, norms, 2), Err("dim_head: expected at least 1, got 0".into()));
        assert_eq!(check(4, 1, 4, norms, 2), Ok(()));
        assert_eq!(check(4, 2, 5, norms, 16_384), Ok(()));
        assert_eq!(check(4, 2, 5, norms, 16_385), Err(long(16_385)));
    }
    // A memory is never made of them.
    let random = RandomMemory::new((4, 1, 4), 2, Init::Xavier, 1);
    let rejected = Memory::new(random.parameters::<f32>(), 1, Gates::default(), None).unwrap_err();
    assert_eq!(rejected.to_string(), short(1));
    let random = RandomMemory::new((4, 1, 3), 2, Init::Xavier, 1);
    let rejected = Memory::new(random.parameters::<f32>(), 2, Gates::default(), None).unwrap_err();
    assert_eq!(rejected.to_string(), format!("{one_head}, got 3"));
}

type Shapes = BTreeMap<String, Vec<usize>>;

const SEVERAL_HEADS: Dimensions =
    Dimensions { dim: 5, heads: 2, dim_head: 3, pre_norm: true, post_norm: true };

fn shapes(dimensions: &Dimensions) -> Shapes {
    dimensions.tensors().into_iter().collect()
}

fn mismatch(
    tensor: &str,
    expected: impl Into<String>,
    got: impl Into<String>,
) -> Result<Dimensions, Mismatch> {
    Err(Mismatch { tensor: tensor.into(), expected: expected.into(), got: got.into() })
}

#[test]
fn dimensions_are_read_off_shapes() {
    for (pre_norm, post_norm) in [(false, false), (false, true), (true, false), (true, true)] {
        for (dim, heads, dim_head) in [(5, 2, 3), (4, 1, 4), (1, 1, 1), (6, 6, 1), (1, 3, 7)] {
            let dimensions = Dimensions { dim, heads, dim_head, pre_norm, post_norm };
            assert_eq!(Dimensions::infer(&shapes(&dimensions)), Ok(dimensions));
        }
    }
}

#[test]
fn tensors_that_are_missing() {
    let all = shapes(&SEVERAL_HEADS);
    for (name, shape) in &all {
        let mut without = all.clone();
        without.remove(name);
        let expected = match name.as_str() {
            // Off is off: without it there is no norm of what was read.
            "post_rmsnorm.weight" => Ok(Dimensions { post_norm: false, ..SEVERAL_HEADS }),
            "to_queries.weight" => {
                mismatch(name, "a tensor of shape [heads * dim_head, dim]", "no such tensor")
            }
            "memory_model.weights.0" => {
                mismatch(name, "a tensor of shape [dim_head, dim_head]", "no such tensor")
            }
            _ => mismatch(name, format!("a tensor of shape {shape:?}"), "no such tensor"),
        };
        assert_eq!(Dimensions::infer(&without), expected, "without {name}");
    }
    let nothing =
        mismatch("to_queries.weight", "a tensor of shape [heads * dim_head, dim]", "no such tensor");
    assert_eq!(Dimensions::infer(&Shapes::new()), nothing);
}

#[test]
fn tensors_of_another_shape() {
    let all = shapes(&SEVERAL_HEADS);
    let with = |name: &str, shape: &[usize]| {
        let mut shapes = all.clone();
        shapes.insert(name.to_owned(), shape.to_vec());
        Dimensions::infer(&shapes)
    };
    // All but the two that dimensions are read off: each is named itself, however it differs.
    for (name, right) in &all {
        if ["to_queries.weight", "memory_model.weights.0"].contains(&name.as_str()) {
            continue;
        }
        let mut wrong =
            vec![vec![], right.iter().map(|n| n + 1).collect(), [right.as_slice(), &[1]].concat()];
        wrong.push([&[0], &right[1..]].concat());
        if right.len() == 2 && right[0] != right[1] {
            wrong.push(vec![right[1], right[0]]);
        }
        for shape in wrong {
            let expected = mismatch(name, format!("shape {right:?}"), format!("{shape:?}"));
            assert_eq!(with(name, &shape), expected);
        }
    }
    for shape in [&[][..], &[6], &[6, 5, 1], &[0, 5], &[6, 0]] {
        let (queries, weight) = ("to_queries.weight", "memory_model.weights.0");
        let got = format!("{shape:?}");
        assert_eq!(with(queries, shape), mismatch(queries, "shape [heads * dim_head, dim]", got.clone()));
        assert_eq!(with(weight, shape), mismatch(weight, "shape [dim_head, dim_head]", got));
    }
    let heads = |dim_head: usize, rows: usize| {
        let expected = format!("rows that are a multiple of dim_head {dim_head}");
        mismatch("to_queries.weight", expected, format!("{rows} rows"))
    };
    assert_eq!(with("to_queries.weight", &[7, 5]), heads(3, 7));
    assert_eq!(with("memory_model.weights.0", &[4, 4]), heads(4, 6));
    // Plausible alone, these disagree with the first of the others by name.
    let combine = |right: &str| mismatch("combine_heads.weight", format!("shape {right}"), "[5, 6]");
    assert_eq!(with("to_queries.weight", &[6, 4]), combine("[4, 6]"));
    assert_eq!(with("to_queries.weight", &[9, 5]), combine("[5, 9]"));
    assert_eq!(
        with("memory_model.weights.0", &[3, 4]),
        mismatch("memory_model.weights.0", "shape [3, 3]", "[3, 4]")
    );
    assert_eq!(
        with("memory_model.weights.0", &[2, 2]),
        mismatch("memory_model.weights.1", "shape [2, 2]", "[3, 3]")
    );
}

#[test]
fn tensors_of_another_name() {
    let one_head = Dimensions { dim: 4, heads: 1, dim_head: 4, pre_norm: true, post_norm: true };
    let unknown = |dimensions: &Dimensions, name: &str, shape: &[usize]| {
        let mut shapes = shapes(dimensions);
        shapes.insert(name.to_owned(), shape.to_vec());
        let expected = "only the parameters of an attention memory (MemoryAttention, no biases)";
        assert_eq!(Dimensions::infer(&shapes), mismatch(name, expected, "a tensor of another name"));
    };
    unknown(&SEVERAL_HEADS, "to_queries.bias", &[6]);
    unknown(&SEVERAL_HEADS, "memory_model.weights.4", &[3, 3]);
    unknown(&SEVERAL_HEADS, "state.update.0", &[1, 2, 3, 3]);
    // With one head there is nothing to combine.
    unknown(&one_head, "combine_heads.weight", &[4, 4]);
}
