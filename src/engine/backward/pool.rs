//! Buffers that tasks hand on, so that each allocates and faults in its pages once.

use std::sync::{Arc, Mutex, PoisonError};

use ndarray::Array2;

use super::head::State;
use super::node_rows::{NodeRows, Values};
use crate::memory::model::Model;

/// Buffers of tasks, reused from chunk to chunk, from head to head and from gradient to gradient. A clone is the same buffers.
#[derive(Clone, Debug)]
pub struct Buffers<T> {
    /// Model, dim_head and chunk size that they are for.
    of: (Model, usize, usize),
    pub(super) values: Pool<Values<T>>,
    /// Cotangents and tangents.
    pub(super) rows: Pool<NodeRows<T>>,
    /// Space for weights.
    pub(super) weights: Pool<Vec<T>>,
    /// Products with the rows of a segment.
    pub(super) results: Pool<Vec<T>>,
    /// States at the starts of segments, where gradients are taken at the initial weights.
    pub(super) states: Pool<State<T>>,
    /// Arrays of a segment.
    pub(super) arrays: Pool<Array2<T>>,
}

impl<T> Buffers<T> {
    pub(super) fn new(model: Model, dim_head: usize, chunk: usize) -> Self {
        Self {
            of: (model, dim_head, chunk),
            values: Pool::default(),
            rows: Pool::default(),
            weights: Pool::default(),
            results: Pool::default(),
            states: Pool::default(),
            arrays: Pool::default(),
        }
    }

    /// Returns whether both are for the same model, dim_head and chunk size.
    pub fn suit(&self, other: &Self) -> bool {
        self.of == other.of
    }
}

/// Buffers of one kind that no task uses at the moment.
#[derive(Debug)]
pub(super) struct Pool<B>(Arc<Mutex<Vec<Free<B>>>>);

#[derive(Debug)]
struct Free<B> {
    buffer: B,
    /// Index of the thread that gave it back, in its pool.
    thread: Option<usize>,
}

impl<B> Default for Pool<B> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<B> Clone for Pool<B> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<B> Pool<B> {
    /// Returns a free buffer that is `fit`, with old contents, or else a new one in place of another. It prefers one that this thread
    /// gave back, which may still be in the cache of its core.
    pub fn take(&self, fit: impl Fn(&B) -> bool, new: impl FnOnce() -> B) -> B {
        let thread = rayon::current_thread_index();
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = free.iter().rposition(|free| free.thread == thread && fit(&free.buffer));
        let place = own.or_else(|| free.iter().rposition(|free| fit(&free.buffer)));
        let unfit = if place.is_none() { free.pop() } else { None };
        let found = place.map(|place| free.swap_remove(place).buffer);
        drop((free, unfit));
        found.unwrap_or_else(new)
    }

    pub fn give(&self, buffer: B) {
        let free = Free { buffer, thread: rayon::current_thread_index() };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(free);
    }
}

#[cfg(test)]
mod tests {
    use super::Pool;

    #[test]
    fn threads_prefer_their_own_buffers() {
        let threads = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let pool = Pool::default();
        let on = |index: usize, work: &(dyn Fn() -> usize + Sync)| {
            threads.broadcast(|of| (of.index() == index).then(work))[index].unwrap()
        };
        for (thread, buffer) in [(0, 1), (1, 2), (0, 3)] {
            on(thread, &|| {
                pool.give(buffer);
                buffer
            });
        }
        let take = |thread, least| on(thread, &|| pool.take(|&buffer| buffer >= least, || 9));
        assert_eq!(take(1, 0), 2, "its own before the last one");
        assert_eq!(take(1, 0), 3, "the last one of another thread");
        assert_eq!(take(1, 2), 9, "a new one");
        assert!(pool.0.lock().unwrap().is_empty(), "in place of one that does not fit");
    }
}
