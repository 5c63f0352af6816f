//! A needle among noise: the same L tokens now and then in tokens that never come again. Nothing but having been there
//! before tells a needle from noise. After the test of long contexts of that name (Kamradt, *Needle in a haystack*, 2023).
//!
//! ```text
//! x_t = √(1 − ν²) y_i + ν ε_t in a needle (i = 0 … L − 1),  ε_t elsewhere;  y_i, ε_t ~ N(0, I)
//! ```
//!
//! The sequence is cut into as many stretches as there are needles, ⌊tokens / needles⌋ each; one starts at a uniformly
//! random token of each stretch from which it fits.

use std::io;

use super::{Label, RandomNumbers, TokenSink, check_length, check_share, fill_items};
use crate::error::Result;

/// What is generated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Needle {
    /// L, tokens of a needle.
    pub length: usize,
    /// How often it is there.
    pub needles: usize,
    /// ν, 0 to 1.
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
