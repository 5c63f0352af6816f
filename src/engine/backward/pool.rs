//! Buffers that tasks hand on, so that each allocates and faults in its pages once.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
    /// Products with the rows of a segment: for each node, B S̄ᵀ with what is read, and A S̄. Buffers of different sizes would take each
    /// other's place.
    pub(super) results: Vec<[Pool<Vec<T>>; 2]>,
    /// States at the starts of segments, where gradients are taken at the initial weights.
    pub(super) states: Pool<State<T>>,
    /// Arrays of a segment.
    pub(super) arrays: Pool<Array2<T>>,
}

impl<T> Buffers<T> {
    pub(super) fn new(model: Model, dim_head: usize, chunk: usize, nodes: usize) -> Self {
        Self {
            of: (model, dim_head, chunk),
            values: Pool::default(),
            rows: Pool::default(),
            weights: Pool::default(),
            results: (0..nodes).map(|_| <[_; 2]>::default()).collect(),
            states: Pool::default(),
            arrays: Pool::default(),
        }
    }

    /// Returns whether both are for the same model, dim_head and chunk size.
    pub fn suit(&self, other: &Self) -> bool {
        self.of == other.of
    }
}

/// Buffers of one kind that no task uses at the moment, with those that each thread gave back. A thread first looks at its own: they may
/// still be in the cache of its core, and so may the list itself. To fetch a cache line from another core takes as long as a small product.
#[derive(Debug)]
pub(super) struct Pool<B>(Arc<[Free<B>; LISTS]>);

/// Numbers of the largest buffer that is kept after brief use. A larger one costs little to allocate beside the work in it, and others
/// may take its place meanwhile.
pub(super) const MOST_KEPT: usize = 1 << 15;

/// Lists of a pool. Threads beyond this number share them.
const LISTS: usize = 16;

/// Buffers that a thread gave back, in cache lines of their own.
#[derive(Debug)]
#[repr(align(128))]
struct Free<B>(Mutex<Vec<B>>);

impl<B> Free<B> {
    fn lock(&self) -> MutexGuard<'_, Vec<B>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the last buffer for which `fit` holds.
    fn take(&self, fit: impl Fn(&B) -> bool) -> Option<B> {
        let mut free = self.lock();
        let place = free.iter().rposition(fit)?;
        Some(free.swap_remove(place))
    }
}

impl<B> Default for Pool<B> {
    fn default() -> Self {
        Self(Arc::new([(); LISTS].map(|()| Free(Mutex::default()))))
    }
}

impl<B> Clone for Pool<B> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<B> Pool<B> {
    /// Returns a free buffer that is `fit`, with old contents, or else a new one in place of another.
    pub fn take(&self, fit: impl Fn(&B) -> bool, new: impl FnOnce() -> B) -> B {
        let own = Self::own();
        let lists = || (0..LISTS).map(|i| &self.0[(own + i) % LISTS]);
        let found = lists().find_map(|free| free.take(&fit));
        found.unwrap_or_else(|| {
            drop(lists().find_map(|free| free.lock().pop()));
            new()
        })
    }

    pub fn give(&self, buffer: B) {
        self.0[Self::own()].lock().push(buffer);
    }

    /// Returns the index of this thread's list.
    fn own() -> usize {
        rayon::current_thread_index().unwrap_or(0) % LISTS
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
        assert!(pool.0.iter().all(|free| free.lock().is_empty()), "in place of one that does not fit");
    }
}
