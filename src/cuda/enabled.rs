//! An NVIDIA GPU, through cudarc.

use super::{Argument, Description, Device, Launch, Mark};
use crate::error::{Error, Result};

/// A GPU.
#[derive(Debug)]
pub struct Gpu {}

/// The GPUs that there are.
pub fn list() -> Result<Vec<Description>> {
    Err(Error::Cuda(String::new()))
}

impl Gpu {
    /// The GPU of that number.
    pub fn open(_index: usize) -> Result<Self> {
        Err(Error::Cuda(String::new()))
    }
}

#[expect(unused_variables, reason = "to be written")]
impl Device for Gpu {
    fn name(&self) -> String {
        todo!()
    }
    fn free_bytes(&self) -> Result<usize> {
        todo!()
    }
    fn multiprocessors(&self) -> usize {
        todo!()
    }
    fn shared_bytes(&self) -> usize {
        todo!()
    }
    fn allocate(&self, bytes: usize) -> Result<u64> {
        todo!()
    }
    fn free(&self, address: u64) {
        todo!()
    }
    fn fill(&self, address: u64, byte: u8, bytes: usize) -> Result<()> {
        todo!()
    }
    fn upload(&self, address: u64, bytes: &[u8]) -> Result<()> {
        todo!()
    }
    fn download(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        todo!()
    }
    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        todo!()
    }
    fn launch(&self, kernel: &str, launch: Launch, arguments: &[Argument]) -> Result<()> {
        todo!()
    }
    fn synchronize(&self) -> Result<()> {
        todo!()
    }
    fn mark(&self) -> Result<Mark> {
        todo!()
    }
    fn seconds(&self, from: &Mark, to: &Mark) -> Result<f64> {
        todo!()
    }
}
