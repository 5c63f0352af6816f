//! Memory models: networks whose weights are the memory. Each is one file that builds a [`Graph`], and one line of the
//! list below. Everything else follows from the graph: engine, oracle, files, metrics.
//!
//! Formulas: titans-pytorch 0.0.17 for `attention` (`titans_attn_memory.py`), 0.5.5 for the others (`memory_models.py`).

use serde::{Deserialize, Serialize};

use super::graph::{Graph, GraphBuilder, Value};
use super::limits::OutOfRange;
use super::operators::{Activation, Op};

/// Declares the files of models and lists them with their names in flags and files: one line each.
macro_rules! models {
    ($($(#[$doc:meta])+ $kind:ident($name:literal) = $file:ident,)+) => {
        $(mod $file;)+

        /// A kind of memory model.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
        pub enum ModelKind {
            $(
                $(#[$doc])+
                #[serde(rename = $name)]
                #[value(name = $name)]
                $kind,
            )+
        }

        impl ModelKind {
            /// All kinds.
            pub const ALL: &[Self] = &[$(Self::$kind),+];

            /// Returns the name in flags, files and messages.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)+
                }
            }

            /// Returns the options that the model has, with their defaults.
            pub fn options(self) -> Options {
                match self {
                    $(Self::$kind => $file::OPTIONS,)+
                }
            }

            fn build(self, graph: &mut GraphBuilder, options: &Options, d: usize) -> Value {
                match self {
                    $(Self::$kind => $file::build(graph, options, d),)+
                }
            }
        }
    };
}

models! {
    /// silu(causal attention of x W_q, x W_k, x W_v1) W_v2
    Attention("attention") = attention,
    /// Causal attention with cosine scores, plus an MLP beside it
    AttentionCosine("attention-cosine") = attention_cosine,
    /// Matrices with an activation between them
    Mlp("mlp") = mlp,
    /// One matrix
    Linear("linear") = linear,
    /// Layers x + (a ∘ gelu(z)) W_2 with [a z] = x W_1, then a LayerNorm
    Swiglu("swiglu") = swiglu,
    /// Two-layer MLPs, each with a learned gate on its residual, then one matrix
    GatedResidual("gated-residual") = gated_residual,
    /// An MLP whose matrices are products of two thin ones
    Factorized("factorized") = factorized,
}

/// Options of a model; those that it does not have are absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Number of layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<usize>,
    /// Width of hidden rows, as a multiple of d.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expansion: Option<f64>,
    /// Inner width of a factorized matrix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// Factor of cosine scores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// Function between the matrices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_activation: Option<Activation>,
}

impl Options {
    /// No options.
    pub const NONE: Self =
        Self { depth: None, expansion: None, rank: None, scale: None, model_activation: None };

    /// Returns these options, completed by `defaults`.
    #[must_use]
    pub fn or(self, defaults: Self) -> Self {
        Self {
            depth: self.depth.or(defaults.depth),
            expansion: self.expansion.or(defaults.expansion),
            rank: self.rank.or(defaults.rank),
            scale: self.scale.or(defaults.scale),
            model_activation: self.model_activation.or(defaults.model_activation),
        }
    }

    /// Returns each option's name and whether it is present.
    fn named(&self) -> [(&'static str, bool); 5] {
        [
            ("depth", self.depth.is_some()),
            ("expansion", self.expansion.is_some()),
            ("rank", self.rank.is_some()),
            ("scale", self.scale.is_some()),
            ("model_activation", self.model_activation.is_some()),
        ]
    }

    fn depth(&self) -> usize {
        self.depth.expect("models with a depth have a default")
    }

    /// Returns a hidden width: ⌊d · expansion · factor⌋.
    fn hidden(&self, d: usize, factor: f64) -> usize {
        #[expect(clippy::cast_sign_loss, reason = "expansions are above 0")]
        let hidden =
            (d as f64 * self.expansion.expect("models with an expansion have a default") * factor) as usize;
        hidden
    }
}

/// Most layers of a model; a larger number is taken for a typing error.
const MAX_DEPTH: usize = 64;
/// Largest width for which a model is built to be checked.
const MAX_WIDTH: usize = 1 << 32;
/// Largest expansion.
const MAX_EXPANSION: f64 = 64.0;
/// Largest rank; a larger number is taken for a typing error.
const MAX_RANK: usize = 1 << 16;

/// A model with all options set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Model {
    /// Kind of the model.
    pub kind: ModelKind,
    /// Options that the kind has.
    pub options: Options,
    /// Whether the model is wrapped: y = LayerNorm(M(x)) ∘ (γ + 1) + x.
    pub residual_norm: bool,
}

impl Model {
    /// Returns a model with default options.
    pub fn new(kind: ModelKind, residual_norm: bool) -> Self {
        Self { kind, options: kind.options(), residual_norm }
    }

    /// Returns the model as operators, for heads of width d.
    pub fn graph(&self, d: usize) -> Graph {
        let mut graph = GraphBuilder::new(d);
        let gain = self.residual_norm.then(|| graph.gain("residual_norm.gamma", d));
        let output = self.kind.build(&mut graph, &self.options, d);
        if let Some(gain) = gain {
            let normed = graph.layer_norm(output, gain);
            graph.apply(Op::add(), &[normed, Value::Rows]);
        }
        graph.finish()
    }

    /// Checks the options: the name of one that the model lacks or that is out of range, and the problem.
    pub fn check(&self, d: Option<usize>) -> Result<(), (&'static str, OutOfRange)> {
        let Self { kind, options, .. } = self;
        for ((name, given), (_, has)) in options.named().into_iter().zip(kind.options().named()) {
            if given && !has {
                let problem = format!("is not an option of the model {}; omit it", kind.name());
                return Err((name, OutOfRange::new(self.text_of(name), problem)));
            }
        }
        if let Some(depth) = options.depth.filter(|depth| !(1..=MAX_DEPTH).contains(depth)) {
            return Err(("depth", OutOfRange::new(depth, format!("is out of range; use 1 to {MAX_DEPTH}"))));
        }
        if let Some(rank) = options.rank.filter(|rank| !(1..=MAX_RANK).contains(rank)) {
            return Err(("rank", OutOfRange::new(rank, format!("is out of range; use 1 to {MAX_RANK}"))));
        }
        if let Some(scale) = options.scale.filter(|scale| !scale.is_finite()) {
            return Err(("scale", OutOfRange::new(scale, "is not finite; use a finite number")));
        }
        let expands = |x: &f64| *x > 0.0 && *x <= MAX_EXPANSION;
        if let Some(expansion) = options.expansion.filter(|expansion| !expands(expansion)) {
            let problem = format!("is out of range; use a number above 0, up to {MAX_EXPANSION}");
            return Err(("expansion", OutOfRange::new(expansion, problem)));
        }
        // Widths that nothing can be multiplied with, from an expansion that is too small.
        let weights = d.filter(|d| (1..=MAX_WIDTH).contains(d)).map(|d| self.graph(d).weights);
        if weights.iter().flatten().any(|weight| weight.rows == 0 || weight.cols == 0) {
            let problem = "gives hidden rows of width 0; use a larger expansion";
            return Err(("expansion", OutOfRange::new(options.expansion.unwrap_or_default(), problem)));
        }
        Ok(())
    }

    fn text_of(&self, option: &str) -> String {
        let Options { depth, expansion, rank, scale, model_activation } = self.options;
        let text = match option {
            "depth" => depth.map(|x| x.to_string()),
            "expansion" => expansion.map(|x| x.to_string()),
            "rank" => rank.map(|x| x.to_string()),
            "scale" => scale.map(|x| x.to_string()),
            _ => model_activation.map(|x| format!("{x:?}").to_lowercase()),
        };
        text.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each model with one option that it lacks: the message has the option's value.
    #[test]
    fn options_that_a_model_lacks_are_named() {
        let options = |change: fn(&mut Options)| {
            let mut options = Options::NONE;
            change(&mut options);
            options
        };
        for (kind, options, name, value) in [
            (ModelKind::Attention, options(|of| of.depth = Some(3)), "depth", "3"),
            (ModelKind::Attention, options(|of| of.expansion = Some(1.5)), "expansion", "1.5"),
            (ModelKind::Mlp, options(|of| of.rank = Some(4)), "rank", "4"),
            (ModelKind::Mlp, options(|of| of.scale = Some(0.5)), "scale", "0.5"),
            (
                ModelKind::Linear,
                options(|of| of.model_activation = Some(Activation::Gelu)),
                "model_activation",
                "gelu",
            ),
        ] {
            let model = Model { kind, options: options.or(kind.options()), residual_norm: false };
            let problem = format!("is not an option of the model {}; omit it", kind.name());
            assert_eq!(model.check(Some(8)), Err((name, OutOfRange::new(value, problem))));
        }
    }

    /// Options at their limits, and just beyond them.
    #[test]
    fn options_have_limits() {
        let check = |kind: ModelKind, change: &dyn Fn(&mut Options)| {
            let mut model = Model::new(kind, false);
            change(&mut model.options);
            model.check(Some(8)).map_err(|(name, _)| name)
        };
        let depth = |depth| check(ModelKind::Mlp, &|of| of.depth = Some(depth));
        assert_eq!([0, 1, 64, 65].map(depth), [Err("depth"), Ok(()), Ok(()), Err("depth")]);
        let rank = |rank| check(ModelKind::Factorized, &|of| of.rank = Some(rank));
        assert_eq!([0, 1, 65_536, 65_537].map(rank), [Err("rank"), Ok(()), Ok(()), Err("rank")]);
        let scale = |scale| check(ModelKind::AttentionCosine, &|of| of.scale = Some(scale));
        assert_eq!([-1.0, f64::INFINITY, f64::NAN].map(scale), [Ok(()), Err("scale"), Err("scale")]);
        // An expansion of 1/8 leaves one number of a row of 8, and less leaves none.
        let expansion = |expansion| check(ModelKind::Mlp, &|of| of.expansion = Some(expansion));
        assert_eq!([0.125, 64.0].map(expansion), [Ok(()); 2]);
        assert_eq!([-1.0, 0.0, 0.124, 64.1, f64::NAN].map(expansion), [Err("expansion"); 5]);
    }
}
