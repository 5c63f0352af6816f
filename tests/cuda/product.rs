//! Products against plain loops in f64: all transposes, several pairs, and gaps between rows and matrices.

use ndarray::Array1;
use nmem::cuda::{Array, Matrix, Product};
use nmem::real::Real;

use crate::device::devices;
use crate::support::{assert_close, uniform};

/// Rows, cols and depth: one, around a tile of 64, thin ones, several tiles, multiples of four and not.
const SIZES: [[usize; 3]; 9] = [
    [1, 1, 1],
    [64, 64, 16],
    [65, 63, 17],
    [1, 130, 33],
    [130, 1, 15],
    [16, 64, 64],
    [3, 5, 0],
    [150, 70, 130],
    [132, 68, 200],
];

/// A matrix of each pair in the test's layout: rows × cols as stored in memory.
#[derive(Clone, Copy)]
struct MatrixLayout {
    rows: usize,
    row: usize,
    stride: usize,
}

impl MatrixLayout {
    fn new(rows: usize, cols: usize, gap: usize, shared: bool) -> Self {
        let row = cols + gap;
        Self { rows, row, stride: if shared { 0 } else { rows * row + gap } }
    }

    fn elements(self, batch: usize) -> usize {
        self.stride * batch + self.rows * self.row
    }

    fn matrix<T: Real>(self, array: &Array<T>, transposed: bool) -> Matrix {
        Matrix { address: array.address(0), row: self.row, stride: self.stride, transposed }
    }
}

fn check<T: Real>(
    size: [usize; 3],
    batch: usize,
    gap: usize,
    shared: bool,
    transposed: [bool; 2],
    scale: f64,
) {
    let [rows, cols, depth] = size;
    let turned = |transposed, (rows, cols)| if transposed { (cols, rows) } else { (rows, cols) };
    let [a_dim, b_dim] = [turned(transposed[0], (rows, depth)), turned(transposed[1], (depth, cols))];
    let a = MatrixLayout::new(a_dim.0, a_dim.1, gap, false);
    let b = MatrixLayout::new(b_dim.0, b_dim.1, gap, shared);
    let c = MatrixLayout::new(rows, cols, gap, false);
    let random = |layout: MatrixLayout, seed| -> Vec<T> {
        uniform((1, 1, layout.elements(batch)), 1.0, seed).iter().map(|&x| T::from_f64(x)).collect()
    };
    let numbers = [random(a, 1), random(b, 2)];
    let at = |numbers: &[T], layout: MatrixLayout, pair: usize, (i, j): (usize, usize), transposed: bool| {
        let (i, j) = if transposed { (j, i) } else { (i, j) };
        numbers[pair * layout.stride + i * layout.row + j].to_f64()
    };
    let places: Vec<_> = (0..batch)
        .flat_map(|pair| (0..rows).flat_map(move |i| (0..cols).map(move |j| (pair, i, j))))
        .collect();
    let expected: Array1<f64> = places
        .iter()
        .map(|&(pair, i, j)| {
            let terms = (0..depth).map(|k| {
                at(&numbers[0], a, pair, (i, k), transposed[0])
                    * at(&numbers[1], b, pair, (k, j), transposed[1])
            });
            scale * terms.sum::<f64>()
        })
        .collect();
    // Every term is at most 1, and every sum rounds once.
    let bound = 2.0 * T::EPS.to_f64() * (depth * depth) as f64 * scale.abs();
    let mut on_cpu: Option<Vec<T>> = None;
    for (name, device) in devices() {
        let device = device.as_ref();
        let what = format!(
            "{}, {size:?} × {batch}, gap {gap}, shared: {shared}, transposed: {transposed:?}, {}",
            name,
            T::TYPE
        );
        let there = [0, 1].map(|i| Array::from_slice(device, &numbers[i]).unwrap());
        let mut out = Array::<T>::new(device, c.elements(batch)).unwrap();
        out.poison().unwrap();
        let product = Product {
            dtype: T::TYPE,
            batch,
            size,
            scale,
            a: a.matrix(&there[0], transposed[0]),
            b: b.matrix(&there[1], transposed[1]),
            c: c.matrix(&out, false),
        };
        device.multiply(&product).unwrap();
        let all = out.to_vec().unwrap();
        let place = |&(pair, i, j): &(usize, usize, usize)| pair * c.stride + i * c.row + j;
        let got: Vec<T> = places.iter().map(|of| all[place(of)]).collect();
        let wide: Array1<f64> = got.iter().map(|&x| x.to_f64()).collect();
        assert_close(&what, wide.view().into_dyn(), expected.view().into_dyn(), bound, 0.0);
        let written = all.iter().filter(|x| !x.is_nan()).count();
        assert_eq!(written, places.len(), "{what}: gaps are not written");
        if name.starts_with("CPU") {
            let same = on_cpu.get_or_insert_with(|| got.clone()) == &got;
            assert!(same, "{what}: the order of threads changes bits");
        }
    }
}

fn all<T: Real>() {
    for size in SIZES {
        for transposed in [[false, false], [false, true], [true, false], [true, true]] {
            check::<T>(size, 1, 0, false, transposed, 1.0);
            check::<T>(size, 3, 5, false, transposed, -0.5);
            check::<T>(size, 2, 3, true, transposed, 2.0);
        }
    }
}

#[test]
pub fn products_in_f32() {
    all::<f32>();
}

#[test]
pub fn products_in_f64() {
    all::<f64>();
}

#[test]
fn no_pairs_rows_or_columns() {
    for (size, batch) in [([3, 4, 5], 0), ([0, 4, 5], 2), ([3, 0, 5], 2)] {
        check::<f32>(size, batch, 0, false, [false, false], 1.0);
    }
}

/// More pairs than the depth of a grid.
#[test]
fn many_pairs() {
    check::<f32>([2, 1, 3], 65_600, 0, false, [false, true], 1.0);
}
