//! The engine on a GPU.

use std::marker::PhantomData;

use super::{Memory, Outcome, Sink, Work};
use crate::cuda::Device;
use crate::error::{Error, Result};
use crate::memory::State;
use crate::real::Real;

/// Runs a memory on a device.
pub struct CudaEngine<'m, T: Real>(PhantomData<&'m T>);

impl<'m, T: Real> CudaEngine<'m, T> {
    /// An engine that has not run yet.
    pub fn new(_memory: &'m Memory<T>, _device: &'m dyn Device) -> Result<Self> {
        Err(Error::Cuda("not yet".to_owned()))
    }

    /// As [`super::Engine::run`].
    pub fn run(
        &mut self,
        _state: &mut State<T>,
        _work: Work<'_, T>,
        _sink: &mut dyn Sink<T>,
        _tick: &mut (dyn FnMut(usize) -> Result<()> + Send),
    ) -> Result<Outcome> {
        Err(Error::Cuda("not yet".to_owned()))
    }

    /// Bytes of the device's memory.
    pub fn bytes(&self) -> usize {
        0
    }
}
