//! The driver, loaded and started once; the GPUs that it lists; and a context of each open GPU.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::sync::{Arc, OnceLock};

use super::library::{Driver, Handle, Start};
use crate::cuda::{Description, Listed, Unusable};
use crate::error::{Error, Result};

/// A value of `CUdevice_attribute`.
pub(super) const MULTIPROCESSORS: c_uint = 16;
const CAPABILITY_MAJOR: c_uint = 75;
const CAPABILITY_MINOR: c_uint = 76;

const NO_DEVICE: &str = "the NVIDIA driver finds no GPU (or CUDA_VISIBLE_DEVICES hides it)";

/// Lists the GPUs of this machine. It is an error if there is none.
pub fn list() -> Result<Listed> {
    let count = driver()?.count()?;
    if count == 0 {
        return Err(Error::Cuda(NO_DEVICE.to_owned()));
    }
    let mut listed = Listed::default();
    for index in 0..count {
        match Context::open(index).and_then(|context| context.description()) {
            Ok(gpu) => listed.usable.push(gpu),
            Err(Error::Cuda(error)) => listed.unusable.push(Unusable { index, error }),
            Err(error) => listed.unusable.push(Unusable { index, error: error.to_string() }),
        }
    }
    Ok(listed)
}

/// The driver, loaded and started.
pub(super) struct Loaded {
    pub(super) start: Start,
    pub(super) driver: Driver,
}

/// Returns the driver, loaded once per process, or the reason why it cannot be used.
fn driver() -> Result<&'static Loaded> {
    static LOADED: OnceLock<Result<Loaded, String>> = OnceLock::new();
    LOADED.get_or_init(Loaded::load).as_ref().map_err(|reason| Error::Cuda(reason.clone()))
}

impl Loaded {
    fn load() -> Result<Self, String> {
        // SAFETY: loads a library, which is the driver's.
        if !unsafe { cudarc::driver::sys::is_culib_present() } {
            return Err("no NVIDIA driver (libcuda.so.1 not found); install one, or use --device cpu".into());
        }
        let old = |missing: &str| {
            format!(
                "the NVIDIA driver is too old (it has no {missing}, of CUDA 11.2); update it, or use --device cpu"
            )
        };
        // SAFETY: the library is present.
        let start = unsafe { Start::load() }.map_err(old)?;
        // SAFETY: takes no pointers.
        let code = unsafe { (start.cuInit)(0) };
        if code != 0 {
            let name = start.name(code);
            return Err(match code {
                100 => "the NVIDIA driver finds no GPU; check that one is installed and that CUDA_VISIBLE_DEVICES does not hide it, \
                        or use --device cpu"
                    .to_owned(),
                34 => "libcuda is the toolkit's stub, not a driver; install an NVIDIA driver, or remove the stub's directory from \
                       LD_LIBRARY_PATH"
                    .to_owned(),
                36 | 803 | 804 => format!(
                    "the NVIDIA driver is too old, or its kernel module is of another version ({name}); update it and \
                     restart, or use --device cpu"
                ),
                _ => format!("the NVIDIA driver does not start ({name}); check that `nvidia-smi` works, or use --device cpu"),
            });
        }
        // SAFETY: the library is present.
        let driver = unsafe { Driver::load() }.map_err(old)?;
        Ok(Self { start, driver })
    }

    /// Returns the version of CUDA that the driver supports: "13.0".
    pub(super) fn version(&self) -> Result<String> {
        let mut version = 0;
        // SAFETY: the pointer is valid for the number.
        let code = unsafe { (self.driver.cuDriverGetVersion)(&raw mut version) };
        self.check(code, || "querying the driver's version".into())?;
        Ok(format!("{}.{}", version / 1000, version % 1000 / 10))
    }

    fn count(&self) -> Result<usize> {
        let mut count = 0;
        // SAFETY: the pointer is valid for the number.
        self.check(unsafe { (self.driver.cuDeviceGetCount)(&raw mut count) }, || "counting devices".into())?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// Returns an error unless the code is 0.
    fn check(&self, code: c_uint, what: impl FnOnce() -> String) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        let (what, name) = (what(), self.start.name(code));
        Err(Error::Cuda(match code {
            2 => {
                format!("out of memory on the GPU: {what}; use smaller inputs, another GPU, or --device cpu")
            }
            36 => {
                format!("the NVIDIA driver is too old for {what} ({name}); update it, or use --device cpu")
            }
            46 => format!("another program has exclusive use of the GPU: {what} ({name})"),
            _ => format!("{what} failed: {name}"),
        }))
    }
}

impl Start {
    /// Returns "CUDA_ERROR_…: its meaning".
    pub(super) fn name(&self, code: c_uint) -> String {
        let text = |ask: unsafe extern "C" fn(c_uint, *mut *const c_char) -> c_uint| {
            let mut text = std::ptr::null();
            // SAFETY: the pointer is valid for a pointer to a text of the library's own.
            let known = unsafe { ask(code, &raw mut text) } == 0 && !text.is_null();
            // SAFETY: the text ends in a zero and stays valid.
            known.then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().replace('\n', " "))
        };
        match (text(self.cuGetErrorName), text(self.cuGetErrorString)) {
            (Some(name), Some(meaning)) => format!("{name}: {meaning}"),
            (Some(name), None) => name,
            _ => format!("error {code}"),
        }
    }
}

/// A GPU's primary context, retained.
pub(super) struct Context {
    pub(super) loaded: &'static Loaded,
    pub(super) index: usize,
    pub(super) device: c_int,
    pub(super) handle: Handle,
}

impl Context {
    pub(super) fn open(index: usize) -> Result<Arc<Self>> {
        let loaded = driver()?;
        let count = loaded.count()?;
        if index >= count {
            let there = match count {
                0 => NO_DEVICE.to_owned(),
                1 => "the only one is cuda:0".to_owned(),
                _ => format!("the GPUs are cuda:0 to cuda:{}", count - 1),
            };
            return Err(Error::Cuda(format!("no GPU with index {index}: {there} (see `nmem devices`)")));
        }
        let (mut device, mut handle) = (0, 0);
        let doing = || format!("opening cuda:{index}");
        let ordinal = c_int::try_from(index).expect("below a count of devices");
        // SAFETY: the pointers are valid for the results; the device comes from the driver.
        unsafe {
            loaded.check((loaded.driver.cuDeviceGet)(&raw mut device, ordinal), doing)?;
            loaded.check((loaded.driver.cuDevicePrimaryCtxRetain)(&raw mut handle, device), doing)?;
        }
        let this = Arc::new(Self { loaded, index, device, handle });
        this.enter()?;
        Ok(this)
    }

    /// Makes the context current on the calling thread.
    pub(super) fn enter(&self) -> Result<&Driver> {
        // SAFETY: the context is retained as long as this lives.
        let code = unsafe { (self.loaded.driver.cuCtxSetCurrent)(self.handle) };
        self.check(code, || format!("switching to cuda:{}", self.index))?;
        Ok(&self.loaded.driver)
    }

    pub(super) fn check(&self, code: c_uint, what: impl FnOnce() -> String) -> Result<()> {
        self.loaded.check(code, what)
    }

    pub(super) fn attribute(&self, attribute: c_uint) -> Result<u32> {
        let mut value = 0;
        // SAFETY: the pointer is valid for the number, and the device comes from the driver.
        let code =
            unsafe { (self.loaded.driver.cuDeviceGetAttribute)(&raw mut value, attribute, self.device) };
        self.check(code, || format!("querying attribute {attribute}"))?;
        Ok(u32::try_from(value).unwrap_or(0))
    }

    pub(super) fn name(&self) -> Result<String> {
        let mut name = [0_u8; 256];
        // SAFETY: the buffer has the stated size, and its last byte stays 0.
        let code =
            unsafe { (self.loaded.driver.cuDeviceGetName)(name.as_mut_ptr().cast(), 255, self.device) };
        self.check(code, || "querying the GPU's name".into())?;
        let name = CStr::from_bytes_until_nul(&name).unwrap_or_default();
        Ok(name.to_string_lossy().into_owned())
    }

    pub(super) fn capability(&self) -> Result<(u32, u32)> {
        Ok((self.attribute(CAPABILITY_MAJOR)?, self.attribute(CAPABILITY_MINOR)?))
    }

    pub(super) fn free_bytes(&self) -> Result<usize> {
        let (mut free, mut all) = (0, 0);
        // SAFETY: the pointers are valid for the numbers.
        let code = unsafe { (self.enter()?.cuMemGetInfo_v2)(&raw mut free, &raw mut all) };
        self.check(code, || "querying free memory".into())?;
        Ok(free)
    }

    fn description(&self) -> Result<Description> {
        let mut bytes = 0;
        // SAFETY: the pointer is valid for the number.
        let code = unsafe { (self.loaded.driver.cuDeviceTotalMem_v2)(&raw mut bytes, self.device) };
        self.check(code, || "querying memory".into())?;
        Ok(Description {
            index: self.index,
            name: self.name()?,
            driver: self.loaded.version()?,
            compute_capability: self.capability()?,
            multiprocessors: self.attribute(MULTIPROCESSORS)? as usize,
            bytes: bytes as u64,
            free_bytes: self.free_bytes()? as u64,
        })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the context was retained once.
        unsafe { (self.loaded.driver.cuDevicePrimaryCtxRelease_v2)(self.device) };
    }
}
