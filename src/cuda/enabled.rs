//! An NVIDIA GPU, used through its driver, which is loaded on first use. Everything missing or failing is an
//! error of one line; nothing here panics because a machine lacks something. Every call makes the GPU's context
//! current on the calling thread, so that any thread may call.
//!
//! The kernels are the PTX in this build, or with `NMEM_NVRTC=1` their source, compiled for the GPU at hand.
//! Large matrix products use cuBLAS if there is a libcublas; without one, or with `NMEM_CUBLAS=0`, they use a
//! kernel. The same GPU, driver and libraries give the same bits from run to run: there is one stream, one
//! order, and no atomic additions.

mod blas;
mod compiler;
mod context;
mod library;
mod module;

pub use context::list;

use std::collections::HashMap;
use std::ffi::{CString, c_uint, c_void};
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Argument, Device, Launch, Mark, Product};
use crate::error::{Error, Result};
use blas::Blas;
use context::{Context, MULTIPROCESSORS};
use library::Handle;

/// A value of `CUdevice_attribute`.
const SHARED_BYTES_OPT_IN: c_uint = 97;
const HAS_MEMORY_POOLS: c_uint = 115;
/// A value of `CUmemPool_attribute`.
const RELEASE_THRESHOLD: c_uint = 4;
const RESERVED_BYTES: c_uint = 5;
const USED_BYTES: c_uint = 7;
/// A value of `CUfunction_attribute`.
const MAX_DYNAMIC_SHARED: c_uint = 8;
/// `CU_STREAM_NON_BLOCKING`: the stream does not wait for work of others.
const NON_BLOCKING: c_uint = 1;
const OUT_OF_MEMORY: c_uint = 2;
/// `CU_EVENT_DISABLE_TIMING`: the event records no time.
const UNTIMED: c_uint = 2;
/// `CUDA_ERROR_NOT_READY`: the work is still running.
const NOT_READY: c_uint = 600;

/// Shared memory that a kernel may use without an opt-in, in bytes.
const SHARED_BYTES: u32 = 48 << 10;

/// Number of pieces of page-locked memory that uploads pass through; `PIECE` is their size in bytes. The driver
/// would copy ordinary memory too. But on machines whose GPU reads it directly, the copy may not be complete
/// when the call returns. (The sizes are guesses, not measured.)
const PIECES: usize = 4;
const PIECE: usize = 1 << 20;

/// A GPU.
pub struct Gpu {
    context: Arc<Context>,
    name: String,
    software: String,
    multiprocessors: usize,
    shared_bytes: usize,
    stream: Handle,
    /// Memory pool for allocations in stream order; without one, the driver allocates immediately.
    pool: Option<Handle>,
    module: Handle,
    kernels: Mutex<Kernels>,
    staging: Mutex<Staging>,
    products: Mutex<Products>,
}

/// The implementation of large products.
#[derive(Default)]
enum Products {
    /// Unknown before the first large product: loading cuBLAS takes a while.
    #[default]
    Unknown,
    Kernel,
    Blas {
        blas: Blas,
        workspace: u64,
    },
}

/// Kernels by name, looked up once.
#[derive(Default)]
struct Kernels {
    known: HashMap<String, Kernel>,
    /// Name of the last kernel launched, for errors that are reported later.
    last: Arc<str>,
}

struct Kernel {
    name: Arc<str>,
    function: Handle,
    /// Dynamic shared memory that the kernel may use, in bytes.
    shared: u32,
}

/// Page-locked memory that uploads pass through, piece by piece.
#[derive(Default)]
struct Staging {
    pieces: Vec<Piece>,
    next: usize,
}

struct Piece {
    /// Host address.
    address: usize,
    /// Event after the copy from this piece.
    read: CudaEvent,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cuda:{} {}", self.context.index, self.name)
    }
}

impl Gpu {
    /// Opens the GPU with this index.
    pub fn open(index: usize) -> Result<Self> {
        let context = Context::open(index)?;
        let driver = context.enter()?;
        let mut this = Self {
            name: context.name()?,
            software: String::new(),
            multiprocessors: context.attribute(MULTIPROCESSORS)? as usize,
            shared_bytes: context.attribute(SHARED_BYTES_OPT_IN)?.max(SHARED_BYTES) as usize,
            stream: 0,
            pool: pool(&context)?,
            module: 0,
            kernels: Mutex::default(),
            staging: Mutex::default(),
            products: Mutex::default(),
            context: Arc::clone(&context),
        };
        // SAFETY: the pointer is valid for the stream handle.
        let code = unsafe { (driver.cuStreamCreate)(&raw mut this.stream, NON_BLOCKING) };
        context.check(code, || "creating a stream".into())?;
        let kernels;
        (this.module, kernels) = module::load(&context)?;
        this.software = format!("driver of CUDA {}, kernels from {kernels}", context.loaded.version()?);
        Ok(this)
    }

    fn kernel(&self, name: &str, shared: u32) -> Result<Handle> {
        let driver = &self.context.loaded.driver;
        let mut kernels = held(&self.kernels);
        let Kernels { known, last } = &mut *kernels;
        if !known.contains_key(name) {
            let text =
                CString::new(name).map_err(|_| Error::Cuda(format!("no kernel has the name {name:?}")))?;
            let mut function = 0;
            // SAFETY: the pointer is valid for the function, the module is loaded, and the text ends in a zero.
            let code = unsafe { (driver.cuModuleGetFunction)(&raw mut function, self.module, text.as_ptr()) };
            self.context.check(code, || format!("finding kernel {name}"))?;
            known.insert(name.to_owned(), Kernel { name: name.into(), function, shared: 0 });
        }
        let kernel = known.get_mut(name).expect("looked up");
        if shared > kernel.shared {
            // SAFETY: the function belongs to the module.
            let code = unsafe {
                (driver.cuFuncSetAttribute)(kernel.function, MAX_DYNAMIC_SHARED, shared.cast_signed())
            };
            self.context.check(code, || {
                format!("kernel {name} with {shared} of {} bytes of shared memory", self.shared_bytes)
            })?;
            kernel.shared = shared;
        }
        *last = Arc::clone(&kernel.name);
        Ok(kernel.function)
    }

    /// Checks for an error that may be a kernel's, which appears only when something waits for the kernel.
    fn check(&self, code: c_uint, what: &str) -> Result<()> {
        self.context.check(code, || {
            let last = &held(&self.kernels).last;
            if last.is_empty() { what.to_owned() } else { format!("{what} after launching kernel {last}") }
        })
    }

    /// Opens cuBLAS, if it is available.
    fn open_products(&self) -> Result<Products> {
        if std::env::var_os("NMEM_CUBLAS").is_some_and(|value| value == "0") || !Blas::is_present() {
            return Ok(Products::Kernel);
        }
        let workspace = self.allocate(blas::WORKSPACE)?;
        match Blas::open(self.stream, workspace) {
            Ok(blas) => Ok(Products::Blas { blas, workspace }),
            Err(error) => {
                self.free(workspace);
                Err(error)
            }
        }
    }
}

/// Returns the memory pool of a GPU that has one. Freed memory stays in the pool.
fn pool(context: &Context) -> Result<Option<Handle>> {
    if context.attribute(HAS_MEMORY_POOLS)? == 0 {
        return Ok(None);
    }
    let driver = &context.loaded.driver;
    let (mut pool, mut most) = (0, u64::MAX);
    // SAFETY: the pointers are valid for the pool and for a number of the attribute's type.
    unsafe {
        context.check((driver.cuDeviceGetDefaultMemPool)(&raw mut pool, context.device), || {
            "querying the memory pool".into()
        })?;
        context
            .check((driver.cuMemPoolSetAttribute)(pool, RELEASE_THRESHOLD, (&raw mut most).cast()), || {
                "configuring the memory pool".into()
            })?;
    }
    Ok(Some(pool))
}

/// Locks a mutex whose holder may have panicked. The data stays consistent after every step.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A CUDA event: a point in a stream.
struct CudaEvent {
    context: Arc<Context>,
    handle: Handle,
}

impl CudaEvent {
    fn new(context: &Arc<Context>, timed: bool) -> Result<Self> {
        let mut handle = 0;
        // SAFETY: the pointer is valid for the event handle.
        let code =
            unsafe { (context.enter()?.cuEventCreate)(&raw mut handle, if timed { 0 } else { UNTIMED }) };
        context.check(code, || "creating an event".into())?;
        Ok(Self { context: Arc::clone(context), handle })
    }

    fn record(&self, stream: Handle) -> c_uint {
        // SAFETY: event and stream belong to this context.
        unsafe { (self.context.loaded.driver.cuEventRecord)(self.handle, stream) }
    }

    fn wait(&self) -> c_uint {
        // SAFETY: the event belongs to this context.
        unsafe { (self.context.loaded.driver.cuEventSynchronize)(self.handle) }
    }
}

impl Drop for CudaEvent {
    fn drop(&mut self) {
        if let Ok(driver) = self.context.enter() {
            // SAFETY: nothing uses the event any more.
            unsafe { (driver.cuEventDestroy_v2)(self.handle) };
        }
    }
}

impl Staging {
    /// Returns the next piece, allocating it if there are too few.
    fn piece(&mut self, context: &Arc<Context>) -> Result<&Piece> {
        let place = self.next;
        self.next = (place + 1) % PIECES;
        if self.pieces.len() <= place {
            let read = CudaEvent::new(context, false)?;
            let mut address: *mut c_void = std::ptr::null_mut();
            // SAFETY: the pointer is valid for the address.
            let code = unsafe { (context.enter()?.cuMemHostAlloc)(&raw mut address, PIECE, 0) };
            if code == OUT_OF_MEMORY {
                let text = format!(
                    "cannot page-lock {PIECE} bytes of memory for a transfer; raise the limit shown by `ulimit -l`"
                );
                return Err(Error::Cuda(text));
            }
            context.check(code, || "allocating page-locked memory".into())?;
            self.pieces.push(Piece { address: address.addr(), read });
        }
        // After an error, turns may have been skipped.
        let place = place.min(self.pieces.len() - 1);
        Ok(&self.pieces[place])
    }
}

impl Device for Gpu {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn free_bytes(&self) -> Result<usize> {
        let free = self.context.free_bytes()?;
        let Some(pool) = self.pool else { return Ok(free) };
        let ask = |attribute| {
            let mut bytes = 0_u64;
            // SAFETY: the pointer is valid for a number of the attribute's type.
            let code = unsafe {
                (self.context.loaded.driver.cuMemPoolGetAttribute)(pool, attribute, (&raw mut bytes).cast())
            };
            self.context.check(code, || "querying the memory pool's size".into())?;
            Ok::<_, Error>(bytes)
        };
        Ok(free + ask(RESERVED_BYTES)?.saturating_sub(ask(USED_BYTES)?) as usize)
    }

    fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    fn shared_bytes(&self) -> usize {
        self.shared_bytes
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        let driver = self.context.enter()?;
        let mut address = 0;
        // SAFETY: the pointer is valid for the address.
        let code = unsafe {
            match self.pool {
                Some(_) => (driver.cuMemAllocAsync)(&raw mut address, bytes, self.stream),
                None => (driver.cuMemAlloc_v2)(&raw mut address, bytes),
            }
        };
        self.context.check(code, || match self.free_bytes() {
            Ok(free) => format!("{bytes} bytes requested, {free} free"),
            Err(_) => format!("{bytes} bytes requested"),
        })?;
        Ok(address)
    }

    fn free(&self, address: u64) {
        let Ok(driver) = self.context.enter() else { return };
        // SAFETY: the memory was allocated here, and all work that uses it was queued before. Errors are those
        // of earlier work.
        unsafe {
            if self.pool.is_some() {
                (driver.cuMemFreeAsync)(address, self.stream);
            } else {
                (driver.cuStreamSynchronize)(self.stream);
                (driver.cuMemFree_v2)(address);
            }
        }
    }

    fn fill(&self, address: u64, byte: u8, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the bytes lie in an allocation.
        let code = unsafe { (self.context.enter()?.cuMemsetD8Async)(address, byte, bytes, self.stream) };
        self.check(code, "filling memory")
    }

    fn upload(&self, address: u64, parts: &[&[u8]]) -> Result<()> {
        let driver = self.context.enter()?;
        let mut staging = held(&self.staging);
        let mut parts = parts.iter().copied().filter(|part| !part.is_empty());
        let (mut to, mut part) = (address, parts.next());
        while part.is_some() {
            let piece = staging.piece(&self.context)?;
            self.check(piece.read.wait(), "an upload")?;
            let staged = std::ptr::with_exposed_provenance_mut::<u8>(piece.address);
            let mut filled = 0;
            while let Some(rest) = part
                && filled < PIECE
            {
                let (now, later) = rest.split_at(rest.len().min(PIECE - filled));
                // SAFETY: the piece has space for these bytes and belongs to this call while the lock is held;
                // nothing reads it any more.
                unsafe { std::ptr::copy_nonoverlapping(now.as_ptr(), staged.add(filled), now.len()) };
                filled += now.len();
                part = if later.is_empty() { parts.next() } else { Some(later) };
            }
            // SAFETY: the bytes at `to` lie in an allocation, and the piece stays until its event.
            let code =
                unsafe { (driver.cuMemcpyHtoDAsync_v2)(to, staged.cast_const().cast(), filled, self.stream) };
            self.check(code, "an upload")?;
            self.check(piece.read.record(self.stream), "an upload")?;
            to += filled as u64;
        }
        Ok(())
    }

    fn download(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        if !bytes.is_empty() {
            let driver = self.context.enter()?;
            // SAFETY: there is space for the bytes, and nothing else uses it until they arrive.
            let code = unsafe {
                (driver.cuMemcpyDtoHAsync_v2)(bytes.as_mut_ptr().cast(), address, bytes.len(), self.stream)
            };
            // Waits even after an error, because some of the bytes may be in transfer.
            let waited = self.synchronize();
            self.check(code, "a download").and(waited)?;
        }
        Ok(())
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: both ranges lie in allocations.
        let code = unsafe { (self.context.enter()?.cuMemcpyDtoDAsync_v2)(to, from, bytes, self.stream) };
        self.check(code, "a copy")
    }

    fn launch(&self, kernel: &str, launch: Launch, arguments: &[Argument]) -> Result<()> {
        let Launch { grid: [x, y, z], block, shared } = launch;
        if x == 0 || y == 0 || z == 0 {
            return Ok(());
        }
        let driver = self.context.enter()?;
        let function = self.kernel(kernel, shared)?;
        let mut values: Vec<u64> = arguments.iter().map(value).collect();
        let mut places: Vec<*mut c_void> = values.iter_mut().map(|value| (&raw mut *value).cast()).collect();
        // SAFETY: by its contract the arguments are the kernel's, and they are read before this returns.
        let code = unsafe {
            (driver.cuLaunchKernel)(
                function,
                x,
                y,
                z,
                block,
                1,
                1,
                shared,
                self.stream,
                places.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        self.context.check(code, || {
            format!("launching kernel {kernel} ({x} × {y} × {z} blocks of {block} threads, {shared} bytes of shared memory)")
        })
    }

    fn multiply(&self, product: &Product) -> Result<()> {
        // On an H200 host a cuBLAS call took 11 to 21 µs and a launch 4 µs: a short sequence waits for that.
        if product.is_small() {
            return product.launch(self);
        }
        self.context.enter()?;
        let mut products = held(&self.products);
        if matches!(*products, Products::Unknown) {
            *products = self.open_products()?;
        }
        if let Products::Blas { blas, .. } = &*products
            && blas.multiply(product)?
        {
            return Ok(());
        }
        product.launch(self)
    }

    fn products(&self) -> String {
        match &*held(&self.products) {
            // No large product has run yet.
            Products::Unknown | Products::Kernel => "kernel".to_owned(),
            Products::Blas { blas, .. } => format!("cuBLAS {}", blas.version),
        }
    }

    fn software(&self) -> Option<String> {
        Some(self.software.clone())
    }

    fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream belongs to this context.
        let code = unsafe { (self.context.enter()?.cuStreamSynchronize)(self.stream) };
        self.check(code, "waiting for the GPU")
    }

    fn mark(&self) -> Result<Mark> {
        let event = CudaEvent::new(&self.context, true)?;
        self.check(event.record(self.stream), "timing the GPU's work")?;
        Ok(Mark(Box::new(event)))
    }

    fn mark_anew(&self, mark: &mut Mark) -> Result<()> {
        self.context.enter()?;
        self.check(event(mark)?.record(self.stream), "timing the GPU's work")
    }

    fn seconds(&self, from: &Mark, to: &Mark) -> Result<f64> {
        let (from, to) = (event(from)?, event(to)?);
        let driver = self.context.enter()?;
        let mut milliseconds = 0.0;
        // SAFETY: the pointer is valid for the number, and both events are recorded.
        let mut ask =
            || unsafe { (driver.cuEventElapsedTime)(&raw mut milliseconds, from.handle, to.handle) };
        let mut code = ask();
        if code == NOT_READY {
            self.check(to.wait(), "waiting for the GPU")?;
            code = ask();
        }
        self.check(code, "timing the GPU's work")?;
        Ok(f64::from(milliseconds) * 1e-3)
    }
}

fn event(mark: &Mark) -> Result<&CudaEvent> {
    mark.0.downcast_ref().ok_or_else(|| Error::Cuda("the mark belongs to another device".to_owned()))
}

/// Returns an argument as eight bytes, of which a kernel reads the first four or all.
fn value(argument: &Argument) -> u64 {
    let four = |[a, b, c, d]: [u8; 4]| u64::from_ne_bytes([a, b, c, d, 0, 0, 0, 0]);
    match *argument {
        Argument::Address(address) => address,
        Argument::U32(number) => four(number.to_ne_bytes()),
        Argument::I64(number) => number.cast_unsigned(),
        Argument::F32(number) => four(number.to_ne_bytes()),
        Argument::F64(number) => number.to_bits(),
    }
}

impl Drop for Gpu {
    /// Frees everything in the reverse order of creation, after the last work; `context` goes last. Errors are
    /// those of earlier work, and nobody can receive them here.
    fn drop(&mut self) {
        let _ = self.synchronize();
        if let Products::Blas { blas, workspace } = std::mem::take(&mut *held(&self.products)) {
            drop(blas);
            self.free(workspace);
        }
        let Ok(driver) = self.context.enter() else { return };
        let pieces = std::mem::take(&mut held(&self.staging).pieces);
        for piece in &pieces {
            // SAFETY: the memory was allocated here, and nothing reads it any more.
            unsafe { (driver.cuMemFreeHost)(std::ptr::with_exposed_provenance_mut(piece.address)) };
        }
        // SAFETY: both handles are owned here, and nothing runs any more. CUDA rejects 0, the handle of a
        // partly opened GPU.
        unsafe {
            if self.module != 0 {
                (driver.cuModuleUnload)(self.module);
            }
            if self.stream != 0 {
                (driver.cuStreamDestroy_v2)(self.stream);
            }
        }
    }
}
