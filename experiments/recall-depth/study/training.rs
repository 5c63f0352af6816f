//! Initial parameters, AdamW with clipping, training and evaluation.

use nmem::real::Real;

use super::model::{Derivative, Layout, Model, WIDTH};
use super::random::Twister;
use super::task::{
    Episode, ITEMS, Mapping, Splits, TEST_SEED, VALIDATION_SEED, draw_batch, evaluation, stream,
};

/// Training steps of a run.
pub const STEPS: usize = 600;
/// Steps between evaluations on the validation split, which also follows the first step.
pub const VALIDATION_STEPS: usize = 100;
const RATE: f64 = 0.003;
const BETAS: [f64; 2] = [0.9, 0.999];
const EPSILON: f64 = 1e-8;
const WEIGHT_DECAY: f64 = 0.01;
const LARGEST_NORM: f64 = 1.0;

/// Returns the parameters that a seed starts from, as the study's PyTorch code draws them in f32.
pub fn initial(layout: Layout, seed: u32) -> Vec<f32> {
    let depth = layout.depth;
    let mut random = Twister::new(seed);
    let mut parameters = vec![0.0; layout.len()];
    let mut set = |name: &str, values: &[f32]| {
        let arrays = layout.arrays();
        let of = arrays.iter().find(|of| of.name == name).expect("an array of the model");
        parameters[of.place.clone()].copy_from_slice(values);
    };
    let embedding = ITEMS * WIDTH;
    // Embeddings, the gates' layers and the memory are initialised twice there; the first draws are dropped.
    random.skip(3 * embedding);
    for name in ["embed_q", "embed_k", "embed_v"] {
        set(name, &random.normal(embedding, 0.2));
    }
    random.skip(2 * (2 * WIDTH + 1) * depth);
    random.skip(WIDTH * WIDTH * depth);
    for j in 0..depth {
        set(&format!("memory_{j}"), &random.normal(WIDTH * WIDTH, 0.02));
    }
    let mut uniform = |number: usize| (0..number).map(|_| 0.5 * random.uniform() - 0.25).collect::<Vec<_>>();
    set("head_weight", &uniform(embedding));
    set("head_bias", &uniform(ITEMS));
    set("rate_bias", &vec![(0.0005_f64 / 0.9995).ln() as f32; depth]);
    set("decay_bias", &vec![99_f64.ln() as f32; depth]);
    set("norm_weight", &[1.0; WIDTH]);
    parameters
}

/// AdamW with decoupled decay of all parameters, and gradients scaled to a norm of at most 1.
pub struct AdamW<T> {
    moments: [Vec<T>; 2],
    steps: i32,
}

impl<T: Real> AdamW<T> {
    pub fn new(parameters: usize) -> Self {
        Self { moments: [vec![T::zero(); parameters], vec![T::zero(); parameters]], steps: 0 }
    }

    /// Takes a step. Returns the gradient's norm before it was scaled.
    pub fn step(&mut self, parameters: &mut [T], gradient: &[T]) -> f64 {
        let norm = gradient.iter().map(|&g| g.to_f64() * g.to_f64()).sum::<f64>().sqrt();
        let scale = T::from_f64((LARGEST_NORM / (norm + 1e-6)).min(1.0));
        self.steps += 1;
        let [correction, square_correction] = BETAS.map(|beta| 1.0 - beta.powi(self.steps));
        let [of, of_square] = BETAS.map(T::from_f64);
        let [new, new_square] = BETAS.map(|beta| T::from_f64(1.0 - beta));
        let step = T::from_f64(RATE / correction);
        let root = T::from_f64(square_correction.sqrt());
        let (kept, epsilon) = (T::from_f64(1.0 - RATE * WEIGHT_DECAY), T::from_f64(EPSILON));
        let [means, squares] = &mut self.moments;
        for (((p, &g), mean), square) in parameters.iter_mut().zip(gradient).zip(means).zip(squares) {
            let g = g * scale;
            *mean = of * *mean + new * g;
            *square = of_square * *square + new_square * g * g;
            *p = *p * kept - step * *mean / (square.sqrt() / root + epsilon);
        }
        norm
    }
}

/// Cross-entropy and accuracy of an evaluation.
#[derive(Clone, Copy, Debug)]
pub struct Quality {
    pub cross_entropy: f64,
    pub accuracy: f64,
}

/// Evaluates a model on a split, with orders of a fresh generator.
pub fn evaluate<T: Real>(
    model: &Model,
    parameters: &[T],
    split: &[Mapping],
    seed: u32,
    write: bool,
) -> Quality {
    let queries = (split.len() * ITEMS) as f64;
    let (mut loss, mut right) = (0.0, 0);
    for batch in evaluation(split, seed) {
        let outcome = model.run(parameters, &batch, write, None);
        loss += outcome.loss;
        right += outcome.right;
    }
    Quality { cross_entropy: loss / queries, accuracy: right as f64 / queries }
}

/// Returns the mean cross-entropy of a batch, and writes its gradient.
pub fn loss_and_gradient<T: Real>(
    model: &Model,
    parameters: &[T],
    batch: &[Episode],
    gradient: &mut [T],
) -> f64 {
    gradient.fill(T::zero());
    let queries = batch.len() * ITEMS;
    model.run(parameters, batch, true, Some((gradient, queries))).loss / queries as f64
}

/// One run of the study.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub depth: usize,
    pub chunk: usize,
    pub derivative: Derivative,
    /// Seed of the initial parameters.
    pub seed: u32,
    /// Seed of the training batches.
    pub stream: u32,
}

/// A trained model, and how it got there.
pub struct Trained<T> {
    pub parameters: Vec<T>,
    /// Loss, and norm of its gradient, of each step.
    pub steps: Vec<[f64; 2]>,
    /// Quality on the validation split after some steps.
    pub validation: Vec<(usize, Quality)>,
}

impl Run {
    /// Returns the model, without parameters.
    pub fn model(&self) -> Model {
        Model { layout: Layout { depth: self.depth }, chunk: self.chunk, derivative: self.derivative }
    }

    /// Trains parameters from `start`. `validate` evaluates them in between.
    pub fn train<T: Real>(&self, splits: &Splits, start: &[f32], validate: bool) -> Trained<T> {
        let model = self.model();
        let mut parameters: Vec<T> = start.iter().map(|&x| T::from_f64(f64::from(x))).collect();
        let mut optimiser = AdamW::new(parameters.len());
        let mut random = stream(self.stream);
        let mut gradient = vec![T::zero(); parameters.len()];
        let mut trained = Trained { parameters: Vec::new(), steps: Vec::new(), validation: Vec::new() };
        for step in 1..=STEPS {
            let (rows, orders) = draw_batch(&mut random, splits.training.len());
            let batch = orders.episodes(rows.into_iter().map(|row| splits.training[row]));
            let loss = loss_and_gradient(&model, &parameters, &batch, &mut gradient);
            let norm = optimiser.step(&mut parameters, &gradient);
            trained.steps.push([loss, norm]);
            if validate && (step == 1 || step.is_multiple_of(VALIDATION_STEPS)) {
                let quality = evaluate(&model, &parameters, &splits.validation, VALIDATION_SEED, true);
                trained.validation.push((step, quality));
            }
        }
        trained.parameters = parameters;
        trained
    }

    /// Evaluates parameters on the test split, with and without writing.
    pub fn test<T: Real>(&self, splits: &Splits, parameters: &[T]) -> [Quality; 2] {
        [true, false].map(|write| evaluate(&self.model(), parameters, &splits.test, TEST_SEED, write))
    }
}
