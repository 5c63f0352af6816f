//! The sum of two inputs, as in a residual; and two inputs side by side.

use ndarray::{ArrayView2, ArrayViewMut2, Axis, s};

use super::{Operator, Rows, Second, SecondResults, Work, each_row};
use crate::real::Real;

/// a + b
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Add;

impl<T: Real> Operator<T> for Add {
    fn kept(&self, _: usize, _: usize, _: &[usize]) -> Vec<(usize, usize)> {
        Vec::new()
    }

    fn forward(&self, _: usize, inputs: &[ArrayView2<T>], mut output: ArrayViewMut2<T>, _: &mut Work<T>) {
        output.assign(&inputs[0]);
        output += &inputs[1];
    }

    fn vjp(
        &self,
        _: usize,
        _: &[ArrayView2<T>],
        cotangent: ArrayView2<T>,
        d_inputs: &mut [Option<ArrayViewMut2<T>>],
        _: &mut Work<T>,
    ) {
        d_inputs.iter_mut().flatten().for_each(|d_input| d_input.assign(&cotangent));
    }

    fn vjp_of_vjp(&self, given: &Second<'_, T>, results: SecondResults<'_, T>, _: &mut Work<T>) {
        let SecondResults { mut d_cotangent, d_inputs } = results;
        d_cotangent.fill(T::zero());
        given.tangents.iter().flatten().for_each(|tangent| d_cotangent += tangent);
        d_inputs.iter_mut().flatten().for_each(|d_input| d_input.fill(T::zero()));
    }
}

/// [a b]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Concat;

impl<T: Real> Operator<T> for Concat {
    fn kept(&self, _: usize, _: usize, _: &[usize]) -> Vec<(usize, usize)> {
        Vec::new()
    }

    fn forward(&self, _: usize, inputs: &[ArrayView2<T>], mut output: ArrayViewMut2<T>, _: &mut Work<T>) {
        let left = inputs[0].ncols();
        output.slice_mut(s![.., ..left]).assign(&inputs[0]);
        output.slice_mut(s![.., left..]).assign(&inputs[1]);
    }

    fn vjp(
        &self,
        _: usize,
        inputs: &[ArrayView2<T>],
        cotangent: ArrayView2<T>,
        d_inputs: &mut [Option<ArrayViewMut2<T>>],
        _: &mut Work<T>,
    ) {
        let (left, right) = cotangent.split_at(Axis(1), inputs[0].ncols());
        for (d_input, part) in d_inputs.iter_mut().zip([left, right]) {
            if let Some(d_input) = d_input {
                d_input.assign(&part);
            }
        }
    }

    fn vjp_of_vjp(&self, given: &Second<'_, T>, results: SecondResults<'_, T>, _: &mut Work<T>) {
        let SecondResults { mut d_cotangent, d_inputs } = results;
        d_cotangent.fill(T::zero());
        let (left, right) = d_cotangent.split_at(Axis(1), given.inputs[0].ncols());
        for (mut part, tangent) in [left, right].into_iter().zip(given.tangents) {
            if let Some(tangent) = tangent {
                part.assign(tangent);
            }
        }
        d_inputs.iter_mut().flatten().for_each(|d_input| d_input.fill(T::zero()));
    }
}

pub(super) fn naive(a: &Rows, b: &Rows) -> Rows {
    each_row(a, b, |a, b| a.iter().zip(b).map(|(a, b)| a + b).collect())
}

pub(super) fn naive_concat(a: &Rows, b: &Rows) -> Rows {
    each_row(a, b, |a, b| [a, b].concat())
}

pub(super) fn naive_concat_vjp(a: &Rows, cotangent: &Rows) -> Vec<Rows> {
    let left = a.first().map_or(0, Vec::len);
    let part = |from: usize, to: Option<usize>| {
        cotangent.iter().map(|row| row[from..to.unwrap_or(row.len())].to_vec()).collect()
    };
    vec![part(0, Some(left)), part(left, None)]
}
