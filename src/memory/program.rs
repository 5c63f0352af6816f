//! A memory as a program: model, loss, rule and schedule as independent choices, beside the projections around them.
//! `docs/concepts/programs.md` describes them; [`Preset`]s set them together.

use serde::{Deserialize, Serialize};

use super::limits::{OutOfRange, check_chunk_size};
use super::loss::{Loss, LossKind};
use super::model::{Model, ModelKind, Options};
use super::operators::Activation;
use super::rule::{DecayOf, RateForm, RatePer, Rule};
use crate::error::{Error, Result};

/// Weights that the tokens of a chunk read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Reads {
    /// Tokens of chunk i read the memory after chunks 0 .. i−1; those of chunk 0 are zeros (titans-pytorch 0.0.17)
    #[default]
    Behind,
    /// Each token reads the memory after all chunks that are complete with it: the last token of a chunk reads what was
    /// just stored. Before that, the initial weights (titans-pytorch 0.5.5)
    Complete,
    /// Like `complete`, but zeros before the first chunk is complete (the MLP of titans-pytorch 0.0.17)
    CompleteOrZeros,
}

/// When the memory changes, and what reads see of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Tokens per chunk, c.
    pub chunk_size: usize,
    /// Number of tokens, a multiple of c, after which gradients are taken at the weights of that moment. `None`: always at
    /// the initial weights.
    pub refresh: Option<usize>,
    /// Whether a refresh passes through a learned gate: U ← W + sigmoid(g) (U − W).
    pub gated_transition: bool,
    /// Weights that tokens read.
    pub reads: Reads,
}

/// Function of keys, values and queries after their projection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ProjectionActivation {
    /// The projection itself.
    #[default]
    None,
    /// x · Φ(x), Φ the distribution function of N(0, 1).
    Gelu,
    /// x · sigmoid(x)
    Silu,
}

impl ProjectionActivation {
    /// Returns the function, if there is one.
    pub fn function(self) -> Option<Activation> {
        match self {
            Self::None => None,
            Self::Gelu => Some(Activation::Gelu),
            Self::Silu => Some(Activation::Silu),
        }
    }
}

/// Projections around the memory: their activations, norms and gates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches")]
pub struct Frame {
    /// Function of keys, values and queries after their projection.
    pub activation: ProjectionActivation,
    /// RMSNorm of keys and queries in each head, with a learned gain.
    pub qk_norm: bool,
    /// RMSNorm of what each head retrieves, with a learned gain.
    pub head_norm: bool,
    /// A gate per token and head on what is retrieved.
    pub read_gate: bool,
    /// Biases of the gate layers.
    pub gate_biases: bool,
    /// Whether each head has its own initial weights.
    pub per_head: bool,
}

/// All choices that make a memory, except its sizes and numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Program {
    /// The network whose weights are the memory.
    pub model: Model,
    /// Loss that storing minimises.
    pub loss: Loss,
    /// Effect of a gradient on the state.
    pub rule: Rule,
    /// When, and what reads see.
    pub schedule: Schedule,
    /// Projections around the memory.
    pub frame: Frame,
}

/// Passes the names and types of all choices to a macro, so that they are listed once. `refresh` counts tokens, and 0 is
/// never.
macro_rules! with_choices {
    ($callback:ident!($($before:tt)*)) => {
        $callback! {
            $($before)*
            model: ModelKind,
            depth: usize,
            expansion: f64,
            rank: usize,
            scale: f64,
            model_activation: Activation,
            residual_norm: bool,
            loss: LossKind,
            huber_delta: f64,
            loss_power: f64,
            rate_form: RateForm,
            max_rate: f64,
            rate_per: RatePer,
            no_momentum: bool,
            decay_of: DecayOf,
            refresh: usize,
            gated_transition: bool,
            reads: Reads,
            activation: ProjectionActivation,
            qk_norm: bool,
            head_norm: bool,
            read_gate: bool,
            gate_biases: bool,
            per_head: bool,
        }
    };
}
pub(crate) use with_choices;

macro_rules! declare_choices {
    ($($field:ident: $type:ty,)*) => {
        /// Choices of a program by their names in flags, files and messages; absent ones are not chosen.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
        #[expect(missing_docs, reason = "the fields of the program's parts document them")]
        pub struct Choices {
            $(pub $field: Option<$type>,)*
        }
    };
}
with_choices!(declare_choices!());

impl From<&Program> for Choices {
    /// Returns all choices of a program that apply to its parts.
    fn from(program: &Program) -> Self {
        let Program { model, loss, rule, schedule, frame } = *program;
        let Options { depth, expansion, rank, scale, model_activation } = model.options;
        Self {
            model: Some(model.kind),
            depth,
            expansion,
            rank,
            scale,
            model_activation,
            residual_norm: Some(model.residual_norm),
            loss: Some(loss.kind()),
            huber_delta: if let Loss::Huber { delta } = loss { Some(delta) } else { None },
            loss_power: if let Loss::PNorm { p } = loss { Some(p) } else { None },
            rate_form: Some(rule.rate_form),
            max_rate: (rule.rate_form == RateForm::Sigmoid).then_some(rule.max_rate),
            rate_per: Some(rule.rate_per),
            no_momentum: Some(!rule.momentum),
            decay_of: Some(rule.decay_of),
            refresh: Some(schedule.refresh.unwrap_or(0)),
            gated_transition: Some(schedule.gated_transition),
            reads: Some(schedule.reads),
            activation: Some(frame.activation),
            qk_norm: Some(frame.qk_norm),
            head_norm: Some(frame.head_norm),
            read_gate: Some(frame.read_gate),
            gate_biases: Some(frame.gate_biases),
            per_head: Some(frame.per_head),
        }
    }
}

impl Choices {
    /// Returns `base` with these choices in place of its own. The options of another model start from its defaults.
    ///
    /// # Errors
    /// A choice for a part that the program does not have, such as `huber_delta` without Huber's loss.
    pub fn over(&self, base: Program) -> Result<Program> {
        let kind = self.model.unwrap_or(base.model.kind);
        let Self { depth, expansion, rank, scale, model_activation, .. } = *self;
        let own = Options { depth, expansion, rank, scale, model_activation };
        let known = if kind == base.model.kind { base.model.options } else { kind.options() };
        let loss_kind = self.loss.unwrap_or(base.loss.kind());
        let of_base = Self::from(&base);
        let parameter =
            |own: Option<f64>, known: Option<f64>| own.or(known.filter(|_| loss_kind == base.loss.kind()));
        let loss = Loss::new(
            loss_kind,
            parameter(self.huber_delta, of_base.huber_delta),
            parameter(self.loss_power, of_base.loss_power),
        );
        let rate_form = self.rate_form.unwrap_or(base.rule.rate_form);
        for (name, given, has, with) in [
            ("huber_delta", self.huber_delta.is_some(), loss_kind == LossKind::Huber, "loss huber"),
            ("loss_power", self.loss_power.is_some(), loss_kind == LossKind::PNorm, "loss p-norm"),
            ("max_rate", self.max_rate.is_some(), rate_form == RateForm::Sigmoid, "rate_form sigmoid"),
        ] {
            if given && !has {
                return Err(Error::rejected(name, format!("applies to {with} only; omit it, or set that")));
            }
        }
        let refresh = match self.refresh {
            None => base.schedule.refresh,
            Some(0) => None,
            every => every,
        };
        Ok(Program {
            model: Model {
                kind,
                options: own.or(known),
                residual_norm: self.residual_norm.unwrap_or(base.model.residual_norm),
            },
            loss,
            rule: Rule {
                rate_form,
                // Without a factor the form has none to remember.
                max_rate: match rate_form {
                    RateForm::Exp => 1.0,
                    RateForm::Sigmoid => self.max_rate.unwrap_or(base.rule.max_rate),
                },
                rate_per: self.rate_per.unwrap_or(base.rule.rate_per),
                momentum: self.no_momentum.map_or(base.rule.momentum, |without| !without),
                decay_of: self.decay_of.unwrap_or(base.rule.decay_of),
            },
            schedule: Schedule {
                chunk_size: base.schedule.chunk_size,
                refresh,
                gated_transition: self.gated_transition.unwrap_or(base.schedule.gated_transition),
                reads: self.reads.unwrap_or(base.schedule.reads),
            },
            frame: Frame {
                activation: self.activation.unwrap_or(base.frame.activation),
                qk_norm: self.qk_norm.unwrap_or(base.frame.qk_norm),
                head_norm: self.head_norm.unwrap_or(base.frame.head_norm),
                read_gate: self.read_gate.unwrap_or(base.frame.read_gate),
                gate_biases: self.gate_biases.unwrap_or(base.frame.gate_biases),
                per_head: self.per_head.unwrap_or(base.frame.per_head),
            },
        })
    }

    /// Returns the choices that are made, with their names and values as in JSON.
    pub fn made(&self) -> Vec<(String, serde_json::Value)> {
        let all = serde_json::to_value(self).expect("plain values");
        let serde_json::Value::Object(all) = all else { unreachable!("a structure") };
        all.into_iter().filter(|(_, value)| !value.is_null()).collect()
    }
}

/// A named set of choices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum Preset {
    /// The attention memory of titans-pytorch 0.0.17
    #[default]
    #[serde(rename = "titans-0.0.17")]
    #[value(name = "titans-0.0.17")]
    Titans0017,
    /// The default memory of titans-pytorch 0.5.5
    #[serde(rename = "titans-0.5.5")]
    #[value(name = "titans-0.5.5")]
    Titans055,
    /// The memory of the Titans paper (arXiv 2501.00663): an MLP, gradients at the weights before each chunk
    #[serde(rename = "titans-paper")]
    #[value(name = "titans-paper")]
    TitansPaper,
}

/// Largest rate of the preset titans-paper. The paper states none; with random weights 0.01 diverges and 0.001 does not.
const PAPER_MAX_RATE: f64 = 1e-3;

impl Preset {
    /// Returns the program of the preset for chunks of `chunk_size` tokens and a number of heads.
    pub fn program(self, chunk_size: usize, heads: usize) -> Program {
        match self {
            Self::Titans0017 => Program::titans_0_0_17(chunk_size),
            Self::Titans055 => Program {
                model: Model::new(ModelKind::Mlp, true),
                loss: Loss::MeanSquare,
                rule: Rule {
                    rate_form: RateForm::Sigmoid,
                    max_rate: 1.0,
                    rate_per: RatePer::Token,
                    momentum: true,
                    decay_of: DecayOf::Weights,
                },
                schedule: Schedule {
                    chunk_size,
                    refresh: None,
                    gated_transition: false,
                    reads: Reads::Complete,
                },
                frame: Frame { read_gate: heads > 1, gate_biases: true, per_head: true, ..Frame::default() },
            },
            Self::TitansPaper => Program {
                model: Model::new(ModelKind::Mlp, false),
                loss: Loss::PNorm { p: 2.0 },
                rule: Rule {
                    rate_form: RateForm::Sigmoid,
                    max_rate: PAPER_MAX_RATE,
                    rate_per: RatePer::Token,
                    momentum: true,
                    decay_of: DecayOf::Weights,
                },
                schedule: Schedule {
                    chunk_size,
                    refresh: Some(chunk_size),
                    gated_transition: false,
                    reads: Reads::Complete,
                },
                frame: Frame {
                    activation: ProjectionActivation::Silu,
                    qk_norm: true,
                    gate_biases: true,
                    ..Frame::default()
                },
            },
        }
    }
}

impl Program {
    /// Returns the attention memory of titans-pytorch 0.0.17.
    pub fn titans_0_0_17(chunk_size: usize) -> Self {
        Self {
            model: Model::new(ModelKind::Attention, false),
            loss: Loss::MeanSquare,
            rule: Rule {
                rate_form: RateForm::Exp,
                max_rate: 1.0,
                rate_per: RatePer::Chunk,
                momentum: true,
                decay_of: DecayOf::Update,
            },
            schedule: Schedule { chunk_size, refresh: None, gated_transition: false, reads: Reads::Behind },
            frame: Frame::default(),
        }
    }

    /// Returns the MLP memory of titans-pytorch 0.0.17, its `NeuralMemory` by default with a depth of 4.
    pub fn titans_0_0_17_mlp(chunk_size: usize, depth: usize) -> Self {
        let options = Options {
            depth: Some(depth),
            expansion: Some(1.0),
            model_activation: Some(Activation::Silu),
            ..Options::NONE
        };
        let model = Model { kind: ModelKind::Mlp, options, residual_norm: false };
        let base = Self::titans_0_0_17(chunk_size);
        Self { model, schedule: Schedule { reads: Reads::CompleteOrZeros, ..base.schedule }, ..base }
    }

    /// Returns the tokens per chunk.
    pub fn chunk_size(&self) -> usize {
        self.schedule.chunk_size
    }

    /// Returns whether files of this program have the layout of titans-pytorch 0.0.17's attention memory, which needs no
    /// program to be read.
    pub fn is_titans_0_0_17(&self) -> bool {
        *self == Self::titans_0_0_17(self.chunk_size())
    }

    /// Returns the positions that precede the first token in the stream of reads: one, read as a row of zeros, where a
    /// token reads the memory after the chunk that it completes.
    pub fn read_offset(&self) -> usize {
        match self.schedule.reads {
            Reads::Behind => 0,
            Reads::Complete | Reads::CompleteOrZeros => 1,
        }
    }

    /// Rejects combinations without meaning. `d` is the width of a head, where it is known.
    pub fn check(&self, d: Option<usize>) -> Result<()> {
        let Schedule { chunk_size, refresh, gated_transition, .. } = self.schedule;
        let limit = |(name, problem): (&'static str, OutOfRange)| Error::limit(name)(problem);
        check_chunk_size(chunk_size, self.model.kind).map_err(Error::limit("chunk_size"))?;
        self.model.check(d).map_err(limit)?;
        self.loss.check().map_err(limit)?;
        let max_rate = self.rule.max_rate;
        if !(max_rate > 0.0 && max_rate.is_finite()) {
            let problem = "is out of range; use a finite number above 0";
            return Err(Error::limit("max_rate")(OutOfRange::new(max_rate, problem)));
        }
        if let Some(refresh) = refresh.filter(|&refresh| refresh == 0 || !refresh.is_multiple_of(chunk_size))
        {
            let problem = format!(
                "is not a multiple of chunk_size {chunk_size}; gradients are refreshed between chunks"
            );
            return Err(Error::limit("refresh")(OutOfRange::new(refresh, problem)));
        }
        if gated_transition && refresh.is_none() {
            return Err(Error::rejected(
                "gated_transition",
                "has no effect without refresh; set refresh, or omit it",
            ));
        }
        Ok(())
    }

    /// Rejects a program through which no gradient passes, because a part has no second derivative.
    pub fn check_differentiable(&self) -> Result<()> {
        // The pass back through the recurrences knows these rules. A new one does not compile until it is added here and
        // there, or rejected.
        let Rule {
            rate_form: RateForm::Exp | RateForm::Sigmoid,
            max_rate: _,
            rate_per: RatePer::Chunk | RatePer::Token,
            momentum: true | false,
            decay_of: DecayOf::Update | DecayOf::Weights,
        } = self.rule;
        self.loss.check_differentiable().map_err(|(name, problem)| Error::limit(name)(problem))
    }

    /// Returns the reason why this program cannot run on a GPU, whose kernels compute the memory of titans-pytorch 0.0.17
    /// only.
    pub fn needs_cpu(&self) -> Option<String> {
        let only = Self::titans_0_0_17(self.chunk_size());
        let what = if self.model.kind != only.model.kind {
            format!("the model {}", self.model.kind.name())
        } else if self.model != only.model {
            "residual_norm".to_owned()
        } else if self.loss != only.loss {
            "this loss".to_owned()
        } else if self.rule != only.rule {
            "this update rule".to_owned()
        } else if self.schedule != only.schedule {
            "this schedule of refreshes and reads".to_owned()
        } else if self.frame != only.frame {
            "these projections".to_owned()
        } else {
            return None;
        };
        Some(format!("{what} runs on the CPU only"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn combinations_without_meaning_are_rejected() {
        type Change = fn(&mut Program);
        let changes: [(Change, Option<&str>); 11] = [
            (|_| {}, None),
            (|of| of.rule.max_rate = f64::MIN_POSITIVE, None),
            (|of| of.rule.max_rate = 0.0, Some("max_rate 0 is out of range")),
            (|of| of.rule.max_rate = -1.0, Some("max_rate -1 is out of range")),
            (|of| of.rule.max_rate = f64::INFINITY, Some("max_rate inf is out of range")),
            (|of| of.rule.max_rate = f64::NAN, Some("max_rate NaN is out of range")),
            (|of| of.schedule.refresh = Some(8), None),
            (|of| of.schedule.refresh = Some(0), Some("refresh 0 is not a multiple of chunk_size 4")),
            (|of| of.schedule.refresh = Some(6), Some("refresh 6 is not a multiple of chunk_size 4")),
            (
                |of| of.schedule.gated_transition = true,
                Some("gated_transition: has no effect without refresh"),
            ),
            (|of| (of.schedule.refresh, of.schedule.gated_transition) = (Some(4), true), None),
        ];
        for (change, expected) in changes {
            let mut program = Preset::Titans055.program(4, 1);
            change(&mut program);
            let message = program.check(None).map_err(|error| error.to_string());
            match expected {
                None => assert_eq!(message, Ok(())),
                Some(start) => {
                    assert!(message.as_ref().is_err_and(|text| text.contains(start)), "{message:?}");
                }
            }
        }
    }

    /// Each part that the GPU's kernels do not compute is the reason by itself.
    #[test]
    fn parts_that_need_the_cpu_are_named() {
        type Change = fn(&mut Program);
        let changes: [(Change, &str); 6] = [
            (|of| of.model = Model::new(ModelKind::Linear, false), "the model linear"),
            (|of| of.model.residual_norm = true, "residual_norm"),
            (|of| of.loss = Loss::HalfSquare, "this loss"),
            (|of| of.rule.momentum = false, "this update rule"),
            (|of| of.schedule.refresh = Some(4), "this schedule of refreshes and reads"),
            (|of| of.frame.qk_norm = true, "these projections"),
        ];
        let program = Program::titans_0_0_17(4);
        assert_eq!(program.needs_cpu(), None);
        for (change, part) in changes {
            let mut program = program;
            change(&mut program);
            assert_eq!(program.needs_cpu(), Some(format!("{part} runs on the CPU only")));
        }
    }

    /// Projections of the preset titans-paper.
    #[test]
    fn the_papers_projections() {
        let Frame { activation, qk_norm, head_norm, read_gate, gate_biases, per_head } =
            Preset::TitansPaper.program(4, 2).frame;
        assert_eq!(activation, ProjectionActivation::Silu);
        assert!(qk_norm && gate_biases && !(head_norm || read_gate || per_head));
    }
}
