//! The program from outside. It runs in a directory of its own, and the formats' own libraries read its files back.
//!
//! Its messages are in snapshots/: command lines, each followed by its exit status and stderr. After a change of wording,
//! `INSTA_UPDATE=always cargo test --test cli --test rejections` or `cargo insta test --review` accepts it, and `git diff`
//! is the review. With CI=true nothing is written, and a difference fails.

// Contents of files are compared exactly, to the bit where that is promised.
#![allow(clippy::float_cmp)]

mod check;
mod cluster;
mod compare;
mod config;
mod data;
mod devices;
mod directories;
mod ends;
mod export;
mod faults;
mod generate;
mod golden;
mod gradients;
mod import;
mod inputs;
mod inspect;
mod limits;
mod parts;
mod plot;
mod probes;
mod recall;
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
mod train;
mod transcript;

use sandbox::{COUNTS, CommandOutput, Raw, Sandbox, Table, shipped, tokens, write_tensors};
use transcript::{Transcript, counts, without_max_bytes, without_numbers, without_runs};
