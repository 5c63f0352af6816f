//! A needle in noise: the same L tokens at several places in tokens that never repeat. Only the repetition distinguishes
//! a needle from noise. The name is that of the long-context test (Kamradt, *Needle in a haystack*, 2023).
//!
//! ```text
//! x_t = √(1 − ν²) y_i + ν ε_t in a needle (i = 0 … L − 1),  ε_t elsewhere;  y_i, ε_t ~ N(0, I)
//! ```
//!
//! The sequence is cut into one stretch per needle, of ⌊tokens / needles⌋ tokens each. The needle starts at a uniformly
//! random token of its stretch, among those from which it fits.

use std::io;

use super::{Label, RandomNumbers, TokenSink, check_length, check_share, fill_items};
use crate::error::Result;

/// Parameters of the task.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Needle {
    /// L, tokens per needle.
    pub length: usize,
    /// Number of times that the needle occurs.
    pub needles: usize,
    /// ν, the noise, 0 to 1.
    pub noise: f64,
}

impl Needle {
    pub(super) fn labels(&self, tokens: usize, random: &mut RandomNumbers) -> Result<Vec<Label>> {
        check_length("--needles", self.needles, tokens)?;
        let stretch = tokens / self.needles;
        check_length("--length", self.length, stretch)?;
        check_share("--noise", self.noise)?;
        let mut labels = vec![Label { segment: 0, repeat: false, item: None }; tokens];
        for needle in 0..self.needles {
            let start = needle * stretch + random.below(stretch - self.length + 1);
            for (i, label) in labels[start..start + self.length].iter_mut().enumerate() {
                *label = Label { segment: 1, repeat: needle > 0, item: Some(i) };
            }
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
