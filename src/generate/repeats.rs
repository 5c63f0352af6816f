//! Repeated passages: random tokens in passages of L, some of which repeat. The task measures a memory's gain on text
//! that it has seen. Repeated random tokens are used to find induction heads (Olsson et al., *In-context learning and
//! induction heads*, 2022).
//!
//! ```text
//! x_t = √(1 − ν²) y_i + ν ε_t,  y_i ~ N(0, I),  i = the token of a passage where it was new
//! ```
//!
//! Each passage after the first repeats an earlier new passage with probability `share`; otherwise it is new. The last
//! one may be cut short.

use std::io;

use super::{Label, RandomNumbers, TokenSink, check_length, check_share, fill_items};
use crate::error::Result;

/// Parameters of the task.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Repeats {
    /// L, tokens per passage.
    pub segment: usize,
    /// Probability that a passage repeats an earlier one, 0 to 1.
    pub share: f64,
    /// ν, the noise, 0 to 1.
    pub noise: f64,
}

impl Repeats {
    pub(super) fn labels(&self, tokens: usize, random: &mut RandomNumbers) -> Result<Vec<Label>> {
        check_length("--segment", self.segment, tokens)?;
        check_share("--share", self.share)?;
        check_share("--noise", self.noise)?;
        let mut labels = Vec::with_capacity(tokens);
        let mut new = 0;
        while labels.len() < tokens {
            let repeat = new > 0 && random.uniform() < self.share;
            let passage = if repeat { random.below(new) } else { new };
            new += usize::from(!repeat);
            let items = passage * self.segment..(passage + 1) * self.segment;
            let label = |item| Label { segment: passage, repeat, item: Some(item) };
            labels.extend(items.map(label).take(tokens - labels.len()));
        }
        Ok(labels)
    }

    pub(super) fn fill(
        &self,
        labels: &[Label],
        dim: usize,
        random: &mut RandomNumbers,
        token: TokenSink,
    ) -> io::Result<()> {
        fill_items(labels, dim, self.noise, random, token)
    }
}
