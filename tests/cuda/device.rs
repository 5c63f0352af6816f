//! The devices that kernels are tested on: [`devices`].

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use nmem::Error;
use nmem::Result;
use nmem::cuda::{Argument, Array, Device, Gpu, Launch, Mark};

use crate::library::{Kind, library};

thread_local! {
    static WATCHING: Cell<bool> = const { Cell::new(false) };
}

/// Runs a test on the CPU alone, where accesses of shared memory by two threads with no barrier between are failures.
pub fn watch(test: impl FnOnce()) {
    struct StopWatching;
    impl Drop for StopWatching {
        fn drop(&mut self) {
            WATCHING.set(false);
        }
    }
    let _stop = StopWatching;
    WATCHING.set(true);
    test();
}

/// Whether devices check for races.
pub fn is_watching() -> bool {
    WATCHING.get()
}

/// Returns the kernels with the race check. `None` on a machine without a C++ compiler that must have a GPU.
fn watched() -> Option<&'static Arc<Shim>> {
    static WATCHED: OnceLock<Option<Arc<Shim>>> = OnceLock::new();
    let shim = WATCHED.get_or_init(|| match Shim::new(Kind::Watched) {
        Ok(shim) => Some(Arc::new(shim)),
        Err(why) if must_have_a_gpu() => {
            eprintln!("no race check: {why}");
            None
        }
        Err(why) => panic!("the kernels cannot be checked for races on the CPU: {why}"),
    });
    shim.as_ref()
}

fn must_have_a_gpu() -> bool {
    std::env::var("NMEM_REQUIRE_CUDA").is_ok_and(|value| value == "1")
}

/// Returns the race that the check finds in a probe of shim.cpp, or an empty text.
pub fn race_of(probe: &str) -> Option<String> {
    let shim = watched()?;
    let out = Array::<f32>::new(shim.as_ref(), 64).expect("memory");
    let launch = Launch { grid: [1, 1, 1], block: 64, shared: 2048 };
    Some(shim.run(probe, launch, &[out.argument()]).expect("a probe"))
}

/// Returns the available devices and their names in messages. On a machine without a C++ compiler that must
/// have a GPU, this is the GPU alone.
pub fn devices() -> &'static [(String, Arc<dyn Device>)] {
    static DEVICES: OnceLock<Vec<(String, Arc<dyn Device>)>> = OnceLock::new();
    static WATCHED: OnceLock<Vec<(String, Arc<dyn Device>)>> = OnceLock::new();
    if WATCHING.get() {
        return WATCHED.get_or_init(|| {
            let shim = watched().map(|shim| Arc::clone(shim) as Arc<dyn Device>);
            shim.into_iter().map(|shim| ("CPU, race check".to_owned(), shim)).collect()
        });
    }
    DEVICES.get_or_init(|| {
        let required = must_have_a_gpu();
        let mut devices: Vec<(String, Arc<dyn Device>)> = Vec::new();
        for (name, kind) in [("CPU", Kind::Forwards), ("CPU, backwards", Kind::Backwards)] {
            match Shim::new(kind) {
                Ok(shim) => devices.push((name.to_owned(), Arc::new(shim))),
                Err(why) if required => eprintln!("not tested on the {name}: {why}"),
                Err(why) => panic!("the kernels cannot be run on the CPU: {why}"),
            }
        }
        match Gpu::open(0) {
            Ok(gpu) => devices.push((gpu.name(), Arc::new(gpu))),
            Err(error) if required => panic!("NMEM_REQUIRE_CUDA=1, but {error}"),
            Err(error) => eprintln!("not tested on a GPU: {error}"),
        }
        let names: Vec<_> = devices.iter().map(|(name, _)| &name[..]).collect();
        eprintln!("kernels run on: {}", names.join("; "));
        devices
    })
}

/// The kernels of kernels.cu on the CPU: an address is a pointer. Allocated memory holds NaN at first, and is
/// surrounded by guard bytes that must be intact when it is freed.
struct Shim {
    backwards: bool,
    kinds: unsafe extern "C" fn(*const c_char) -> *const c_char,
    launch: LaunchFunction,
    race: unsafe extern "C" fn() -> *const c_char,
    /// The library has one set of threads.
    launching: Mutex<()>,
    /// Bytes of each allocation, by address.
    taken: Mutex<BTreeMap<u64, usize>>,
}

type LaunchFunction =
    unsafe extern "C" fn(*const c_char, *const u32, u32, u32, *mut *mut c_void, c_int) -> c_int;

/// Bytes of a guard, and the alignment of addresses.
const FENCE: usize = 256;
/// Value of unwritten bytes: NaN in both element types.
const POISON: u8 = 0xFF;

impl Shim {
    fn new(kind: Kind) -> std::result::Result<Self, String> {
        let path = library(kind)?;
        let say = |error: libloading::Error| format!("{}: {error}", path.display());
        // SAFETY: the library was just compiled from shim.cpp, and loading it runs no code. It stays loaded.
        let library = Box::leak(Box::new(unsafe { libloading::Library::new(&path) }.map_err(say)?));
        // SAFETY: the types are those of shim.cpp.
        let (kinds, launch, race) = unsafe {
            (
                *library.get(b"shim_kinds").map_err(say)?,
                *library.get(b"shim_launch").map_err(say)?,
                *library.get(b"shim_race").map_err(say)?,
            )
        };
        let backwards = kind == Kind::Backwards;
        Ok(Self { backwards, kinds, launch, race, launching: Mutex::new(()), taken: Mutex::default() })
    }

    /// Runs a kernel and returns the race, if the check is on.
    fn run(&self, kernel: &str, launch: Launch, arguments: &[Argument]) -> Result<String> {
        let Launch { grid, block, shared } = launch;
        assert!(
            grid.iter().all(|&n| n > 0) && grid[1] <= 65_535 && grid[2] <= 65_535,
            "{kernel}: {grid:?} blocks"
        );
        assert!((1..=1024).contains(&block), "{kernel}: {block} threads");
        assert!(shared as usize <= self.shared_bytes(), "{kernel}: {shared} bytes of shared memory");
        let name = CString::new(kernel).expect("a name");
        // SAFETY: the name ends in a zero.
        let kinds = unsafe { (self.kinds)(name.as_ptr()) };
        if kinds.is_null() {
            return Err(Error::Cuda(format!("no kernel {kernel}")));
        }
        // SAFETY: shim.cpp returns a static text.
        let kinds = unsafe { CStr::from_ptr(kinds) }.to_bytes();
        let given: Vec<_> = arguments.iter().map(kind).collect();
        assert_eq!(
            String::from_utf8_lossy(&given),
            String::from_utf8_lossy(kinds),
            "{kernel}: kinds of arguments"
        );
        let mut arguments = arguments.to_vec();
        let mut places: Vec<_> = arguments.iter_mut().map(place).collect();
        let _alone = self.launching.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the arguments have the number and types that the kernel takes; its use of them is under test.
        let status = unsafe {
            (self.launch)(
                name.as_ptr(),
                grid.as_ptr(),
                block,
                shared,
                places.as_mut_ptr(),
                c_int::from(self.backwards),
            )
        };
        assert_eq!(status, 0, "{kernel}: its threads wait at different barriers");
        // SAFETY: shim.cpp returns a terminated text, and nothing launches while it is read.
        Ok(unsafe { CStr::from_ptr((self.race)()) }.to_string_lossy().into_owned())
    }

    /// Panics unless the bytes lie in one allocation.
    fn check(&self, address: u64, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let found = taken.range(..=address).next_back();
        let inside = found.is_some_and(|(start, length)| address + bytes as u64 <= start + *length as u64);
        assert!(inside, "{bytes} bytes at {address:#x} are not allocated");
    }
}

/// Returns the letter of shim.cpp for an argument's kind.
fn kind(argument: &Argument) -> u8 {
    match argument {
        Argument::Address(_) => b'p',
        Argument::U32(_) => b'u',
        Argument::I64(_) => b'l',
        Argument::F32(_) => b'f',
        Argument::F64(_) => b'd',
    }
}

fn place(argument: &mut Argument) -> *mut c_void {
    match argument {
        Argument::Address(x) => std::ptr::from_mut(x).cast(),
        Argument::U32(x) => std::ptr::from_mut(x).cast(),
        Argument::I64(x) => std::ptr::from_mut(x).cast(),
        Argument::F32(x) => std::ptr::from_mut(x).cast(),
        Argument::F64(x) => std::ptr::from_mut(x).cast(),
    }
}

fn layout(bytes: usize) -> std::alloc::Layout {
    std::alloc::Layout::from_size_align(bytes + 2 * FENCE, FENCE).expect("a size that memory can have")
}

impl Device for Shim {
    fn name(&self) -> String {
        "CPU".to_owned()
    }
    fn free_bytes(&self) -> Result<usize> {
        Ok(1 << 30)
    }
    fn multiprocessors(&self) -> usize {
        4
    }
    fn shared_bytes(&self) -> usize {
        // The value of compute capability 9.0.
        227 << 10
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        // SAFETY: the size is not zero, and all bytes are written.
        let start = unsafe {
            let start = std::alloc::alloc(layout(bytes));
            assert!(!start.is_null(), "memory");
            start.write_bytes(POISON, bytes + 2 * FENCE);
            start
        };
        let address = start as u64 + FENCE as u64;
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).insert(address, bytes);
        Ok(address)
    }

    fn free(&self, address: u64) {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(&address);
        let bytes = taken.expect("only allocations are freed");
        let start = (address as usize - FENCE) as *mut u8;
        // SAFETY: the range is the one that `allocate` requested, guards included.
        let stand = unsafe {
            let fences = [start, start.add(FENCE + bytes)];
            let stand = fences
                .into_iter()
                .all(|fence| std::slice::from_raw_parts(fence, FENCE).iter().all(|&byte| byte == POISON));
            std::alloc::dealloc(start, layout(bytes));
            stand
        };
        assert!(stand || std::thread::panicking(), "a kernel wrote outside of {bytes} bytes");
    }

    fn fill(&self, address: u64, byte: u8, bytes: usize) -> Result<()> {
        self.check(address, bytes);
        // SAFETY: checked above.
        unsafe { (address as *mut u8).write_bytes(byte, bytes) };
        Ok(())
    }

    fn upload(&self, address: u64, parts: &[&[u8]]) -> Result<()> {
        let bytes = parts.concat();
        self.check(address, bytes.len());
        // SAFETY: checked above.
        unsafe { (address as *mut u8).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    fn download(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        self.check(address, bytes.len());
        // SAFETY: checked above.
        unsafe { (address as *const u8).copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.check(to, bytes);
        self.check(from, bytes);
        assert!(to.abs_diff(from) >= bytes as u64, "places that do not overlap");
        // SAFETY: checked above.
        unsafe { (to as *mut u8).copy_from_nonoverlapping(from as *const u8, bytes) };
        Ok(())
    }

    fn launch(&self, kernel: &str, launch: Launch, arguments: &[Argument]) -> Result<()> {
        let race = self.run(kernel, launch, arguments)?;
        assert!(race.is_empty(), "{kernel}: {race}, with no barrier between");
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
    fn mark(&self) -> Result<Mark> {
        Ok(Mark(Box::new(Instant::now())))
    }
    fn seconds(&self, from: &Mark, to: &Mark) -> Result<f64> {
        let [from, to] = [from, to]
            .map(|mark| *mark.0.downcast_ref::<Instant>().expect("the mark belongs to this device"));
        Ok((to - from).as_secs_f64())
    }
}
