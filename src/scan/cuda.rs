//! The recurrences on a GPU. Arrays are already on the device and contiguous, with the contracts of
//! [`super::linear`] and [`super::pair`]. Every state is written and none is read. Steps × channels: one thread
//! per channel, with neighbours side by side, so some hundred thousand channels are needed for full speed.
//! Channels × steps: one block per row, which composes the steps of a tile, warp by warp, and continues from
//! tile to tile.

use super::linear::{Layout, Shape};
use crate::cuda::{Argument, Array, Device, Launch, kernel};
use crate::error::{Error, Result};
use crate::real::Real;

/// The gates a, on the device.
#[derive(Clone, Copy)]
pub enum Gates<'a, 'd, T> {
    /// One per step: `[batch, steps]`.
    Step(&'a Array<'d, T>),
    /// One per element, of the inputs' shape.
    Element(&'a Array<'d, T>),
}

/// Threads of a block in which each thread has one channel.
const CHANNELS: usize = 128;
/// Steps of a thread in a block that has one row; `MAX_THREADS` is its most threads.
const STEPS: usize = 4;
const MAX_THREADS: usize = 256;
/// Most blocks that process rows; each then processes several.
const MAX_BLOCKS: usize = 1 << 30;
/// Most blocks in a grid's second dimension.
const MAX_SEQUENCES: usize = 65_535;

fn optional<T: Real>(array: Option<&Array<T>>) -> Argument {
    array.map_or(Argument::Address(0), Array::argument)
}

/// Computes x_t = a_t x_{t−1} + b_t for every channel. `initial` is `[batch, channels]`, or zero if absent.
///
/// # Panics
/// Panics if the length of an array does not match `shape`.
pub fn scan<T: Real>(
    device: &dyn Device,
    shape: Shape,
    layout: Layout,
    gates: Gates<T>,
    inputs: &Array<T>,
    initial: Option<&Array<T>>,
    states: &mut Array<T>,
) -> Result<()> {
    let Shape { batch, steps, channels } = shape;
    let (gates, per_step) = match gates {
        Gates::Step(gates) => (gates, true),
        Gates::Element(gates) => (gates, false),
    };
    let elements = shape.elements();
    assert_eq!((inputs.len(), states.len()), (elements, elements), "inputs and states of the shape");
    assert_eq!(gates.len(), if per_step { batch * steps } else { elements }, "gates of the shape");
    assert!(
        initial.is_none_or(|initial| initial.len() == batch * channels),
        "initial states [batch, channels]"
    );
    if elements == 0 {
        return Ok(());
    }
    check_batch(batch)?;
    let [steps_, channels_] = [steps, channels].map(Argument::long);
    // With one channel both layouts are the same.
    if layout == Layout::StepsChannels && channels > 1 {
        let per_step = Argument::U32(per_step.into());
        let arrays = [gates.argument(), per_step, inputs.argument(), optional(initial), states.argument()];
        let arguments = [&arrays[..], &[steps_, channels_]].concat();
        return device.launch(&kernel("scan_channels", T::TYPE), across(shape), &arguments);
    }
    let rows = batch * channels;
    // One row of gates for all channels of a sequence, or one for each.
    let rows_per_gates = Argument::count(if per_step { channels } else { 1 });
    let arguments = [
        gates.argument(),
        rows_per_gates,
        inputs.argument(),
        optional(initial),
        states.argument(),
        Argument::long(rows),
        steps_,
    ];
    let threads = steps.div_ceil(STEPS).next_multiple_of(32).min(MAX_THREADS);
    let launch = Launch { grid: [rows.min(MAX_BLOCKS) as u32, 1, 1], block: threads as u32, shared: 0 };
    device.launch(&kernel("scan_rows", T::TYPE), launch, &arguments)
}

/// Checks the number of sequences, which are the second dimension of a grid.
fn check_batch(batch: usize) -> Result<()> {
    if batch <= MAX_SEQUENCES {
        return Ok(());
    }
    Err(Error::setting("--batch", format!("at most {MAX_SEQUENCES} on a GPU"), batch.to_string()))
}

/// Returns a launch with one thread per channel.
fn across(shape: Shape) -> Launch {
    let grid = [shape.channels.div_ceil(CHANNELS) as u32, shape.batch as u32, 1];
    Launch { grid, block: CHANNELS as u32, shared: 0 }
}

/// Computes S and U in one kernel. `gates` is `[3, batch, steps]`: θ, η, α. `surprise` and `updates` are
/// `[batch, steps, channels]`. `momentum` and `update`, `[batch, channels]`, hold the states before, and after
/// the call the last ones.
///
/// # Panics
/// Panics if the length of an array does not match `shape`.
pub fn scan_pair<T: Real>(
    device: &dyn Device,
    shape: Shape,
    gates: &Array<T>,
    surprise: &Array<T>,
    momentum: &mut Array<T>,
    update: &mut Array<T>,
    updates: Option<&mut Array<T>>,
) -> Result<()> {
    let Shape { batch, steps, channels } = shape;
    let state = batch * channels;
    assert_eq!(gates.len(), 3 * batch * steps, "gates [3, batch, steps]");
    assert_eq!(surprise.len(), shape.elements(), "surprises of the shape");
    assert_eq!((momentum.len(), update.len()), (state, state), "S and U [batch, channels]");
    assert!(updates.as_ref().is_none_or(|updates| updates.len() == shape.elements()), "updates of the shape");
    if shape.elements() == 0 {
        return Ok(());
    }
    check_batch(batch)?;
    let arguments = [
        gates.argument(),
        surprise.argument(),
        momentum.argument(),
        update.argument(),
        optional(updates.as_deref()),
        Argument::long(steps),
        Argument::long(channels),
    ];
    device.launch(&kernel("scan_pair", T::TYPE), across(shape), &arguments)
}
