//! The rows around the heads, forward and back: norms, projections and gates before them, norms and the projection after them.

use ndarray::{Array1, Array2, ArrayView2, Axis, CowArray, Ix2, concatenate, s};

use super::Backward;
use super::head::HeadCotangents;
use super::rows::{
    activated, activated_vjp, add_product, means_of_chunks, means_of_chunks_vjp, product, product_of_columns,
    rms_normed, rms_normed_vjp,
};
use crate::memory::Parameters;
use crate::memory::rule::RatePer;
use crate::real::Real;

/// Layers between the tokens of a stream and the heads.
#[derive(Clone, Copy)]
pub struct Layers<'p, T> {
    norm: Option<&'p Array1<T>>,
    projection: &'p Array2<T>,
    /// Gains of the norm of each head's keys or queries.
    qk_norm: Option<&'p Array2<T>>,
}

impl<'p, T> Layers<'p, T> {
    /// Returns the layers of the tokens that are stored, and of those that are read.
    pub fn of(parameters: &'p Parameters<T>) -> [Self; 2] {
        let Parameters { store_norm, retrieve_norm, keys_values, queries, qk_norm, .. } = parameters;
        let qk_norm = |i: usize| qk_norm.as_ref().map(|norms| &norms[i]);
        [
            Self { norm: store_norm.as_ref(), projection: keys_values, qk_norm: qk_norm(0) },
            Self { norm: retrieve_norm.as_ref(), projection: queries, qk_norm: qk_norm(1) },
        ]
    }
}

/// Gradients of a stream's tokens and of its layers.
pub struct StreamGradients<T> {
    pub tokens: Array2<T>,
    pub norm: Option<Array1<T>>,
    pub projection: Array2<T>,
    pub qk_norm: Option<Array2<T>>,
}

/// Rows of one stream and what becomes of them: whole chunks, from tokens that an earlier call left. A step that the memory
/// lacks has no rows of its own.
pub struct Stream<'t, T> {
    layers: Layers<'t, T>,
    pub tokens: CowArray<'t, T, Ix2>,
    pub normed: Option<Array2<T>>,
    /// Products with the projection, before activation and norm.
    pub projected: Array2<T>,
    pub activated: Option<Array2<T>>,
    /// Keys and values, or queries, after the norm of each head.
    pub head_normed: Option<Array2<T>>,
    /// Rows that precede those of the call.
    pub before: usize,
}

impl<T: Real> Stream<'_, T> {
    pub fn normed(&self) -> ArrayView2<'_, T> {
        self.normed.as_ref().map_or(self.tokens.view(), |rows| rows.view())
    }

    pub fn activated(&self) -> ArrayView2<'_, T> {
        self.activated.as_ref().unwrap_or(&self.projected).view()
    }

    /// Returns keys and values, or queries.
    pub fn rows(&self) -> ArrayView2<'_, T> {
        self.head_normed.as_ref().map_or(self.activated(), |rows| rows.view())
    }
}

/// Rows between the heads and the output. A step that the memory lacks has no rows of its own.
pub struct Output<T> {
    /// Rows that the heads retrieve.
    pub heads: Array2<T>,
    /// The same after the norm of each head.
    pub normed: Option<Array2<T>>,
    /// Gates (rows, h) of these rows, and their products.
    pub gated: Option<[Array2<T>; 2]>,
    pub combined: Option<Array2<T>>,
    pub post_normed: Option<Array2<T>>,
}

impl<T: Real> Output<T> {
    pub fn normed(&self) -> &Array2<T> {
        self.normed.as_ref().unwrap_or(&self.heads)
    }

    pub fn merged(&self) -> &Array2<T> {
        self.gated.as_ref().map_or(self.normed(), |[_, products]| products)
    }

    pub fn combined(&self) -> &Array2<T> {
        self.combined.as_ref().unwrap_or(self.merged())
    }

    pub fn rows(&self) -> ArrayView2<'_, T> {
        self.post_normed.as_ref().unwrap_or(self.combined()).view()
    }
}

impl<T: Real> Backward<'_, T> {
    /// Norms and projects the tokens of a stream, after those that an earlier call left. Only `whole` chunks are taken of
    /// the stored one.
    pub(super) fn stream<'t>(
        &self,
        layers: Layers<'t, T>,
        left: Option<Array2<T>>,
        tokens: ArrayView2<'t, T>,
        whole: bool,
    ) -> Stream<'t, T> {
        let left = left.filter(|left| left.nrows() > 0);
        let before = left.as_ref().map_or(0, Array2::nrows);
        let mut tokens: CowArray<'t, T, Ix2> = match left {
            Some(left) => {
                concatenate(Axis(0), &[left.view(), tokens]).expect("rows of the same width").into()
            }
            None if tokens.is_standard_layout() => tokens.into(),
            None => tokens.as_standard_layout().into_owned().into(),
        };
        if whole {
            let complete = tokens.nrows() / self.passes.chunk * self.passes.chunk;
            tokens = tokens.slice_move(s![..complete, ..]);
        }
        let Layers { norm, projection, qk_norm } = layers;
        let normed =
            norm.map(|norm| rms_normed(tokens.view(), norm.as_slice().expect("standard layout"), norm.len()));
        let projected = product(normed.as_ref().map_or(tokens.view(), |rows| rows.view()), projection.view());
        let activation = self.program.frame.activation.function();
        let mut stream = Stream {
            layers,
            activated: activation.map(|activation| activated(activation, projected.clone())),
            head_normed: None,
            tokens,
            normed,
            projected,
            before,
        };
        stream.head_normed = qk_norm.map(|gains| {
            let mut rows = stream.activated().to_owned();
            let heads = s![.., ..gains.len()];
            let normed = rms_normed(rows.slice(heads), &factors(gains), gains.ncols());
            rows.slice_mut(heads).assign(&normed);
            rows
        });
        stream
    }

    /// Passes the cotangent of a stream's rows back to its tokens and layers. `d_normed` has what reaches the normed tokens from gates;
    /// what reaches them from the projection is added.
    pub(super) fn stream_vjp(
        &self,
        stream: &Stream<'_, T>,
        mut cotangent: Array2<T>,
        mut d_normed: Array2<T>,
    ) -> StreamGradients<T> {
        let Layers { norm, projection, qk_norm } = stream.layers;
        let qk_norm = qk_norm.map(|gains| {
            let columns = s![.., ..gains.len()];
            let mut of_heads = cotangent.slice(columns).to_owned();
            let before = stream.activated().slice_move(columns);
            let d_gains = rms_normed_vjp(before, &factors(gains), gains.ncols(), &mut of_heads);
            cotangent.slice_mut(columns).assign(&of_heads);
            d_gains.into_shape_with_order(gains.dim()).expect("same elements")
        });
        activated_vjp(self.program.frame.activation.function(), &stream.projected, &mut cotangent);
        let d_projection = product_of_columns(stream.normed(), cotangent.view());
        add_product(&mut d_normed, cotangent.view(), projection.t());
        drop(cotangent);
        let norm = norm.map(|norm| {
            let weights = norm.as_slice().expect("standard layout");
            rms_normed_vjp(stream.tokens.view(), weights, weights.len(), &mut d_normed)
        });
        StreamGradients { tokens: d_normed, norm, projection: d_projection, qk_norm }
    }

    /// Returns the logits (chunks, 3h) of the gates of chunks, and those (rows, h) of the rates of tokens, if they have any.
    pub(super) fn gates(&self, normed: ArrayView2<T>) -> (Array2<T>, Option<Array2<T>>) {
        let parameters = self.parameters;
        let mut logits = product(means_of_chunks(normed, self.passes.chunk).view(), parameters.gates.view());
        let mut of_tokens = (self.program.rule.rate_per == RatePer::Token)
            .then(|| product(normed, parameters.gates.slice(s![.., ..parameters.dimensions.heads])));
        if let Some(biases) = &parameters.gate_biases {
            logits += biases;
            if let Some(of_tokens) = &mut of_tokens {
                *of_tokens += &biases.slice(s![..parameters.dimensions.heads]);
            }
        }
        (logits, of_tokens)
    }

    /// Passes the cotangents of the heads' gates back to the normed tokens that are stored and to the gate layers.
    pub(super) fn gates_vjp(
        &self,
        stored: &Stream<'_, T>,
        gates: &Array2<T>,
        token_rates: Option<&Array2<T>>,
        of_heads: &[HeadCotangents<T>],
        d_normed: &mut Array2<T>,
        gradients: &mut Parameters<T>,
    ) {
        let (c, h) = (self.passes.chunk, of_heads.len());
        let (rule, parameters) = (self.program.rule, self.parameters);
        let mut d_logits = Array2::zeros(gates.dim());
        for (j, head) in of_heads.iter().enumerate() {
            for (chunk, of_chunk) in head.gates.iter().enumerate() {
                let [step, momentum, decay] = [0, 1, 2].map(|i| gates[[chunk, i * h + j]].to_f64());
                let slopes = self.gates.slopes(&rule, step, momentum, decay);
                let rate = if token_rates.is_some() { 0.0 } else { slopes.learning_rate };
                for (i, (slope, d)) in
                    [rate, slopes.momentum, slopes.decay].into_iter().zip(of_chunk).enumerate()
                {
                    d_logits[[chunk, i * h + j]] = T::from_f64(slope * d);
                }
            }
        }
        let means = means_of_chunks(stored.normed(), c);
        gradients.gates = product_of_columns(means.view(), d_logits.view());
        let d_means = product(d_logits.view(), parameters.gates.t());
        means_of_chunks_vjp(d_normed, d_means.view(), c);
        let mut d_biases = d_logits.sum_axis(Axis(0));
        if let Some(logits) = token_rates {
            let mut d_logits = Array2::zeros(logits.dim());
            for (j, head) in of_heads.iter().enumerate() {
                let rates = head.rates.iter().flatten();
                for (r, &rate) in rates.enumerate() {
                    let slope = self.gates.rate_slope(&rule, logits[[r, j]].to_f64());
                    d_logits[[r, j]] = T::from_f64(slope * rate.to_f64());
                }
            }
            let layer = product_of_columns(stored.normed(), d_logits.view());
            gradients.gates.slice_mut(s![.., ..h]).assign(&layer);
            add_product(d_normed, d_logits.view(), parameters.gates.slice(s![.., ..h]).t());
            d_biases.slice_mut(s![..h]).assign(&d_logits.sum_axis(Axis(0)));
        }
        if let Some(biases) = &mut gradients.gate_biases {
            *biases = d_biases;
        }
    }

    /// Combines the heads: norm, gate, projection and norm.
    pub(super) fn combine(&self, asked: &Stream<'_, T>, heads: Array2<T>) -> Output<T> {
        let parameters = self.parameters;
        let mut output = Output { heads, normed: None, gated: None, combined: None, post_normed: None };
        output.normed = parameters
            .head_norm
            .as_ref()
            .map(|gains| rms_normed(output.heads.view(), &factors(gains), gains.ncols()));
        output.gated = parameters.read_gate.as_ref().map(|layer| {
            let mut gates = product(asked.normed(), layer.view());
            T::sigmoid(gates.as_slice_mut().expect("standard layout"));
            let mut products = output.normed().clone();
            self.scale_heads(&mut products, &gates);
            [gates, products]
        });
        output.combined = parameters.combine.as_ref().map(|w| product(output.merged().view(), w.view()));
        output.post_normed = parameters.post_norm.as_ref().map(|norm| {
            rms_normed(output.combined().view(), norm.as_slice().expect("standard layout"), norm.len())
        });
        output
    }

    /// Multiplies each head's part of each row by its gate.
    fn scale_heads(&self, rows: &mut Array2<T>, gates: &Array2<T>) {
        let d = self.parameters.dimensions.dim_head;
        for (mut row, gates) in rows.rows_mut().into_iter().zip(gates.rows()) {
            let row = row.as_slice_mut().expect("standard layout");
            for (part, &gate) in row.chunks_exact_mut(d).zip(gates) {
                for x in part {
                    *x *= gate;
                }
            }
        }
    }

    /// Passes the cotangent of the output back to what the heads retrieve, and to the products with the read gate's layer if there
    /// is one.
    pub(super) fn combine_vjp(
        &self,
        asked: &Stream<'_, T>,
        mut output: Output<T>,
        mut cotangent: Array2<T>,
        gradients: &mut Parameters<T>,
    ) -> (Array2<T>, Option<Array2<T>>) {
        let parameters = self.parameters;
        let d = parameters.dimensions.dim_head;
        if let Some(norm) = &parameters.post_norm {
            let weights = norm.as_slice().expect("standard layout");
            let of_norm = rms_normed_vjp(output.combined().view(), weights, weights.len(), &mut cotangent);
            gradients.post_norm = Some(of_norm);
        }
        if let Some(combine) = &parameters.combine {
            output.combined = None;
            gradients.combine = Some(product_of_columns(output.merged().view(), cotangent.view()));
            cotangent = product(cotangent.view(), combine.t());
        }
        let d_gates = output.gated.as_ref().map(|[gates, _]| {
            let mut d_gates = Array2::zeros(gates.dim());
            for ((r, j), d_gate) in d_gates.indexed_iter_mut() {
                let part = s![r, j * d..(j + 1) * d];
                let gate = gates[[r, j]];
                *d_gate = cotangent.slice(part).dot(&output.normed().slice(part)) * gate * (T::one() - gate);
            }
            self.scale_heads(&mut cotangent, gates);
            gradients.read_gate = Some(product_of_columns(asked.normed(), d_gates.view()));
            d_gates
        });
        if let Some(gains) = &parameters.head_norm {
            let of_gains =
                rms_normed_vjp(output.heads.view(), &factors(gains), gains.ncols(), &mut cotangent);
            gradients.head_norm = Some(of_gains.into_shape_with_order(gains.dim()).expect("same elements"));
        }
        (cotangent, d_gates)
    }
}

/// Returns γ + 1 of gains γ (h, d), one head after another.
fn factors<T: Real>(gains: &Array2<T>) -> Vec<T> {
    gains.iter().map(|&gamma| gamma + T::one()).collect::<Array1<T>>().to_vec()
}
