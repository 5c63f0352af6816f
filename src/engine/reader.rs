//! Rows that pass through a memory model with the moving weights, layer by layer. Products come from column panels; the
//! operators between them run here, in groups of rows.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};
use rayon::prelude::*;

use super::cpu::Context;
use super::outcome::Phase;
use crate::memory::graph::{Graph, Node, NodeKind, Value};
use crate::memory::operators::Work;
use crate::packed::Packed;
use crate::real::Real;

/// Matrix that holds the output of a node while rows are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// A matrix of the whole block.
    Block(usize),
    /// A matrix of one group of rows.
    Group(usize),
    /// The rows that are retrieved.
    Output,
}

/// Places of all nodes of a model, and the widths of their matrices.
#[derive(Clone, Debug)]
pub struct Places {
    of_node: Vec<Place>,
    blocks: Vec<usize>,
    groups: Vec<usize>,
}

impl Places {
    /// Assigns places. Outputs that a later layer uses, and all products, are kept for the block. An activation replaces its
    /// input where nothing else uses it.
    pub fn new(graph: &Graph) -> Self {
        let nodes = &graph.nodes;
        let last = graph.output();
        let users = |i: usize| {
            nodes.iter().enumerate().filter(move |(_, node)| node.inputs.contains(&Value::Node(i)))
        };
        let crosses = |i: usize| {
            let later = |node: &Node| node.layer > nodes[i].layer || matches!(node.kind, NodeKind::Linear(_));
            matches!(nodes[i].kind, NodeKind::Linear(_)) || users(i).any(|(_, node)| later(node))
        };
        // The node whose matrix a node shares: its input's, if it may overwrite it.
        let mut shares: Vec<usize> = (0..nodes.len()).collect();
        for (i, node) in nodes.iter().enumerate() {
            let in_place = matches!(node.kind, NodeKind::Operator(op) if op.is_in_place());
            if let (true, Value::Node(j), true) = (in_place, node.inputs[0], i != last)
                && users(j).count() == 1
            {
                shares[i] = shares[j];
            }
        }
        let mut this =
            Self { of_node: vec![Place::Output; nodes.len()], blocks: Vec::new(), groups: Vec::new() };
        for i in (0..nodes.len()).filter(|&i| i != last) {
            if shares[i] != i {
                this.of_node[i] = this.of_node[shares[i]];
            } else if (i..nodes.len()).any(|j| shares[j] == i && crosses(j)) {
                this.of_node[i] = Place::Block(this.blocks.len());
                this.blocks.push(nodes[i].width);
            } else {
                this.of_node[i] = Place::Group(this.groups.len());
                this.groups.push(nodes[i].width);
            }
        }
        this
    }

    /// Returns the columns of all matrices of a block, without the output.
    pub fn block_columns(&self) -> usize {
        self.blocks.iter().sum()
    }

    /// Returns the columns of all matrices of a group.
    pub fn group_columns(&self) -> usize {
        self.groups.iter().sum()
    }

    /// Allocates the matrices of a group.
    pub fn group_matrices<T: Real>(&self, rows: usize) -> Vec<Array2<T>> {
        self.groups.iter().map(|&width| Array2::zeros((rows, width))).collect()
    }
}

/// Matrices of a block of rows that are read.
#[derive(Debug)]
pub struct Reader<T> {
    blocks: Vec<Array2<T>>,
    /// Output rows, if they have no place elsewhere.
    output: Option<Array2<T>>,
}

/// Some rows of a [`Reader`] on their way through the model.
pub struct Passage<'a, T> {
    /// Input rows of the model.
    pub rows: ArrayView2<'a, T>,
    /// Whether a chunk is read after it is stored, rather than just before.
    pub after: bool,
    blocks: Vec<Option<ArrayViewMut2<'a, T>>>,
    output: Option<ArrayViewMut2<'a, T>>,
    one: ArrayView2<'a, T>,
}

impl<T: Real> Reader<T> {
    /// Allocates matrices for up to `rows` rows; `with_output` if the output has no place elsewhere.
    pub fn new(graph: &Graph, places: &Places, rows: usize, with_output: bool) -> Self {
        Self {
            blocks: places.blocks.iter().map(|&width| Array2::zeros((rows, width))).collect(),
            output: with_output.then(|| Array2::zeros((rows, graph.width))),
        }
    }

    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.blocks.iter().chain(&self.output).map(Array2::len).sum()
    }

    /// Returns the output rows.
    pub fn output(&self) -> ArrayView2<'_, T> {
        self.output.as_ref().expect("a reader with output").view()
    }

    /// Starts the passage of the rows of a range. `output` receives the output rows; otherwise they are kept here.
    pub fn passage<'a>(
        &'a mut self,
        rows: ArrayView2<'a, T>,
        range: Range<usize>,
        output: Option<ArrayViewMut2<'a, T>>,
        one: ArrayView2<'a, T>,
    ) -> Passage<'a, T> {
        let cut = |matrix: &'a mut Array2<T>| matrix.slice_mut(s![range.clone(), ..]);
        let own = self.output.as_mut().map(cut);
        let blocks = self.blocks.iter_mut().map(cut).map(Some).collect();
        Passage { rows, after: false, blocks, output: output.or(own), one }
    }
}

impl<'a, T: Real> Passage<'a, T> {
    /// Takes the matrices that receive the products of a layer's linear maps, in order. [`put`](Self::put) returns them.
    pub fn take(&mut self, (graph, places): (&Graph, &Places), layer: usize) -> Vec<ArrayViewMut2<'a, T>> {
        let mut take = |node: usize| match places.of_node[node] {
            Place::Block(block) => self.blocks[block].take(),
            Place::Output => self.output.take(),
            Place::Group(_) => unreachable!("products are kept for a block"),
        };
        graph.linears(layer).map(|(node, ..)| take(node).expect("one product for each matrix")).collect()
    }

    /// Returns the matrices of a layer's products.
    pub fn put(
        &mut self,
        (graph, places): (&Graph, &Places),
        layer: usize,
        products: Vec<ArrayViewMut2<'a, T>>,
    ) {
        for ((node, ..), product) in graph.linears(layer).zip(products) {
            match places.of_node[node] {
                Place::Block(block) => self.blocks[block] = Some(product),
                Place::Output => self.output = Some(product),
                Place::Group(_) => unreachable!("products are kept for a block"),
            }
        }
    }

    /// Returns the rows that a linear map multiplies.
    pub fn input(&self, places: &Places, input: Value) -> ArrayView2<'_, T> {
        match input {
            Value::Rows => self.rows,
            Value::Ones => self.one.broadcast((self.rows.nrows(), 1)).expect("one column"),
            Value::Node(node) => match places.of_node[node] {
                Place::Block(block) => self.blocks[block].as_ref().expect("computed before").view(),
                Place::Group(_) | Place::Output => unreachable!("inputs of linear maps are kept for a block"),
            },
        }
    }

    /// Evaluates the operators after a layer. Groups of rows run in parallel.
    pub fn operate(&mut self, context: &Context<'_, T>, layer: usize) {
        let memory = context.memory;
        if memory.graph.operators(layer).next().is_none() {
            return;
        }
        let group = context.plan.group_rows;
        let mut groups: Vec<_> =
            self.rows.axis_chunks_iter(Axis(0), group).map(|rows| (rows, Vec::new(), None)).collect();
        for block in self.blocks.iter_mut().map(|block| block.as_mut().expect("all matrices are here")) {
            let parts = groups.iter_mut().zip(block.axis_chunks_iter_mut(Axis(0), group));
            parts.for_each(|((_, blocks, _), part)| blocks.push(Some(part)));
        }
        if let Some(output) = &mut self.output {
            let parts = groups.iter_mut().zip(output.axis_chunks_iter_mut(Axis(0), group));
            parts.for_each(|((.., output), part)| *output = Some(part));
        }
        let one = self.one;
        groups.into_par_iter().for_each(|(rows, blocks, output)| {
            context.with_scratch(Phase::Activate, |scratch| {
                let of_group = GroupRows { rows, one, blocks, output, groups: &mut scratch.groups };
                of_group.operate(
                    (&memory.graph, &memory.places),
                    layer,
                    memory.chunk_size(),
                    &mut scratch.works,
                );
            });
        });
    }
}

/// A group of rows on its way through the operators of a layer.
struct GroupRows<'a, T> {
    rows: ArrayView2<'a, T>,
    one: ArrayView2<'a, T>,
    blocks: Vec<Option<ArrayViewMut2<'a, T>>>,
    output: Option<ArrayViewMut2<'a, T>>,
    groups: &'a mut [Array2<T>],
}

impl<T: Real> GroupRows<'_, T> {
    fn operate(
        mut self,
        (graph, places): (&Graph, &Places),
        layer: usize,
        chunk: usize,
        works: &mut [Option<Work<T>>],
    ) {
        let rows = self.rows.nrows();
        for (i, op) in graph.operators(layer) {
            let work = works[i].as_mut().expect("buffers of an operator");
            let place = places.of_node[i];
            let op = op.operator::<T>();
            let inputs = &graph.nodes[i].inputs;
            if matches!(inputs[0], Value::Node(j) if places.of_node[j] == place) {
                let replaced = match place {
                    Place::Block(block) => {
                        op.forward_in_place(self.blocks[block].as_mut().expect("one user at a time"))
                    }
                    Place::Group(group) => {
                        op.forward_in_place(&mut self.groups[group].slice_mut(s![..rows, ..]))
                    }
                    Place::Output => unreachable!("the output shares no matrix"),
                };
                assert!(replaced, "operators that share a matrix work in place");
                continue;
            }
            match place {
                Place::Block(block) => {
                    let mut to = self.blocks[block].take().expect("one user at a time");
                    op.forward(chunk, &self.views(places, inputs), to.view_mut(), work);
                    self.blocks[block] = Some(to);
                }
                Place::Group(group) => {
                    let mut to = std::mem::take(&mut self.groups[group]);
                    op.forward(chunk, &self.views(places, inputs), to.slice_mut(s![..rows, ..]), work);
                    self.groups[group] = to;
                }
                Place::Output => {
                    let mut to = self.output.take().expect("one user at a time");
                    op.forward(chunk, &self.views(places, inputs), to.view_mut(), work);
                    self.output = Some(to);
                }
            }
        }
    }

    fn views(&self, places: &Places, inputs: &[Value]) -> Vec<ArrayView2<'_, T>> {
        let rows = self.rows.nrows();
        let view = |&input: &Value| match input {
            Value::Rows => self.rows,
            Value::Ones => self.one.broadcast((rows, 1)).expect("one column"),
            Value::Node(node) => match places.of_node[node] {
                Place::Block(block) => self.blocks[block].as_ref().expect("computed before").view(),
                Place::Group(group) => self.groups[group].slice(s![..rows, ..]),
                Place::Output => unreachable!("nothing uses the output"),
            },
        };
        inputs.iter().map(view).collect()
    }
}

/// Computes the output rows of whole chunks with the weights of each linear map given.
pub fn evaluate<T: Real>(
    (graph, places): (&Graph, &Places),
    weights: &[Packed<T>],
    rows: ArrayView2<T>,
    chunk: usize,
    (groups, works): (&mut [Array2<T>], &mut [Option<Work<T>>]),
) -> Array2<T> {
    let mut reader = Reader::new(graph, places, rows.nrows(), true);
    let one = Array2::ones((1, 1));
    let mut passage = reader.passage(rows, 0..rows.nrows(), None, one.view());
    for layer in 0..=graph.layers() {
        let mut products = passage.take((graph, places), layer);
        for ((_, input, of), product) in graph.linears(layer).zip(&mut products) {
            let mut start = 0;
            for weight in &weights[of] {
                let columns = start..start + weight.cols();
                start = columns.end;
                weight.multiply(passage.input(places, input), product.slice_mut(s![.., columns]));
            }
        }
        passage.put((graph, places), layer, products);
        let Passage { rows, one, blocks, output, .. } = &mut passage;
        let views = blocks.iter_mut().map(|block| block.as_mut().map(|block| block.view_mut()));
        let of_group = GroupRows {
            rows: *rows,
            one: *one,
            blocks: views.collect(),
            output: output.as_mut().map(|output| output.view_mut()),
            groups: &mut *groups,
        };
        of_group.operate((graph, places), layer, chunk, works);
    }
    reader.output.expect("a reader with output")
}
