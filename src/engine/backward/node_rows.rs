//! Rows of each node of a memory model for one task, in buffers that later tasks use again. Their contents are old numbers
//! until a pass writes them.

use ndarray::{Array2, ArrayView2, ArrayViewMut2};

use crate::memory::graph::{Graph, MAX_INPUTS, Value};
use crate::memory::operators::{Work, buffers};
use crate::real::Real;

/// Returns the first rows of a buffer, without the bounds and strides of a slice: views are made by the ten for each small
/// product, and slicing took a tenth of the time.
fn first_rows<T>(buffer: &Array2<T>, count: usize) -> ArrayView2<'_, T> {
    let width = buffer.ncols();
    let numbers = buffer.as_slice().expect("standard layout");
    ArrayView2::from_shape((count, width), &numbers[..count * width]).expect("count × width numbers")
}

fn first_rows_mut<T>(buffer: &mut Array2<T>, count: usize) -> ArrayViewMut2<'_, T> {
    let width = buffer.ncols();
    let numbers = buffer.as_slice_mut().expect("standard layout");
    ArrayViewMut2::from_shape((count, width), &mut numbers[..count * width]).expect("count × width numbers")
}

/// Outputs of each node and what the operators keep of a pass forward.
#[derive(Debug)]
pub struct Values<T> {
    nodes: Vec<Array2<T>>,
    one: Array2<T>,
    /// Rows in use.
    count: usize,
    pub works: Vec<Option<Work<T>>>,
}

impl<T: Real> Values<T> {
    pub fn new(graph: &Graph, rows: usize, chunk: usize) -> Self {
        Self {
            nodes: graph.nodes.iter().map(|node| Array2::zeros((rows, node.width))).collect(),
            one: Array2::ones((1, 1)),
            count: rows,
            works: buffers(graph, rows, chunk),
        }
    }

    /// Returns the number of rows that there is space for.
    pub fn capacity(&self) -> usize {
        self.nodes[0].nrows()
    }

    /// Returns whether there is space for a number of rows.
    pub fn holds(&self, rows: usize) -> bool {
        self.capacity() >= rows
    }

    /// Starts a pass over `count` rows.
    pub fn start(&mut self, count: usize) {
        debug_assert!(self.holds(count), "buffers for {count} rows");
        self.count = count;
    }

    /// Returns the number of rows in use.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Returns the rows of a value; those of the model's input are `rows`.
    pub fn of<'a>(&'a self, value: Value, rows: ArrayView2<'a, T>) -> ArrayView2<'a, T> {
        match value {
            Value::Rows => rows,
            Value::Ones => self.one.broadcast((self.count, 1)).expect("one column"),
            Value::Node(node) => first_rows(&self.nodes[node], self.count),
        }
    }

    /// Returns the rows of a node's inputs, with those of the model's input after them.
    pub fn inputs<'a>(
        &'a self,
        inputs: &[Value],
        rows: ArrayView2<'a, T>,
    ) -> [ArrayView2<'a, T>; MAX_INPUTS] {
        std::array::from_fn(|i| inputs.get(i).map_or(rows, |&of| self.of(of, rows)))
    }

    /// Returns the output rows of the last node.
    pub fn output(&self) -> ArrayView2<'_, T> {
        first_rows(self.nodes.last().expect("a model has nodes"), self.count)
    }

    /// Takes the buffer of a node's rows, to be [`put`](Self::put) back.
    pub fn take(&mut self, node: usize) -> Array2<T> {
        std::mem::take(&mut self.nodes[node])
    }

    pub fn put(&mut self, node: usize, rows: Array2<T>) {
        self.nodes[node] = rows;
    }

    /// Computes the rows of a node from those before it.
    pub fn compute(
        &mut self,
        node: usize,
        f: impl FnOnce(&Self, ArrayViewMut2<'_, T>, Option<&mut Work<T>>),
    ) {
        let mut output = std::mem::take(&mut self.nodes[node]);
        let mut work = self.works[node].take();
        f(self, first_rows_mut(&mut output, self.count), work.as_mut());
        (self.nodes[node], self.works[node]) = (output, work);
    }
}

/// Cotangents or tangents of each node's output and, after them, of the model's input rows, as far as a pass has come.
#[derive(Debug)]
pub struct NodeRows<T> {
    places: Vec<Array2<T>>,
    reached: Vec<bool>,
    /// Rows in use.
    count: usize,
}

impl<T: Real> NodeRows<T> {
    pub fn new(graph: &Graph, rows: usize) -> Self {
        let widths = graph.nodes.iter().map(|node| node.width).chain([graph.width]);
        let places: Vec<_> = widths.map(|width| Array2::zeros((rows, width))).collect();
        Self { reached: vec![false; places.len()], places, count: rows }
    }

    /// Returns whether there is space for a number of rows.
    pub fn holds(&self, rows: usize) -> bool {
        self.places[0].nrows() >= rows
    }

    /// Starts a pass over `count` rows.
    pub fn start(&mut self, count: usize) {
        debug_assert!(self.holds(count), "buffers for {count} rows");
        self.count = count;
        self.reached.fill(false);
    }

    /// Returns the place of a value's rows.
    fn place(&self, value: Value) -> Option<usize> {
        match value {
            Value::Rows => Some(self.places.len() - 1),
            Value::Ones => None,
            Value::Node(node) => Some(node),
        }
    }

    /// Returns the rows of a value, if it has any.
    pub fn of(&self, value: Value) -> Option<ArrayView2<'_, T>> {
        let place = self.place(value).filter(|&place| self.reached[place])?;
        Some(first_rows(&self.places[place], self.count))
    }

    /// Returns the place of a value's rows, and whether it holds some to add to. From here on it has some.
    pub fn reach(&mut self, value: Value) -> Option<(ArrayViewMut2<'_, T>, bool)> {
        let place = self.place(value)?;
        let keep = std::mem::replace(&mut self.reached[place], true);
        Some((first_rows_mut(&mut self.places[place], self.count), keep))
    }

    /// Gives `f` the rows of a node, if it has any, beside all others.
    pub fn with(&mut self, node: usize, f: impl FnOnce(&mut Self, ArrayView2<'_, T>)) {
        if self.reached[node] {
            let cotangent = std::mem::take(&mut self.places[node]);
            f(self, first_rows(&cotangent, self.count));
            self.places[node] = cotangent;
        }
    }

    /// Gives `f` the rows of an input, if it has any, and those of a later node.
    pub fn with_input(
        &mut self,
        input: Value,
        node: usize,
        f: impl FnOnce(ArrayView2<'_, T>, ArrayViewMut2<'_, T>),
    ) {
        let mut to = std::mem::take(&mut self.places[node]);
        if let Some(of_input) = self.of(input) {
            f(of_input, first_rows_mut(&mut to, self.count));
        }
        self.places[node] = to;
    }

    /// Lets `write` overwrite the rows of a node, if any of its inputs has rows.
    pub fn derive(
        &mut self,
        node: usize,
        inputs: &[Value],
        write: impl FnOnce(&[Option<ArrayView2<'_, T>>], ArrayViewMut2<'_, T>),
    ) {
        let mut to = std::mem::take(&mut self.places[node]);
        let of_inputs: [_; MAX_INPUTS] =
            std::array::from_fn(|i| inputs.get(i).and_then(|&input| self.of(input)));
        let exists = of_inputs.iter().any(Option::is_some);
        if exists {
            write(&of_inputs[..inputs.len()], first_rows_mut(&mut to, self.count));
        }
        self.places[node] = to;
        self.reached[node] = exists;
    }

    /// Lets `write` overwrite a place for each of the values that are `wanted`. A first cotangent is written in place; later
    /// ones are added.
    pub fn receive(
        &mut self,
        values: &[Value],
        wanted: impl Fn(Value) -> bool,
        write: impl FnOnce(&mut [Option<ArrayViewMut2<'_, T>>]),
    ) {
        let count = self.count;
        let mut places: [Option<(usize, Array2<T>)>; MAX_INPUTS] = std::array::from_fn(|i| {
            let value = values.get(i).copied().filter(|&value| wanted(value))?;
            let place = self.place(value)?;
            let array = if self.reached[place] {
                Array2::zeros((count, self.places[place].ncols()))
            } else {
                std::mem::take(&mut self.places[place])
            };
            Some((place, array))
        });
        let mut views = places.each_mut().map(|place| {
            let (_, array) = place.as_mut()?;
            Some(first_rows_mut(array, count))
        });
        write(&mut views[..values.len()]);
        for (place, array) in places.into_iter().flatten() {
            if std::mem::replace(&mut self.reached[place], true) {
                let mut sum = first_rows_mut(&mut self.places[place], count);
                sum += &array;
            } else {
                self.places[place] = array;
            }
        }
    }
}

/// Rows of a pass forward and of the pass back after it.
#[derive(Debug)]
pub struct Passage<T> {
    pub values: Values<T>,
    pub cotangents: NodeRows<T>,
}

/// Rows of a pass over the nodes in order with tangents, and of another one back.
#[derive(Debug)]
pub struct Second<T> {
    /// Tangent of each node that has one.
    pub tangents: NodeRows<T>,
    pub cotangents: NodeRows<T>,
}
