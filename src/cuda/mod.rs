//! The GPU interface of the scans and the engine: memory by address, kernels by name. `enabled` uses an NVIDIA
//! GPU through its driver, which is loaded on first use. In a build without the feature `cuda` its twin
//! `disabled` replaces it and reports that. Code that runs on a [`Device`] depends on neither, so that tests
//! can run the same kernels on the CPU.
//!
//! - `kernels.cu`: every kernel, compiled ahead to `kernels.ptx`;
//! - [`mod@array`]: typed memory of a device;
//! - [`Product`]: matrix products, by a kernel or by a library of the device;
//! - [`DeviceChoice`]: the values of `--device`, and the devices opened for them.

pub mod array;
#[cfg(any(feature = "cuda", test))]
mod blas_sizes;
mod choice;
mod product;

#[cfg(not(feature = "cuda"))]
mod disabled;
#[cfg(feature = "cuda")]
mod enabled;

#[cfg(not(feature = "cuda"))]
pub use disabled::{Gpu, list};
#[cfg(feature = "cuda")]
pub use enabled::{Gpu, list};

pub use array::Array;
pub use choice::{DeviceChoice, Devices, OpenDevice};
pub(crate) use product::tile_bytes;
pub use product::{Matrix, Product};

use crate::error::Result;
use crate::real::{ElementType, Real};

/// Memory and kernels of a device. Work runs in the order in which it is queued, but not immediately.
/// [`download`](Self::download), [`synchronize`](Self::synchronize) and [`seconds`](Self::seconds) wait for it;
/// a long [`upload`](Self::upload) waits for the one before.
pub trait Device: Send + Sync {
    /// Returns the vendor's name of the device.
    fn name(&self) -> String;
    /// Returns the bytes that can still be allocated.
    fn free_bytes(&self) -> Result<usize>;
    /// Returns the number of multiprocessors, which run blocks of threads side by side.
    fn multiprocessors(&self) -> usize;
    /// Returns the most bytes of shared memory of a block, including the kernel's own variables.
    fn shared_bytes(&self) -> usize;
    /// Allocates memory, aligned to 256 bytes, with arbitrary contents.
    fn allocate(&self, bytes: usize) -> Result<u64>;
    /// Frees memory once the work queued before is done.
    fn free(&self, address: u64);
    /// Sets every byte of a range.
    fn fill(&self, address: u64, byte: u8, bytes: usize) -> Result<()>;
    /// Copies parts to the device, one after another. The source may change as soon as this returns.
    fn upload(&self, address: u64, parts: &[&[u8]]) -> Result<()>;
    /// Copies from the device, once all work queued before is done.
    fn download(&self, address: u64, bytes: &mut [u8]) -> Result<()>;
    /// Copies within the device, between ranges that do not overlap.
    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()>;
    /// Runs a kernel of `kernels.cu`.
    fn launch(&self, kernel: &str, launch: Launch, arguments: &[Argument]) -> Result<()>;
    /// Multiplies many pairs of matrices, with the kernel `product_*` unless the device has something faster.
    fn multiply(&self, product: &Product) -> Result<()> {
        product.launch(self)
    }
    /// Returns the implementation of large products, as in run.json: "kernel", or "cuBLAS 13.1.0". It is known
    /// after the first large product.
    fn products(&self) -> String {
        "kernel".to_owned()
    }
    /// Returns the software of the device, as in run.json: "driver of CUDA 13.0, kernels from PTX 9.0".
    fn software(&self) -> Option<String> {
        None
    }
    /// Waits until all work is done.
    fn synchronize(&self) -> Result<()>;
    /// Marks the time at which all work queued before is done.
    fn mark(&self) -> Result<Mark>;
    /// Records a [`mark`](Self::mark) again in an existing one that is no longer needed, which saves creating a
    /// new one.
    fn mark_anew(&self, mark: &mut Mark) -> Result<()> {
        *mark = self.mark()?;
        Ok(())
    }
    /// Returns the seconds between two marks, and waits for the second.
    fn seconds(&self, from: &Mark, to: &Mark) -> Result<f64>;
}

/// A point in a device's time.
pub struct Mark(pub Box<dyn std::any::Any + Send>);

/// The size of a kernel launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Number of blocks, in three dimensions.
    pub grid: [u32; 3],
    /// Threads per block.
    pub block: u32,
    /// Bytes of dynamic shared memory per block.
    pub shared: u32,
}

/// A kernel argument.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Argument {
    /// A device pointer.
    Address(u64),
    /// An `unsigned`.
    U32(u32),
    /// A `long long`.
    I64(i64),
    /// A `float`.
    F32(f32),
    /// A `double`.
    F64(f64),
}

/// The GPUs of this machine.
#[derive(Clone, Debug, Default)]
pub struct Listed {
    /// Usable GPUs, by index.
    pub usable: Vec<Description>,
    /// Unusable GPUs, by index.
    pub unusable: Vec<Unusable>,
}

/// A GPU that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Unusable {
    /// Index N of `--device cuda:N`.
    pub index: usize,
    /// Reason why it cannot be used.
    pub error: String,
}

/// A description of a GPU, for people.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Description {
    /// Index N of `--device cuda:N`.
    pub index: usize,
    /// Name given by the vendor.
    pub name: String,
    /// Version of CUDA that the driver supports.
    pub driver: String,
    /// Compute capability: major and minor version.
    pub compute_capability: (u32, u32),
    /// Number of multiprocessors.
    pub multiprocessors: usize,
    /// Memory in bytes.
    pub bytes: u64,
    /// Unused memory in bytes.
    pub free_bytes: u64,
}

impl Argument {
    /// Converts a count to an `unsigned` argument.
    pub fn count(n: usize) -> Self {
        Self::U32(u32::try_from(n).expect("sizes of a block of tokens"))
    }

    /// Converts a count to a `long long` argument.
    pub fn long(n: usize) -> Self {
        Self::I64(i64::try_from(n).expect("sizes of what fits a memory"))
    }

    /// Converts a number to an argument of a kernel's element type.
    pub fn number<T: Real>(value: f64) -> Self {
        match T::TYPE {
            ElementType::F32 => Self::F32(value as f32),
            ElementType::F64 => Self::F64(value),
        }
    }
}

/// Returns the name of a kernel for an element type.
pub fn kernel(name: &str, dtype: ElementType) -> String {
    format!("{name}_{dtype}")
}
