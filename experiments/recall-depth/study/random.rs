//! The generator of Python and PyTorch, MT19937 (Matsumoto and Nishimura, 1998), and what the study draws from it.

const LENGTH: usize = 624;
const MIDDLE: usize = 397;

/// A Mersenne twister.
pub struct Twister {
    state: [u32; LENGTH],
    next: usize,
}

impl Twister {
    /// Starts from a seed, as `torch.Generator().manual_seed(seed)`.
    pub fn new(seed: u32) -> Self {
        let mut state = [seed; LENGTH];
        for i in 1..LENGTH {
            let before = state[i - 1];
            state[i] = 1_812_433_253_u32.wrapping_mul(before ^ (before >> 30)).wrapping_add(i as u32);
        }
        Self { state, next: LENGTH }
    }

    /// Starts from one word, as `random.Random(word)` of Python.
    pub fn of_python(word: u32) -> Self {
        let mut state = Self::new(19_650_218).state;
        let (mut i, wrap) = (1, |state: &mut [u32; LENGTH], i: &mut usize| {
            *i += 1;
            if *i == LENGTH {
                state[0] = state[LENGTH - 1];
                *i = 1;
            }
        });
        let mixed = |state: &[u32; LENGTH], i: usize, factor: u32| {
            state[i] ^ (state[i - 1] ^ (state[i - 1] >> 30)).wrapping_mul(factor)
        };
        // The key has one word, so its index is always zero.
        for _ in 0..LENGTH {
            state[i] = mixed(&state, i, 1_664_525).wrapping_add(word);
            wrap(&mut state, &mut i);
        }
        for _ in 0..LENGTH - 1 {
            state[i] = mixed(&state, i, 1_566_083_941).wrapping_sub(i as u32);
            wrap(&mut state, &mut i);
        }
        state[0] = 1 << 31;
        Self { state, next: LENGTH }
    }

    /// Returns the next 32 bits.
    pub fn word(&mut self) -> u32 {
        if self.next == LENGTH {
            for i in 0..LENGTH {
                let joined = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % LENGTH] & 0x7fff_ffff);
                let odd = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + MIDDLE) % LENGTH] ^ (joined >> 1) ^ odd;
            }
            self.next = 0;
        }
        let mut word = self.state[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    /// Discards some words.
    pub fn skip(&mut self, words: usize) {
        for _ in 0..words {
            self.word();
        }
    }

    /// Returns a uniform number in [0, 1), as `torch.rand` in f32.
    pub fn uniform(&mut self) -> f32 {
        (self.word() & 0x00ff_ffff) as f32 / 16_777_216.0
    }

    /// Returns numbers of N(0, σ²), as `torch.Tensor.normal_` fills arrays of a multiple of 16 in f32.
    pub fn normal(&mut self, number: usize, deviation: f32) -> Vec<f32> {
        let mut values: Vec<f32> = (0..number).map(|_| self.uniform()).collect();
        for block in values.chunks_exact_mut(16) {
            for i in 0..8 {
                let radius = (-2.0 * (1.0 - block[i]).ln()).sqrt() * deviation;
                let angle = 2.0 * std::f32::consts::PI * block[i + 8];
                (block[i], block[i + 8]) = (radius * angle.cos(), radius * angle.sin());
            }
        }
        values
    }

    /// Returns random orders of 0..8.
    pub fn orders(&mut self, number: usize) -> Vec<[u8; 8]> {
        let order = |_| {
            let keys: [f32; 8] = std::array::from_fn(|_| self.uniform());
            let mut order: [u8; 8] = std::array::from_fn(|i| i as u8);
            order.sort_by(|&a, &b| keys[usize::from(a)].total_cmp(&keys[usize::from(b)]));
            order
        };
        (0..number).map(order).collect()
    }

    /// Shuffles rows, as `random.shuffle` of Python.
    pub fn shuffle<T>(&mut self, rows: &mut [T]) {
        for i in (1..rows.len()).rev() {
            let bits = usize::BITS - (i + 1).leading_zeros();
            let j = loop {
                let j = (self.word() >> (32 - bits)) as usize;
                if j <= i {
                    break j;
                }
            };
            rows.swap(i, j);
        }
    }
}
