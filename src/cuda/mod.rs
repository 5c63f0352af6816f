//! A GPU as the scans and the engine see it: memory by address, kernels by name. `enabled` reaches an NVIDIA GPU through
//! the driver, which is loaded when it is asked for; in a build without the feature `cuda` its twin `disabled` stands there
//! and says so. What runs on a [`Device`] knows of neither, so that tests can run the same kernels on the processor.
//!
//! - `kernels.cu`: every kernel, compiled ahead to `kernels.ptx`;
//! - [`mod@array`]: typed memory of a device;
//! - [`Product`]: matrix products, by kernel or by what a device has of its own;
//! - [`DeviceChoice`]: `--device`, and what was found there.

pub mod array;
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

/// Memory and kernels. Work is done in the order in which it is asked for, but not at once: [`download`](Self::download),
/// [`synchronize`](Self::synchronize) and [`seconds`](Self::seconds) wait for it, a long [`upload`](Self::upload) for the one before.
pub trait Device: Send + Sync {
    /// As the vendor calls it.
    fn name(&self) -> String;
    /// Bytes that can still be had.
    fn free_bytes(&self) -> Result<usize>;
    /// Parts that run blocks of threads side by side.
    fn multiprocessors(&self) -> usize;
    /// Most bytes of shared memory that a block can be given, what its kernel has of its own included.
    fn shared_bytes(&self) -> usize;
    /// Takes memory, holding anything, aligned to 256 bytes.
    fn allocate(&self, bytes: usize) -> Result<u64>;
    /// Gives it back once what was asked for before is done.
    fn free(&self, address: u64);
    /// Sets every byte.
    fn fill(&self, address: u64, byte: u8, bytes: usize) -> Result<()>;
    /// To the device, one part after another. The bytes can be changed as soon as this returns.
    fn upload(&self, address: u64, parts: &[&[u8]]) -> Result<()>;
    /// From the device, once all that was asked for before is done.
    fn download(&self, address: u64, bytes: &mut [u8]) -> Result<()>;
    /// From one place of the device to another, which do not overlap.
    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()>;
    /// Runs a kernel of `kernels.cu`.
    fn launch(&self, kernel: &str, launch: Launch, arguments: &[Argument]) -> Result<()>;
    /// Products of many pairs of matrices. The kernel `product_*`, unless the device has something faster.
    fn multiply(&self, product: &Product) -> Result<()> {
        product.launch(self)
    }
    /// What large products are made by, once there was one, as run.json says it: "kernel", or "cuBLAS 13.1.0".
    fn products(&self) -> String {
        "kernel".to_owned()
    }
    /// What it runs by, as run.json says it: "driver of CUDA 13.0, kernels from PTX 9.0".
    fn software(&self) -> Option<String> {
        None
    }
    /// Waits until all is done.
    fn synchronize(&self) -> Result<()>;
    /// Notes the time when all that was asked for before is done.
    fn mark(&self) -> Result<Mark>;
    /// As [`mark`](Self::mark), in a mark whose moment is not needed any more: nothing has to be made.
    fn mark_anew(&self, mark: &mut Mark) -> Result<()> {
        *mark = self.mark()?;
        Ok(())
    }
    /// Between two marks; waits for the second.
    fn seconds(&self, from: &Mark, to: &Mark) -> Result<f64>;
}

/// A moment of a device's time.
pub struct Mark(pub Box<dyn std::any::Any + Send>);

/// How many threads run a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks, in three dimensions.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared: u32,
}

/// What a kernel is given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Argument {
    /// A pointer.
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

/// The GPUs that there are.
#[derive(Clone, Debug, Default)]
pub struct Listed {
    /// By index.
    pub usable: Vec<Description>,
    /// By index.
    pub unusable: Vec<Unusable>,
}

/// A GPU that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Unusable {
    /// N of `--device cuda:N`.
    pub index: usize,
    /// What is wrong with it.
    pub error: String,
}

/// What there is of a GPU, for people.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Description {
    /// N of `--device cuda:N`.
    pub index: usize,
    /// As the vendor calls it.
    pub name: String,
    /// Version of CUDA that its driver has.
    pub driver: String,
    /// Major and minor.
    pub compute_capability: (u32, u32),
    /// Multiprocessors.
    pub multiprocessors: usize,
    /// Of memory.
    pub bytes: u64,
    /// Of them not in use.
    pub free_bytes: u64,
}

impl Argument {
    /// A number of things, as an `unsigned`.
    pub fn count(n: usize) -> Self {
        Self::U32(u32::try_from(n).expect("sizes of a block of tokens"))
    }

    /// A number of things, as a `long long`.
    pub fn long(n: usize) -> Self {
        Self::I64(i64::try_from(n).expect("sizes of what fits a memory"))
    }

    /// In the element type of a kernel.
    pub fn number<T: Real>(value: f64) -> Self {
        match T::TYPE {
            ElementType::F32 => Self::F32(value as f32),
            ElementType::F64 => Self::F64(value),
        }
    }
}

/// The kernel of that name for an element type.
pub fn kernel(name: &str, dtype: ElementType) -> String {
    format!("{name}_{dtype}")
}
