//! The GPU of a build without the feature `cuda`: every use is an error that names the reason.

use super::{Argument, Device, Launch, Listed, Mark};
use crate::error::{Error, Result};

/// A GPU, which does not exist in this build.
#[derive(Debug)]
pub enum Gpu {}

fn absent() -> Error {
    Error::Cuda("this build has no CUDA support; build with `--features cuda`".to_owned())
}

/// Lists the GPUs of this machine.
pub fn list() -> Result<Listed> {
    Err(absent())
}

impl Gpu {
    /// Opens the GPU with this index.
    pub fn open(_index: usize) -> Result<Self> {
        Err(absent())
    }
}

impl Device for Gpu {
    fn name(&self) -> String {
        match *self {}
    }
    fn free_bytes(&self) -> Result<usize> {
        match *self {}
    }
    fn multiprocessors(&self) -> usize {
        match *self {}
    }
    fn shared_bytes(&self) -> usize {
        match *self {}
    }
    fn allocate(&self, _: usize) -> Result<u64> {
        match *self {}
    }
    fn free(&self, _: u64) {
        match *self {}
    }
    fn fill(&self, _: u64, _: u8, _: usize) -> Result<()> {
        match *self {}
    }
    fn upload(&self, _: u64, _: &[&[u8]]) -> Result<()> {
        match *self {}
    }
    fn download(&self, _: u64, _: &mut [u8]) -> Result<()> {
        match *self {}
    }
    fn copy(&self, _: u64, _: u64, _: usize) -> Result<()> {
        match *self {}
    }
    fn launch(&self, _: &str, _: Launch, _: &[Argument]) -> Result<()> {
        match *self {}
    }
    fn synchronize(&self) -> Result<()> {
        match *self {}
    }
    fn mark(&self) -> Result<Mark> {
        match *self {}
    }
    fn seconds(&self, _: &Mark, _: &Mark) -> Result<f64> {
        match *self {}
    }
}
