//! Errors of the library, each with the accepted values: cases with their messages, as snapshots.

mod support;

use std::collections::BTreeMap;

use ndarray::Array3;
use nmem::Error;
use nmem::engine::{Discard, Engine, Memory, Work};
use nmem::memory::parameters::{Init, Mismatch};
use nmem::memory::{Dimensions, Gates, Program, State};
use support::{RandomMemory, run_through, uniform};

fn message(work: Work<'_, f64>, memory: &Memory<f64>, state: &mut State<f64>) -> String {
    let before = state.clone();
    let error = Engine::new(memory).run(state, work, &mut Discard, &mut |_| Ok(())).unwrap_err();
    assert!(matches!(error, Error::Setting { .. }), "{error}");
    assert_eq!(*state, before, "what is rejected leaves the state alone");
    error.to_string()
}

/// Cases, each with its message.
#[derive(Default)]
struct Messages(String);

impl Messages {
    fn add(&mut self, case: &str, message: &str) {
        self.0.extend([case, "\n  ", message, "\n"]);
    }
}

fn tokens(sequences: usize, tokens: usize, dim: usize) -> Array3<f64> {
    uniform((sequences, tokens, dim), 1.0, 1)
}

#[test]
fn online_from_streams_at_different_chunks() {
    let memory = RandomMemory::new((4, 1, 4), 5, Init::Xavier, 1).memory::<f64>();
    let (some, more) = (tokens(2, 3, 4), tokens(2, 12, 4));
    let mut messages = Messages::default();
    for (read, stored) in [(4, 5), (15, 14), (0, 11)] {
        let case = format!("online after {stored} tokens stored and {read} read");
        let mut state = memory.initial_state(2);
        let (read, stored) = (tokens(2, read, 4), tokens(2, stored, 4));
        let work = Work::Online { read: &read, store: &stored, probe: false };
        run_through(&memory, &mut state, work, read.dim());
        let work = Work::Online { read: &some, store: &some, probe: false };
        messages.add(&case, &message(work, &memory, &mut state));
        // What needs no earlier U still goes.
        run_through(&memory, &mut state, Work::Read(&more), more.dim());
        run_through(&memory, &mut state, Work::Store { sequences: &more, probe: false }, (0, 0, 0));
    }
    insta::assert_snapshot!(messages.0);
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
    let mut messages = Messages::default();
    for given in [&one, &three] {
        let sequences = given.dim().0;
        let work = Work::Store { sequences: given, probe: false };
        let to_store = message(work, &memory, &mut state);
        messages.add(&format!("{sequences} to store into a state of 2"), &to_store);
        let work = Work::Online { read: &two, store: given, probe: false };
        assert_eq!(message(work, &memory, &mut state), to_store);
        let work = Work::Online { read: given, store: &two, probe: false };
        let to_read = message(work, &memory, &mut state);
        messages.add(&format!("{sequences} to read from a state of 2"), &to_read);
        assert_eq!(message(Work::Read(given), &memory, &mut state), to_read);
    }
    // A state of one can be read by any number, but it cannot store, and it cannot continue online.
    let mut state = memory.initial_state(1);
    let work = Work::Store { sequences: &three, probe: false };
    messages.add("3 to store into a state of 1", &message(work, &memory, &mut state));
    let work = Work::Online { read: &three, store: &one, probe: false };
    messages.add("3 to read online from a state of 1", &message(work, &memory, &mut state));
    insta::assert_snapshot!(messages.0);
    run_through(&memory, &mut state, Work::Read(&three), three.dim());
}

#[test]
fn wrong_width() {
    let memory = RandomMemory::new((4, 1, 4), 5, Init::Xavier, 1).memory::<f64>();
    let (right, wrong) = (tokens(1, 7, 4), tokens(1, 7, 3));
    let mut state = memory.initial_state(1);
    let expected = message(Work::Read(&wrong), &memory, &mut state);
    insta::assert_snapshot!(expected);
    for work in [
        Work::Store { sequences: &wrong, probe: false },
        Work::Online { read: &right, store: &wrong, probe: false },
        Work::Online { read: &wrong, store: &right, probe: false },
    ] {
        assert_eq!(message(work, &memory, &mut state), expected);
    }
}

#[test]
fn invalid_dimensions() {
    let check = |dim, heads, dim_head, pre_norm, chunk_size| {
        let dimensions = Dimensions { dim, heads, dim_head, pre_norm, post_norm: pre_norm };
        dimensions.check(&Program::titans_0_0_17(chunk_size)).map_err(|error| error.to_string())
    };
    let mut messages = Messages::default();
    for (dim, heads, dim_head, chunk_size) in [
        (4, 1, 4, 1),
        (4, 2, 3, 0),
        (4, 1, 3, 2),
        (4, 1, 5, 2),
        (0, 1, 1, 2),
        (4, 0, 4, 2),
        (4, 1, 0, 2),
        (4, 2, 5, 16_385),
    ] {
        let case = format!("dim {dim}, heads {heads}, dim_head {dim_head}, chunks of {chunk_size}");
        let error = check(dim, heads, dim_head, true, chunk_size).expect_err(&case);
        // Whatever the norms.
        assert_eq!(check(dim, heads, dim_head, false, chunk_size), Err(error.clone()), "{case}");
        messages.add(&case, &error);
        // A memory is never made of them.
        if (dim, heads, chunk_size) == (4, 1, 1) || (dim, heads, dim_head) == (4, 1, 3) {
            let random = RandomMemory::new((dim, heads, dim_head), 2, Init::Xavier, 1);
            let memory = {
                let program = Program::titans_0_0_17(chunk_size);
                Memory::new(random.parameters::<f32>(), program, Gates::default(), None)
            };
            assert_eq!(memory.unwrap_err().to_string(), error);
        }
    }
    insta::assert_snapshot!(messages.0);
    for norms in [false, true] {
        assert_eq!(check(4, 1, 4, norms, 2), Ok(()));
        assert_eq!(check(4, 2, 5, norms, 16_384), Ok(()));
    }
}

type Shapes = BTreeMap<String, Vec<usize>>;

fn infer(shapes: &Shapes) -> Result<Dimensions, Mismatch> {
    Dimensions::infer(shapes, &Program::titans_0_0_17(2))
}

const SEVERAL_HEADS: Dimensions =
    Dimensions { dim: 5, heads: 2, dim_head: 3, pre_norm: true, post_norm: true };

fn shapes(dimensions: &Dimensions) -> Shapes {
    let tensors = dimensions.tensors(&Program::titans_0_0_17(2)).into_iter();
    tensors.map(|tensor| (tensor.name, tensor.shape)).collect()
}

/// The tensor that a mismatch names, and the whole message.
fn mismatch(shapes: &Shapes) -> (String, String) {
    let Mismatch { tensor, expected, got } = infer(shapes).expect_err("a mismatch");
    let message = format!("{tensor}: expected {expected}, got {got}");
    (tensor, message)
}

#[test]
fn dimensions_are_read_off_shapes() {
    for (pre_norm, post_norm) in [(false, false), (false, true), (true, false), (true, true)] {
        for (dim, heads, dim_head) in [(5, 2, 3), (4, 1, 4), (1, 1, 1), (6, 6, 1), (1, 3, 7)] {
            let dimensions = Dimensions { dim, heads, dim_head, pre_norm, post_norm };
            assert_eq!(infer(&shapes(&dimensions)), Ok(dimensions));
        }
    }
}

#[test]
fn tensors_that_are_missing() {
    let all = shapes(&SEVERAL_HEADS);
    let mut messages = Messages::default();
    for name in all.keys() {
        let mut without = all.clone();
        without.remove(name);
        if name == "post_rmsnorm.weight" {
            // Off is off: without it there is no norm of what was read.
            let expected = Dimensions { post_norm: false, ..SEVERAL_HEADS };
            assert_eq!(infer(&without), Ok(expected));
            continue;
        }
        let (tensor, message) = mismatch(&without);
        assert_eq!(tensor, *name);
        messages.add(&format!("without {name}"), &message);
    }
    let (tensor, message) = mismatch(&Shapes::new());
    assert_eq!(tensor, "to_queries.weight");
    messages.add("without any", &message);
    insta::assert_snapshot!(messages.0);
}

#[test]
fn tensors_of_another_shape() {
    let all = shapes(&SEVERAL_HEADS);
    let mut messages = Messages::default();
    let mut with = |name: &str, shape: &[usize], named: &str| {
        let mut shapes = all.clone();
        shapes.insert(name.to_owned(), shape.to_vec());
        let (tensor, message) = mismatch(&shapes);
        assert_eq!(tensor, named, "{name} of shape {shape:?}: {message}");
        messages.add(&format!("{name} of shape {shape:?}"), &message);
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
            with(name, &shape, name);
        }
    }
    let (queries, weight) = ("to_queries.weight", "memory_model.weights.0");
    for shape in [&[][..], &[6], &[6, 5, 1], &[0, 5], &[6, 0]] {
        with(queries, shape, queries);
        with(weight, shape, weight);
    }
    // Rows that are no multiple of dim_head.
    with(queries, &[7, 5], queries);
    with(weight, &[4, 4], queries);
    // Plausible alone, these disagree with the first of the others by name.
    with(queries, &[6, 4], "combine_heads.weight");
    with(queries, &[9, 5], "combine_heads.weight");
    with(weight, &[3, 4], weight);
    with(weight, &[2, 2], "memory_model.weights.1");
    insta::assert_snapshot!(messages.0);
}

#[test]
fn tensors_of_another_name() {
    let one_head = Dimensions { dim: 4, heads: 1, dim_head: 4, pre_norm: true, post_norm: true };
    let mut messages = Messages::default();
    let mut unknown = |dimensions: &Dimensions, name: &str, shape: &[usize]| {
        let mut shapes = shapes(dimensions);
        shapes.insert(name.to_owned(), shape.to_vec());
        let (tensor, message) = mismatch(&shapes);
        assert_eq!(tensor, name);
        messages.add(&format!("{name} with {} heads", dimensions.heads), &message);
    };
    unknown(&SEVERAL_HEADS, "to_queries.bias", &[6]);
    unknown(&SEVERAL_HEADS, "memory_model.weights.4", &[3, 3]);
    unknown(&SEVERAL_HEADS, "state.update.0", &[1, 2, 3, 3]);
    // With one head there is nothing to combine.
    unknown(&one_head, "combine_heads.weight", &[4, 4]);
    insta::assert_snapshot!(messages.0);
}
