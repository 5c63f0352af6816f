//! Buffers that tasks hand on, so that each allocates and faults in its pages once.

use std::sync::{Mutex, PoisonError};

/// Buffers that no task uses at the moment.
#[derive(Debug)]
pub struct Pool<B>(Mutex<Vec<B>>);

impl<B> Pool<B> {
    pub const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// Returns a free buffer, with old contents, if it is `fit`, or else a new one.
    pub fn take(&self, fit: impl FnOnce(&B) -> bool, new: impl FnOnce() -> B) -> B {
        let free = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        free.filter(fit).unwrap_or_else(new)
    }

    pub fn give(&self, buffer: B) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }
}
