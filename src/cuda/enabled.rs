//! An NVIDIA GPU, through its driver, which is loaded when it is asked for. Whatever is missing or fails is an error of one
//! line; nothing here panics for what a machine lacks. Every call makes the GPU's context the calling thread's, so that any
//! thread may call.
//!
//! The kernels are the PTX in this build, or with `NMEM_NVRTC=1` their source, compiled for the GPU at hand. Large products of
//! matrices are cuBLAS's where there is a libcublas, and a kernel's where there is none or `NMEM_CUBLAS=0`. The same GPU,
//! driver and libraries give the same bits from run to run: one stream, one order, no atomic additions.

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

/// Of `CUdevice_attribute`.
const SHARED_BYTES_OPT_IN: c_uint = 97;
const HAS_MEMORY_POOLS: c_uint = 115;
/// Of `CUmemPool_attribute`.
const RELEASE_THRESHOLD: c_uint = 4;
const RESERVED_BYTES: c_uint = 5;
const USED_BYTES: c_uint = 7;
/// Of `CUfunction_attribute`.
const MAX_DYNAMIC_SHARED: c_uint = 8;
/// `CU_STREAM_NON_BLOCKING`: does not wait for others' work.
const NON_BLOCKING: c_uint = 1;
const OUT_OF_MEMORY: c_uint = 2;
/// `CU_EVENT_DISABLE_TIMING`
const UNTIMED: c_uint = 2;
/// What is asked about is still under way.
const NOT_READY: c_uint = 600;

/// Shared memory that a kernel may have without being asked for more.
const SHARED_BYTES: u32 = 48 << 10;

/// Uploads pass through page-locked memory, so many pieces of so many bytes: the driver would copy ordinary memory too, but on
/// machines whose GPU reads that directly it need not have done so when it returns. (Sizes on a hunch, not measured.)
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
    /// Where memory comes from in the order of the stream; without, from the driver at once.
    pool: Option<Handle>,
    module: Handle,
    kernels: Mutex<Kernels>,
    staging: Mutex<Staging>,
    products: Mutex<Products>,
}

/// What products are made by.
#[derive(Default)]
enum Products {
    /// Not known before the first: loading cuBLAS takes a while.
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
    /// The one launched last, for errors that come later.
    last: Arc<str>,
}

struct Kernel {
    name: Arc<str>,
    function: Handle,
    /// Dynamic shared memory that it was asked for.
    shared: u32,
}

/// Page-locked memory that uploads pass through, piece by piece.
#[derive(Default)]
struct Staging {
    pieces: Vec<Piece>,
    next: usize,
}

struct Piece {
    /// An address on this side.
    address: usize,
    /// When it has been read.
    read: CudaEvent,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cuda:{} {}", self.context.index, self.name)
    }
}

impl Gpu {
    /// The GPU of that number.
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
        // SAFETY: a place for the stream.
        let code = unsafe { (driver.cuStreamCreate)(&raw mut this.stream, NON_BLOCKING) };
        context.check(code, || "making a stream".into())?;
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
                CString::new(name).map_err(|_| Error::Cuda(format!("no kernel is called {name:?}")))?;
            let mut function = 0;
            // SAFETY: a place for the function, a module that is loaded, a text that ends in a zero.
            let code = unsafe { (driver.cuModuleGetFunction)(&raw mut function, self.module, text.as_ptr()) };
            self.context.check(code, || format!("finding kernel {name}"))?;
            known.insert(name.to_owned(), Kernel { name: name.into(), function, shared: 0 });
        }
        let kernel = known.get_mut(name).expect("looked up");
        if shared > kernel.shared {
            // SAFETY: the function is the module's.
            let code = unsafe {
                (driver.cuFuncSetAttribute)(kernel.function, MAX_DYNAMIC_SHARED, shared.cast_signed())
            };
            self.context.check(code, || {
                format!(
                    "kernel {name} with {shared} bytes of shared memory, of {} that there are,",
                    self.shared_bytes
                )
            })?;
            kernel.shared = shared;
        }
        *last = Arc::clone(&kernel.name);
        Ok(kernel.function)
    }

    /// An error that may be a kernel's, which shows only when something waits for it.
    fn check(&self, code: c_uint, what: &str) -> Result<()> {
        self.context.check(code, || {
            let last = &held(&self.kernels).last;
            if last.is_empty() { what.to_owned() } else { format!("{what}, after launching kernel {last},") }
        })
    }

    /// cuBLAS, where it is to be had.
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

/// The memory pool of a GPU that has one. What is given back to it stays with it.
fn pool(context: &Context) -> Result<Option<Handle>> {
    if context.attribute(HAS_MEMORY_POOLS)? == 0 {
        return Ok(None);
    }
    let driver = &context.loaded.driver;
    let (mut pool, mut most) = (0, u64::MAX);
    // SAFETY: a place for the pool, and a number of the type that the attribute has.
    unsafe {
        context.check((driver.cuDeviceGetDefaultMemPool)(&raw mut pool, context.device), || {
            "asking for a pool of memory".into()
        })?;
        context
            .check((driver.cuMemPoolSetAttribute)(pool, RELEASE_THRESHOLD, (&raw mut most).cast()), || {
                "setting up a pool of memory".into()
            })?;
    }
    Ok(Some(pool))
}

/// A lock whose holder may have panicked: what it guards is whole after every step.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A moment in a stream.
struct CudaEvent {
    context: Arc<Context>,
    handle: Handle,
}

impl CudaEvent {
    fn new(context: &Arc<Context>, timed: bool) -> Result<Self> {
        let mut handle = 0;
        // SAFETY: a place for the event.
        let code =
            unsafe { (context.enter()?.cuEventCreate)(&raw mut handle, if timed { 0 } else { UNTIMED }) };
        context.check(code, || "making an event".into())?;
        Ok(Self { context: Arc::clone(context), handle })
    }

    fn record(&self, stream: Handle) -> c_uint {
        // SAFETY: both are the context's.
        unsafe { (self.context.loaded.driver.cuEventRecord)(self.handle, stream) }
    }

    fn wait(&self) -> c_uint {
        // SAFETY: it is the context's.
        unsafe { (self.context.loaded.driver.cuEventSynchronize)(self.handle) }
    }
}

impl Drop for CudaEvent {
    fn drop(&mut self) {
        if let Ok(driver) = self.context.enter() {
            // SAFETY: nobody has it any more.
            unsafe { (driver.cuEventDestroy_v2)(self.handle) };
        }
    }
}

impl Staging {
    /// The piece whose turn it is; made where there are too few.
    fn piece(&mut self, context: &Arc<Context>) -> Result<&Piece> {
        let place = self.next;
        self.next = (place + 1) % PIECES;
        if self.pieces.len() <= place {
            let read = CudaEvent::new(context, false)?;
            let mut address: *mut c_void = std::ptr::null_mut();
            // SAFETY: a place for the pointer.
            let code = unsafe { (context.enter()?.cuMemHostAlloc)(&raw mut address, PIECE, 0) };
            if code == OUT_OF_MEMORY {
                let text = format!(
                    "no {PIECE} bytes of this machine's memory can be page-locked for a transfer: see `ulimit -l`"
                );
                return Err(Error::Cuda(text));
            }
            context.check(code, || "taking page-locked memory".into())?;
            self.pieces.push(Piece { address: address.addr(), read });
        }
        // After an error turns may have been skipped.
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
            // SAFETY: a place for a number of the type that the attribute has.
            let code = unsafe {
                (self.context.loaded.driver.cuMemPoolGetAttribute)(pool, attribute, (&raw mut bytes).cast())
            };
            self.context.check(code, || "asking for the pool's memory".into())?;
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
        // SAFETY: a place for the address.
        let code = unsafe {
            match self.pool {
                Some(_) => (driver.cuMemAllocAsync)(&raw mut address, bytes, self.stream),
                None => (driver.cuMemAlloc_v2)(&raw mut address, bytes),
            }
        };
        self.context.check(code, || match self.free_bytes() {
            Ok(free) => format!("{bytes} bytes asked for, {free} free"),
            Err(_) => format!("{bytes} bytes asked for"),
        })?;
        Ok(address)
    }

    fn free(&self, address: u64) {
        let Ok(driver) = self.context.enter() else { return };
        // SAFETY: it was allocated here, and what uses it was asked for before. Errors are those of earlier work.
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
        // SAFETY: the bytes are an allocation's.
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
                // SAFETY: there is room for so many in the piece, which is ours while the lock is held; nothing reads it any more.
                unsafe { std::ptr::copy_nonoverlapping(now.as_ptr(), staged.add(filled), now.len()) };
                filled += now.len();
                part = if later.is_empty() { parts.next() } else { Some(later) };
            }
            // SAFETY: the bytes at `to` are an allocation's; the piece stays until its event.
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
            // SAFETY: there is room for as many bytes, which nobody else has until they are there.
            let code = unsafe {
                (driver.cuMemcpyDtoHAsync_v2)(bytes.as_mut_ptr().cast(), address, bytes.len(), self.stream)
            };
            // Waits even then: some of them may be under way.
            let waited = self.synchronize();
            self.check(code, "a download").and(waited)?;
        }
        Ok(())
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: both are allocations' bytes.
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
        // SAFETY: the arguments are the kernel's, by its contract, and are read before this returns.
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
        // cuBLAS took the host of an H200 11 to 21 µs a call, a launch 4 µs: a short sequence waits for that.
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
            // Before there was a large one.
            Products::Unknown | Products::Kernel => "kernel".to_owned(),
            Products::Blas { blas, .. } => format!("cuBLAS {}", blas.version),
        }
    }

    fn software(&self) -> Option<String> {
        Some(self.software.clone())
    }

    fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream is the context's.
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
        // SAFETY: a place for the number; both are recorded.
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
    mark.0.downcast_ref().ok_or_else(|| Error::Cuda("a moment of another device's time".to_owned()))
}

/// An argument as eight bytes, of which a kernel reads the first four or all.
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
    /// In the reverse of the order in which they were made, after the last work: the context goes last, with `context`. Errors
    /// are those of earlier work, and there is nobody to tell.
    fn drop(&mut self) {
        let _ = self.synchronize();
        if let Products::Blas { blas, workspace } = std::mem::take(&mut *held(&self.products)) {
            drop(blas);
            self.free(workspace);
        }
        let Ok(driver) = self.context.enter() else { return };
        let pieces = std::mem::take(&mut held(&self.staging).pieces);
        for piece in &pieces {
            // SAFETY: it was taken here, and nothing reads it any more.
            unsafe { (driver.cuMemFreeHost)(std::ptr::with_exposed_provenance_mut(piece.address)) };
        }
        // SAFETY: both are ours, and nothing runs any more. 0, of a GPU that was opened but half, is refused.
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
