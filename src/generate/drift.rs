//! Topic drift: tokens around a topic that changes every L tokens, at once or over W tokens. These are the abrupt and
//! the incremental drift of Gama et al. (*A survey on concept drift adaptation*, 2014).
//!
//! ```text
//! m_t = ((1 − w) μ_{s−1} + w μ_s) / √((1 − w)² + w²),  w = min(1, (t − s·L + 1) / (W + 1)),  μ_s ~ N(0, I)
//! x_t = √(1 − ν²) m_t + ν ε_t,                          s = ⌊t / L⌋,  ε_t ~ N(0, I)
//! ```
//!
//! The first topic has no transition. ν = 0 gives topics only, ν = 1 noise only.

use std::io;

use super::{Label, RandomNumbers, TokenSink, check_length, check_share};
use crate::error::Result;

/// Parameters of the task.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drift {
    /// L, tokens per topic.
    pub segment: usize,
    /// W, tokens over which a topic replaces the previous one; below L.
    pub transition: usize,
    /// ν, the noise, 0 to 1.
    pub noise: f64,
}

impl Drift {
    pub(super) fn labels(&self, tokens: usize) -> Result<Vec<Label>> {
        check_length("--segment", self.segment, tokens)?;
        if self.transition > 0 {
            check_length("--transition", self.transition, self.segment - 1)?;
        }
        check_share("--noise", self.noise)?;
        let label = |t| Label { segment: t / self.segment, repeat: false, item: None };
        Ok((0..tokens).map(label).collect())
    }

    pub(super) fn fill(
        &self,
        labels: &[Label],
        dim: usize,
        random: &mut RandomNumbers,
        token: TokenSink,
    ) -> io::Result<()> {
        let kept = (1.0 - self.noise * self.noise).sqrt();
        let mut old = Vec::new();
        let mut new = Vec::new();
        let mut numbers = Vec::with_capacity(dim);
        for (t, label) in labels.iter().enumerate() {
            let since = t % self.segment;
            if since == 0 {
                let topic = random.normals(dim);
                old = std::mem::replace(&mut new, topic);
            }
            let w = if label.segment == 0 {
                1.0
            } else {
                ((since + 1) as f64 / (self.transition + 1) as f64).min(1.0)
            };
            let width = ((1.0 - w) * (1.0 - w) + w * w).sqrt();
            numbers.clear();
            for (i, new) in new.iter().enumerate() {
                let old = old.get(i).copied().unwrap_or_default();
                let topic = ((1.0 - w) * old + w * new) / width;
                numbers.push(kept * topic + self.noise * random.normal());
            }
            token(&numbers)?;
        }
        Ok(())
    }
}
