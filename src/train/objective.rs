//! The loss of what is read, and its gradient.
//!
//! With r what is read, the answer is y = W r + b, or the last columns of r without an output head. Over n tokens that have a
//! target t of w columns:
//!
//! ```text
//! mean square     Σ (y − t)² ÷ n w
//! cross-entropy   −Σ log softmax(C y)_right ÷ n, C the candidates as rows, right the one nearest to t
//! ```

use ndarray::{Array1, Array2, ArrayView2, Axis, s};

use super::examples::Example;
use crate::config::OuterLoss;
use crate::matmul::matmul;
use crate::real::Real;

/// A linear layer from what is read to the answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Head<T> {
    /// Weight (columns, D).
    pub weight: Array2<T>,
    /// Bias (columns).
    pub bias: Array1<T>,
}

/// The goal of reads: a loss of their answers.
#[derive(Clone, Debug)]
pub struct Goal<T> {
    /// Loss of an answer.
    pub loss: OuterLoss,
    /// First tokens that have no loss.
    pub skip: usize,
    /// Number of times that each query is presented. Its first row is the answer.
    pub times: usize,
    /// Rows that an answer can be, for cross-entropy.
    pub candidates: Option<Array2<T>>,
}

impl<T: Real> Goal<T> {
    /// Returns the number of tokens of an example that have a loss.
    pub fn tokens(&self, example: &Example<T>) -> usize {
        let read = example.read.nrows() / self.times;
        example.target.nrows().min(read).saturating_sub(self.skip)
    }

    /// Returns the loss of what was read (rows, D). Without tokens it is NaN.
    pub fn loss(&self, head: Option<&Head<T>>, read: ArrayView2<T>, example: &Example<T>) -> f64 {
        self.of_answers(Self::answers(head, &self.rows(read, example), example).view(), example).0
    }

    /// Returns the loss of answers that are all zeros.
    pub fn loss_of_zeros(&self, example: &Example<T>) -> f64 {
        let zeros = Array2::zeros((self.tokens(example), example.target.ncols()));
        self.of_answers(zeros.view(), example).0
    }

    /// Returns the loss of what was read, its cotangent times `share`, and the gradient of the head.
    pub fn gradient(
        &self,
        head: Option<&Head<T>>,
        read: ArrayView2<T>,
        example: &Example<T>,
        share: f64,
    ) -> (f64, Array2<T>, Option<Head<T>>) {
        let rows = self.rows(read, example);
        let (loss, mut d_answers) = self.of_answers(Self::answers(head, &rows, example).view(), example);
        d_answers *= T::from_f64(share);
        let mut cotangent = Array2::zeros(read.dim());
        let first = self.skip * self.times;
        let end = first + rows.nrows() * self.times;
        let mut places = cotangent.slice_mut(s![first..end; self.times, ..]);
        let Some(head) = head else {
            let start = read.ncols() - d_answers.ncols();
            places.slice_mut(s![.., start..]).assign(&d_answers);
            return (loss, cotangent, None);
        };
        let mut d_rows = Array2::zeros(rows.dim());
        matmul(d_rows.view_mut(), d_answers.view(), head.weight.view());
        places.assign(&d_rows);
        let mut weight = Array2::zeros(head.weight.dim());
        matmul(weight.view_mut(), d_answers.t(), rows.view());
        let bias = d_answers.sum_axis(Axis(0));
        (loss, cotangent, Some(Head { weight, bias }))
    }

    /// Returns the rows that were read for the tokens that have a loss.
    fn rows(&self, read: ArrayView2<T>, example: &Example<T>) -> Array2<T> {
        let first = self.skip * self.times;
        let end = first + self.tokens(example) * self.times;
        read.slice(s![first.min(end)..end; self.times, ..]).as_standard_layout().into_owned()
    }

    fn answers(head: Option<&Head<T>>, rows: &Array2<T>, example: &Example<T>) -> Array2<T> {
        let width = example.target.ncols();
        let Some(head) = head else { return rows.slice(s![.., rows.ncols() - width..]).to_owned() };
        let mut answers = Array2::zeros((rows.nrows(), width));
        matmul(answers.view_mut(), rows.view(), head.weight.t());
        answers += &head.bias;
        answers
    }

    /// Returns the loss of answers and its gradient.
    fn of_answers(&self, answers: ArrayView2<T>, example: &Example<T>) -> (f64, Array2<T>) {
        let target = example.target.slice(s![self.skip..self.skip + answers.nrows(), ..]);
        match self.loss {
            OuterLoss::MeanSquare => {
                let difference = &answers - &target;
                let count = difference.len() as f64;
                let sum: f64 = difference.iter().map(|&x| Real::to_f64(x).powi(2)).sum();
                (sum / count, difference * T::from_f64(2.0 / count))
            }
            OuterLoss::CrossEntropy => self.cross_entropy(answers, target),
        }
    }

    fn cross_entropy(&self, answers: ArrayView2<T>, target: ArrayView2<T>) -> (f64, Array2<T>) {
        let candidates = self.candidates.as_ref().expect("checked with the settings");
        let product = |rows: ArrayView2<T>| {
            let mut all = Array2::zeros((rows.nrows(), candidates.nrows()));
            matmul(all.view_mut(), rows, candidates.t());
            all
        };
        let half_squares: Vec<f64> =
            candidates.rows().into_iter().map(|row| Real::to_f64(row.dot(&row)) / 2.0).collect();
        let nearness = product(target.as_standard_layout().view());
        let mut logits = product(answers);
        let share = 1.0 / answers.nrows() as f64;
        let mut loss = 0.0;
        for (mut row, nearness) in logits.rows_mut().into_iter().zip(nearness.rows()) {
            // The candidate c with the smallest |t − c|² has the largest ⟨t, c⟩ − |c|²/2.
            let near = |c: &usize| Real::to_f64(nearness[*c]) - half_squares[*c];
            let right = (0..row.len()).max_by(|a, b| near(a).total_cmp(&near(b))).expect("candidates");
            let largest = row.iter().fold(f64::NEG_INFINITY, |most, &x| most.max(Real::to_f64(x)));
            let exps: Vec<f64> = row.iter().map(|&x| (Real::to_f64(x) - largest).exp()).collect();
            let sum: f64 = exps.iter().sum();
            loss -= Real::to_f64(row[right]) - largest - sum.ln();
            for (c, (x, e)) in row.iter_mut().zip(&exps).enumerate() {
                let one = if c == right { 1.0 } else { 0.0 };
                *x = T::from_f64((e / sum - one) * share);
            }
        }
        let mut gradient = Array2::zeros(answers.dim());
        matmul(gradient.view_mut(), logits.view(), candidates.view());
        (loss * share, gradient)
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Losses whose gradients are known: of what is read, and of the head.
    #[test]
    fn gradients_agree_with_central_differences() {
        let mut random = ChaCha8Rng::seed_from_u64(3);
        let mut matrix =
            |rows, columns| Array2::from_shape_simple_fn((rows, columns), || random.random::<f64>() - 0.5);
        for (loss, times, has_head) in [
            (OuterLoss::MeanSquare, 1, true),
            (OuterLoss::MeanSquare, 3, false),
            (OuterLoss::CrossEntropy, 1, true),
            (OuterLoss::CrossEntropy, 2, false),
        ] {
            let candidates = matrix(5, 3);
            // Targets near candidates.
            let target = Array2::from_shape_fn((6, 3), |(i, j)| candidates[[i % 4, j]] + 1e-3);
            let goal = Goal { loss, skip: 2, times, candidates: Some(candidates) };
            let read = matrix(7 * times, 4);
            let example = Example { read: read.clone(), store: None, target };
            let head = has_head.then(|| Head { weight: matrix(3, 4), bias: matrix(1, 3).row(0).to_owned() });
            let (value, cotangent, of_head) = goal.gradient(head.as_ref(), read.view(), &example, 0.5);
            assert!((value - goal.loss(head.as_ref(), read.view(), &example)).abs() < 1e-15);
            assert_eq!(goal.tokens(&example), 4);
            let step = 1e-6;
            let difference =
                |change: &dyn Fn(f64) -> f64| 0.5 * (change(step) - change(-step)) / (2.0 * step);
            for (place, &got) in cotangent.indexed_iter() {
                let expected = difference(&|by| {
                    let mut read = read.clone();
                    read[place] += by;
                    goal.loss(head.as_ref(), read.view(), &example)
                });
                assert!((got - expected).abs() < 1e-9, "{loss:?} {place:?}: {got} for {expected}");
            }
            let Some((head, of_head)) = head.zip(of_head) else { continue };
            for (place, &got) in of_head.weight.indexed_iter() {
                let expected = difference(&|by| {
                    let mut head = head.clone();
                    head.weight[place] += by;
                    goal.loss(Some(&head), read.view(), &example)
                });
                assert!((got - expected).abs() < 1e-9, "{loss:?} weight {place:?}: {got} for {expected}");
            }
            for (place, &got) in of_head.bias.indexed_iter() {
                let expected = difference(&|by| {
                    let mut head = head.clone();
                    head.bias[place] += by;
                    goal.loss(Some(&head), read.view(), &example)
                });
                assert!((got - expected).abs() < 1e-9, "{loss:?} bias {place}: {got} for {expected}");
            }
        }
    }

    #[test]
    fn losses_have_their_definitions() {
        let target = ndarray::array![[1.0, 0.0], [0.0, 2.0]];
        let read = ndarray::array![[9.0, 1.5, 0.0], [9.0, 0.0, 1.0]];
        let example = Example { read: read.clone(), store: None, target: target.clone() };
        let square = Goal { loss: OuterLoss::MeanSquare, skip: 0, times: 1, candidates: None };
        assert!((square.loss(None, read.view(), &example) - 1.25 / 4.0).abs() < 1e-15);
        assert!((square.loss_of_zeros(&example) - 5.0 / 4.0).abs() < 1e-15);
        let entropy = Goal { loss: OuterLoss::CrossEntropy, candidates: Some(target), ..square };
        // Products with the candidates: (1.5, 0) and (0, 2).
        let expected: f64 = f64::midpoint((1.0 + (-1.5_f64).exp()).ln(), (1.0 + (-2.0_f64).exp()).ln());
        assert!((entropy.loss(None, read.view(), &example) - expected).abs() < 1e-15);
        assert!((entropy.loss_of_zeros(&example) - 2.0_f64.ln()).abs() < 1e-15);
    }
}
