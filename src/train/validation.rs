//! The loss of examples that are not learned from. The engine stores and reads them, as `nmem retrieve --online` does.

use ndarray::{Array2, ArrayView2, Axis, s};
use rayon::prelude::*;

use super::Plan;
use super::examples::{Data, Selection};
use super::objective::Goal;
use super::optimizer::Learned;
use crate::engine::backward::Order;
use crate::engine::{Engine, Memory, Sink, Work};
use crate::error::Result;
use crate::memory::{Gate, Gates};
use crate::metrics::ChunkMetrics;
use crate::real::Real;

/// Examples of a validation; none without one.
pub struct Validation {
    data: Data,
    selections: Vec<Selection>,
}

impl Validation {
    pub fn new(data: Data, selections: Vec<Selection>) -> Self {
        Self { data, selections }
    }

    /// Returns whether there are examples.
    pub fn exists(&self) -> bool {
        !self.selections.is_empty()
    }

    /// Returns the number of examples.
    pub fn count(&self) -> usize {
        self.selections.len()
    }

    pub fn selections(&self) -> &[Selection] {
        &self.selections
    }

    pub fn data(&self) -> &Data {
        &self.data
    }

    /// Returns the mean loss of the examples.
    pub fn loss<T: Real>(&self, learned: &Learned<T>, plan: &Plan<T>) -> Result<f64> {
        self.with_gates(learned, plan, plan.gates)
    }

    /// Returns the mean loss of what is read at the initial weights.
    pub fn loss_without_updates<T: Real>(&self, learned: &Learned<T>, plan: &Plan<T>) -> Result<f64> {
        let zero = Gate::Fixed(0.0);
        self.with_gates(learned, plan, Gates { learning_rate: zero, decay: zero, ..plan.gates })
    }

    /// Returns the mean loss of answers that are all zeros.
    pub fn loss_of_zeros<T: Real>(&self, goal: &Goal<T>) -> Result<f64> {
        self.mean(|of| Ok(goal.loss_of_zeros(&self.data.load(of)?)))
    }

    fn with_gates<T: Real>(&self, learned: &Learned<T>, plan: &Plan<T>, gates: Gates) -> Result<f64> {
        let memory = Memory::new(learned.parameters.clone(), plan.program, gates, None)?;
        self.mean(|of| {
            let example = self.data.load::<T>(of)?;
            let mut read = Collected(Array2::zeros(example.read.dim()));
            let queries = example.read.clone().insert_axis(Axis(0));
            let stored = example.store.clone().map(|store| store.insert_axis(Axis(0)));
            let store = stored.as_ref().unwrap_or(&queries);
            let mut state = memory.initial_state(1);
            let mut engine = Engine::new(&memory);
            let works = match plan.order {
                Order::Online => vec![Work::Online { read: &queries, store, probe: false }],
                Order::After => vec![Work::Store { sequences: store, probe: false }, Work::Read(&queries)],
            };
            for work in works {
                let outcome = engine.run(&mut state, work, &mut read, &mut |_| Ok(()))?;
                // What was read is incomplete then.
                if outcome.first_nonfinite().is_some() {
                    return Ok(f64::NAN);
                }
            }
            Ok(plan.goal.loss(learned.head.as_ref(), read.0.view(), &example))
        })
    }

    /// Returns the mean over the examples, summed in their order.
    fn mean(&self, loss: impl Fn(&Selection) -> Result<f64> + Send + Sync) -> Result<f64> {
        let losses = self.selections.par_iter().map(loss).collect::<Result<Vec<_>>>()?;
        Ok(losses.iter().sum::<f64>() / losses.len() as f64)
    }
}

/// The rows read of one sequence.
struct Collected<T>(Array2<T>);

impl<T: Real> Sink<T> for Collected<T> {
    fn metrics(&mut self, _: &[ChunkMetrics]) -> Result<()> {
        Ok(())
    }

    fn retrieved(&mut self, _: usize, start: usize, rows: ArrayView2<T>) -> Result<()> {
        self.0.slice_mut(s![start..start + rows.nrows(), ..]).assign(&rows);
        Ok(())
    }

    fn sequence_done(&mut self, _: usize) -> Result<()> {
        Ok(())
    }
}
