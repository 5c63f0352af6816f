//! The gated linear unit of SwiGLU memories: `y = a ∘ gelu(z)` for rows [a z].

use ndarray::{ArrayView2, ArrayViewMut2, Axis, Zip, s};

use super::{Activation, Operator, Rows, Second, SecondResults, Work};
use crate::real::Real;

/// a ∘ gelu(z) of rows [a z].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Glu;

impl<T: Real> Operator<T> for Glu {
    /// gelu(z) and its derivative.
    fn kept(&self, rows: usize, _: usize, inputs: &[usize]) -> Vec<(usize, usize)> {
        vec![(rows, inputs[0] / 2); 2]
    }

    fn forward(&self, _: usize, inputs: &[ArrayView2<T>], output: ArrayViewMut2<T>, work: &mut Work<T>) {
        let (a, z) = inputs[0].split_at(Axis(1), inputs[0].ncols() / 2);
        let mut gate = work.kept[0].slice_mut(s![..a.nrows(), ..]);
        gate.assign(&z);
        T::gelu(gate.as_slice_mut().expect("whole rows"));
        Zip::from(output).and(a).and(&gate).for_each(|y, &a, &gate| *y = a * gate);
    }

    fn forward_for_vjp(
        &self,
        _: usize,
        inputs: &[ArrayView2<T>],
        output: ArrayViewMut2<T>,
        work: &mut Work<T>,
    ) {
        let (a, z) = inputs[0].split_at(Axis(1), inputs[0].ncols() / 2);
        let [gate, slope] = &mut work.kept[..] else { unreachable!("two buffers") };
        let mut gate = gate.slice_mut(s![..a.nrows(), ..]);
        let mut slope = slope.slice_mut(s![..a.nrows(), ..]);
        slope.assign(&z);
        T::gelu_slope(slope.as_slice_mut().expect("whole rows"));
        gate.assign(&z);
        T::gelu(gate.as_slice_mut().expect("whole rows"));
        Zip::from(output).and(a).and(&gate).for_each(|y, &a, &gate| *y = a * gate);
    }

    fn vjp(
        &self,
        _: usize,
        inputs: &[ArrayView2<T>],
        cotangent: ArrayView2<T>,
        d_inputs: &mut [Option<ArrayViewMut2<T>>],
        work: &mut Work<T>,
    ) {
        let Some(d_input) = &mut d_inputs[0] else { return };
        let half = cotangent.ncols();
        let [gate, slope] =
            [&work.kept[0], &work.kept[1]].map(|kept| kept.slice(s![..cotangent.nrows(), ..]));
        let (da, dz) = d_input.view_mut().split_at(Axis(1), half);
        Zip::from(da).and(cotangent).and(gate).for_each(|da, &d, &gate| *da = d * gate);
        let a = inputs[0].split_at(Axis(1), half).0;
        Zip::from(dz).and(cotangent).and(a).and(slope).for_each(|dz, &d, &a, &slope| *dz = d * a * slope);
    }

    /// With the halves t and u of the tangent, c the cotangent and g = gelu:
    ///
    /// ```text
    /// ∂φ/∂c = t g(z) + u a g′(z)
    /// ∂φ/∂a = u c g′(z)
    /// ∂φ/∂z = t c g′(z) + u c a g″(z)      g″(z) = φ(z) (2 − z²)
    /// ```
    fn vjp_of_vjp(&self, given: &Second<'_, T>, results: SecondResults<'_, T>, work: &mut Work<T>) {
        let SecondResults { mut d_cotangent, d_inputs } = results;
        let (c, tangent) = (given.cotangent, given.tangents[0].expect("the only input's"));
        let half = c.ncols();
        let [gate, slope] = [&work.kept[0], &work.kept[1]].map(|kept| kept.slice(s![..c.nrows(), ..]));
        let (t, u) = tangent.split_at(Axis(1), half);
        let (a, z) = given.inputs[0].split_at(Axis(1), half);
        Zip::from(&mut d_cotangent).and(t).and(gate).for_each(|d, &t, &gate| *d = t * gate);
        Zip::from(&mut d_cotangent)
            .and(u)
            .and(a)
            .and(slope)
            .for_each(|d, &u, &a, &slope| *d += u * a * slope);
        let Some(d_input) = &mut d_inputs[0] else { return };
        let (mut da, mut dz) = d_input.view_mut().split_at(Axis(1), half);
        let mut density = z.mapv(|z| z * z * T::from_f64(-0.5));
        T::exp_all(density.as_slice_mut().expect("standard layout"));
        let scale = T::from_f64((2.0 * std::f64::consts::PI).sqrt().recip());
        let two = T::one() + T::one();
        Zip::from(&mut density).and(z).for_each(|bend, &z| *bend = *bend * scale * (two - z * z));
        Zip::from(&mut da).and(u).and(c).and(slope).for_each(|d, &u, &c, &slope| *d = u * c * slope);
        Zip::from(&mut dz).and(t).and(c).and(slope).for_each(|d, &t, &c, &slope| *d = t * c * slope);
        let bent = Zip::from(&mut dz).and(u).and(c).and(a).and(&density);
        bent.for_each(|d, &u, &c, &a, &bend| *d += u * c * a * bend);
    }
}

pub(super) fn naive(rows: &Rows) -> Rows {
    let unit = |row: &Vec<f64>| {
        let (a, z) = row.split_at(row.len() / 2);
        a.iter().zip(z).map(|(a, &z)| a * Activation::Gelu.naive_value(z)).collect()
    };
    rows.iter().map(unit).collect()
}

pub(super) fn naive_vjp(rows: &Rows, cotangent: &Rows) -> Rows {
    let unit = |(row, d): (&Vec<f64>, &Vec<f64>)| {
        let (a, z) = row.split_at(row.len() / 2);
        let da = d.iter().zip(z).map(|(d, &z)| d * Activation::Gelu.naive_value(z));
        let weighted: Vec<f64> = d.iter().zip(a).map(|(d, a)| d * a).collect();
        let dz = Activation::Gelu.naive_vjp(&vec![z.to_vec()], &vec![weighted]).remove(0);
        da.chain(dz).collect()
    };
    rows.iter().zip(cotangent).map(unit).collect()
}
