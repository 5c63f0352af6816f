//! The configuration of a memory: JSON under the metadata key `nmem`, with everything that the tensors do not contain.
//!
//! Format 1 describes the memory of titans-pytorch 0.0.17. Format 2 adds the choices of a program, by their names as
//! settings.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::tensors::MAX_CONFIGURATION;
use crate::error::{Error, Result};
use crate::memory::limits::check_chunk_size;
use crate::memory::loss::LossKind;
use crate::memory::model::ModelKind;
use crate::memory::operators::Activation;
use crate::memory::program::{Choices, ProjectionActivation, Reads, with_choices};
use crate::memory::rule::{DecayOf, RateForm, RatePer};
use crate::memory::{Dimensions, Gate, Gates, Program};

/// Metadata of a memory: everything that its tensors do not contain.
#[derive(Clone, Debug, PartialEq)]
pub struct SavedConfig {
    /// Version of nmem that wrote the file.
    pub nmem: String,
    /// Model, loss, rule and schedule.
    pub program: Program,
    /// Sizes and norms. The tensors contain them too; this copy is for readers of the header alone.
    pub dimensions: Dimensions,
    /// Fixed values and biases of the three gates.
    pub gates: Gates,
}

/// Declares the keys of a [`SavedConfig`] in JSON and their conversions.
macro_rules! declare_keys {
    (model: $model:ty, $($field:ident: $type:ty,)*) => {
        /// The keys of a [`SavedConfig`] in JSON, all on one level, because serde rejects unknown keys of flat structures
        /// only. Format 1 has those up to `decay` and means the memory of titans-pytorch 0.0.17.
        #[derive(Clone, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Keys {
            format: u32,
            nmem: String,
            model: $model,
            chunk_size: usize,
            dim: usize,
            heads: usize,
            dim_head: usize,
            pre_norm: bool,
            post_norm: bool,
            learning_rate: Gate,
            momentum: Gate,
            decay: Gate,
            $(#[serde(default, skip_serializing_if = "Option::is_none")] $field: Option<$type>,)*
        }

        impl Keys {
            fn choices(&self) -> Choices {
                Choices { model: Some(self.model), $($field: self.$field,)* }
            }

            fn new(config: &SavedConfig) -> Self {
                let Dimensions { dim, heads, dim_head, pre_norm, post_norm } = config.dimensions;
                let Gates { learning_rate, momentum, decay } = config.gates;
                let first = config.program.is_titans_0_0_17();
                let choices = if first { Choices::default() } else { Choices::from(&config.program) };
                Self {
                    format: if first { 1 } else { FORMAT },
                    nmem: config.nmem.clone(),
                    model: config.program.model.kind,
                    chunk_size: config.program.chunk_size(),
                    dim, heads, dim_head, pre_norm, post_norm, learning_rate, momentum, decay,
                    $($field: choices.$field,)*
                }
            }
        }
    };
}
with_choices!(declare_keys!());

/// Version of a configuration. It is read first, so that a file of another format is reported as such whatever
/// its keys are.
#[derive(Deserialize)]
struct Version {
    format: u32,
    #[serde(default)]
    nmem: String,
}

/// Newest format. Memories that format 1 can describe are written in it, for older versions of nmem.
const FORMAT: u32 = 2;

impl SavedConfig {
    /// Returns the configuration as JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(&Keys::new(self)).expect("numbers and text")
    }
}

/// Reads the configuration of a memory.
pub fn read_config(path: &Path, json: &str) -> Result<SavedConfig> {
    let bad =
        |got: String| Error::file(path, format!("a memory's configuration of format 1 to {FORMAT}"), got);
    if json.len() > MAX_CONFIGURATION {
        return Err(bad(format!("{} bytes", json.len())));
    }
    let Version { format, nmem } = serde_json::from_str(json).map_err(|error| bad(error.to_string()))?;
    if !(1..=FORMAT).contains(&format) {
        return Err(bad(format!("format {format}, written by nmem {nmem:?}")));
    }
    let keys: Keys = serde_json::from_str(json).map_err(|error| bad(error.to_string()))?;
    let Keys { model, chunk_size, dim, heads, dim_head, pre_norm, post_norm, .. } = keys;
    let Keys { learning_rate, momentum, decay, .. } = keys;
    if format == 1 && model != ModelKind::Attention {
        return Err(bad(format!("model {} in format 1, written by nmem {nmem:?}", model.name())));
    }
    if format == 1 && keys.choices() != (Choices { model: Some(model), ..Choices::default() }) {
        return Err(bad("choices of a program in format 1".to_owned()));
    }
    let outside = |key: &str| Error::limit(format!("{}: {key}", path.display()));
    check_chunk_size(chunk_size, model).map_err(outside("chunk_size"))?;
    let program = keys.choices().over(Program::titans_0_0_17(chunk_size)).and_then(|program| {
        program.check(Some(dim_head))?;
        Ok(program)
    });
    let program = program.map_err(|error| match error {
        Error::Limit { name, outside } => {
            Error::Limit { name: format!("{}: {name}", path.display()), outside }
        }
        Error::Rejected { subject, reason } => {
            Error::Rejected { subject: format!("{}: {subject}", path.display()), reason }
        }
        error => error,
    })?;
    let gates = Gates { learning_rate, momentum, decay };
    for (kind, gate) in gates.each() {
        let key = match gate {
            Gate::Fixed(_) => kind.key().to_owned(),
            Gate::Learned(_) => format!("{} bias", kind.key()),
        };
        gate.check(kind).map_err(outside(&key))?;
    }
    let dimensions = Dimensions { dim, heads, dim_head, pre_norm, post_norm };
    Ok(SavedConfig { nmem, program, dimensions, gates })
}
