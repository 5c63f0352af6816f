//! The recurrences on a GPU: arrays are on the device already, contiguous, with the contracts of [`super::linear`] and
//! [`super::pair`]. Every state is written, none is read.

use super::linear::{Layout, Shape};
use crate::cuda::{Array, Device};
use crate::error::Result;
use crate::real::Real;

/// The gates a, on the device.
#[derive(Clone, Copy)]
pub enum Gates<'a, 'd, T> {
    /// One per step: `[batch, steps]`.
    Step(&'a Array<'d, T>),
    /// One per element, of the inputs' shape.
    Element(&'a Array<'d, T>),
}

/// x_t = a_t x_{t−1} + b_t for every channel. `initial` `[batch, channels]`, or zero.
pub fn scan<T: Real>(
    _device: &dyn Device,
    _shape: Shape,
    _layout: Layout,
    _gates: Gates<T>,
    _inputs: &Array<T>,
    _initial: Option<&Array<T>>,
    _states: &mut Array<T>,
) -> Result<()> {
    todo!()
}

/// S and U fused. `gates` `[3, batch, steps]`: θ, η, α; `surprise` and `updates` `[batch, steps, channels]`; `momentum` and `update`
/// `[batch, channels]`, before and after.
pub fn scan_pair<T: Real>(
    _device: &dyn Device,
    _shape: Shape,
    _gates: &Array<T>,
    _surprise: &Array<T>,
    _momentum: &mut Array<T>,
    _update: &mut Array<T>,
    _updates: Option<&mut Array<T>>,
) -> Result<()> {
    todo!()
}
