//! Controls of retrieval. The memory's network and rule store pairs of random keys and values, in the oracle's loops. What
//! storing has added to the answer of a key must point to the value that was stored with it, and to no other:
//!
//! ```text
//! change_t = M_{W+U}(k_t) − M_W(k_t)        what storing has added
//! e_t      = −∂ℓ(M_W(k_t), v_t)             where it should point
//! hit      change_t has a larger cosine with e_t than with the e of another pair
//! ```
//!
//! Keys and values are those of different tokens. Of the same token, both are maps of one vector, and then a memory may
//! answer a key that it never stored by having learned the map. For the same reason the stored value is M_W(k) + v, where
//! the loss is one of the difference: the error of a key is then v alone. A memory that only learns to shrink its output
//! would otherwise reduce the error of every key.
//!
//! The other pair is one of another chunk, because a model that mixes the tokens of a chunk mixes their values too. By chance
//! half of the answers are hits. The limit is exceeded by chance with probability [`LEVEL`] at most.

use ndarray::{Array2, Array3, Axis};
use statrs::distribution::{Binomial, DiscreteCDF};

use super::{Certificate, Counts, Texts, random_tokens};
use crate::io::memory_file::MemoryFile;
use crate::memory::operators::Rows;
use crate::memory::reference::{Reference, loss_and_gradient, outputs_and_errors};
use crate::memory::{Gates, Loss, Program};
use crate::real::Real;

/// Probability that a control fails although nothing is wrong: rare enough for a check that runs often.
const LEVEL: f64 = 1e-4;
/// Fewest stored pairs of a draw.
const MIN_PAIRS: usize = 8;
/// Fewest answers: with 1024 of them 56 % must be hits for the level.
const MIN_ANSWERS: usize = 1024;
/// Step of storing, small enough for the update to be a sum of gradients and not a fight between them.
const RATE: f64 = 1e-3;

/// Returns the controls with permuted values and with keys that were never stored.
pub(super) fn controls(file: &MemoryFile, program: &Program, seed: u64) -> [Certificate; 2] {
    let hits = hits(file, program, seed);
    let count = |found: usize, found_with_fault: usize| Counts {
        found,
        of: hits.trials,
        allowed: allowed(hits.trials),
        found_with_fault,
    };
    [
        Certificate::new(
            Texts {
                name: "permutation",
                claim: "answers do not match values that were dealt to other keys",
                measure: "answers nearer to the value on the permuted list than to another",
                fault: "the list as it was stored",
            },
            count(hits.permuted, hits.stored),
        ),
        Certificate::new(
            Texts {
                name: "impossible retrieval",
                claim: "keys that were never stored are not answered",
                measure: "answers nearer to the value of such a key than to another",
                fault: "keys that were stored",
            },
            count(hits.unstored, hits.stored),
        ),
    ]
}

/// Returns the largest number of hits that chance does not exceed with a probability above the level.
fn allowed(trials: usize) -> usize {
    let chance = Binomial::new(0.5, trials as u64).expect("a probability");
    chance.inverse_cdf(1.0 - LEVEL) as usize
}

#[derive(Default)]
struct Hits {
    trials: usize,
    stored: usize,
    permuted: usize,
    unstored: usize,
}

fn hits(file: &MemoryFile, program: &Program, seed: u64) -> Hits {
    let dimensions = file.dimensions();
    let c = program.chunk_size();
    // An even number of chunks, so that half of the pairs away is another chunk.
    let pairs = MIN_PAIRS.div_ceil(2 * c).max(1) * 2 * c;
    let parameters = file.parameters::<f64>(program);
    let past = file.past::<f64>();
    let oracle = Reference::new(parameters, *program, Gates::default(), f64::EPS, past.as_deref(), 1);
    let mut hits = Hits::default();
    for draw in 0..MIN_ANSWERS.div_ceil(dimensions.heads * pairs) as u64 {
        // Half of the tokens give keys, and half values.
        let tokens = |offset: u64| -> Array3<f64> {
            let seed = seed.wrapping_add(2 + 2 * draw + offset);
            random_tokens(2 * pairs, dimensions.dim, 1.0, seed)
        };
        let (of_keys, of_values) = (tokens(0), tokens(1));
        for head in 0..dimensions.heads {
            let keys = oracle.pairs_of(head, of_keys.index_axis(Axis(0), 0)).0;
            let values = oracle.pairs_of(head, of_values.index_axis(Axis(0), 0)).1;
            let initial = &oracle.head(0, head).initial;
            let (changes, errors) = changes_and_errors(program, initial, &keys, values, pairs);
            hits.add(&changes, &errors, (pairs, c));
        }
    }
    hits
}

impl Hits {
    /// Adds the answers of a head: the first `pairs` keys are stored, as many others are not.
    fn add(&mut self, changes: &Rows, errors: &Rows, (pairs, c): (usize, usize)) {
        let nearer = |t: usize, own: usize, other: usize| {
            usize::from(cosine(&changes[t], &errors[own]) > cosine(&changes[t], &errors[other]))
        };
        let elsewhere = |t: usize| (t + pairs / 2) % pairs;
        for t in 0..pairs {
            self.trials += 1;
            self.stored += nearer(t, t, elsewhere(t));
            // Both are of another chunk, where there is more than one token in it.
            let dealt = elsewhere(t);
            let other = if c > 1 { dealt / c * c + (dealt + 1) % c } else { (dealt + 1) % pairs };
            self.permuted += nearer(t, dealt, other);
            self.unstored += nearer(pairs + t, pairs + t, pairs + elsewhere(t));
        }
    }
}

/// Stores the first `pairs` pairs. Returns by how much that changed the answer to each key, and where it should point.
fn changes_and_errors(
    program: &Program,
    before: &[Array2<f64>],
    keys: &Rows,
    values: Rows,
    pairs: usize,
) -> (Rows, Rows) {
    let c = program.chunk_size();
    let graph = program.model.graph(keys[0].len());
    let model = (&graph, program.loss);
    let chunk = |rows: &Rows, i: usize| rows[i * c..(i + 1) * c].to_vec();
    let chunks = 0..keys.len() / c;
    let values = if program.loss == Loss::InnerProduct {
        values
    } else {
        let of_chunk = |i: usize| outputs_and_errors(model, before, &chunk(keys, i), &chunk(&values, i)).0;
        let outputs = chunks.clone().flat_map(of_chunk);
        outputs.zip(&values).map(|(y, v)| y.iter().zip(v).map(|(y, v)| y + v).collect()).collect()
    };
    let (mut point, mut after) = (before.to_vec(), before.to_vec());
    for i in 0..pairs / c {
        let (_, gradient) = loss_and_gradient(model, &point, &chunk(keys, i), &chunk(&values, i), None);
        after.iter_mut().zip(&gradient).for_each(|(w, g)| w.scaled_add(-RATE, g));
        if program.schedule.refresh.is_some_and(|every| ((i + 1) * c).is_multiple_of(every)) {
            point.clone_from(&after);
        }
    }
    let (mut changes, mut errors) = (Rows::new(), Rows::new());
    for i in chunks {
        let (keys, values) = (chunk(keys, i), chunk(&values, i));
        let (old, error) = outputs_and_errors(model, before, &keys, &values);
        let (new, _) = outputs_and_errors(model, &after, &keys, &values);
        let change = |(new, old): (&Vec<f64>, &Vec<f64>)| new.iter().zip(old).map(|(a, b)| a - b).collect();
        changes.extend(new.iter().zip(&old).map(change));
        errors.extend(error);
    }
    (changes, errors)
}

/// Returns the cosine of two rows; 0 if one is zero, which points nowhere.
fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    if norms > 0.0 { dot(a, b) / norms } else { 0.0 }
}
