//! The program from outside: run in a folder of its own, its files read back with the formats' own libraries.

// What a file holds is compared exactly, to the bit where that is promised.
#![allow(clippy::float_cmp)]

mod cluster;
mod config;
mod data;
mod devices;
mod ends;
mod faults;
mod folders;
mod generate;
mod golden;
mod inputs;
mod inspect;
mod limits;
mod parts;
mod plot;
mod rejections;
mod retention;
mod retrieve;
#[path = "../support/sandbox.rs"]
mod sandbox;
mod scan_bench;
mod store;
#[path = "../support/mod.rs"]
mod support;
mod sweep;

use sandbox::{COUNTS, CommandOutput, Raw, Sandbox, Table, shipped, tokens, write_tensors};
