//! Compiles the kernels' source with NVRTC at run time, for GPUs and drivers that cannot use the PTX in this build.

use std::ffi::{CStr, CString, c_char};

use super::library::{Handle, Nvrtc};
use crate::error::{Error, Result};

/// Returns machine code for a compute capability, and the compiler's version.
pub fn compile(source: &str, (major, minor): (u32, u32)) -> Result<(Vec<u8>, String)> {
    // SAFETY: loads a library, which is NVIDIA's.
    if !unsafe { cudarc::nvrtc::sys::is_culib_present() } {
        let text = "NMEM_NVRTC=1, but libnvrtc is not found; install NVRTC of CUDA 12 or 13, add it to LD_LIBRARY_PATH, or unset NMEM_NVRTC";
        return Err(Error::Cuda(text.to_owned()));
    }
    // SAFETY: the library is present.
    let library = unsafe { Nvrtc::load() }.map_err(|missing| {
        Error::Cuda(format!("libnvrtc is too old: it has no {missing}; update it, or unset NMEM_NVRTC"))
    })?;
    let source = CString::new(source).expect("text without a zero byte");
    let mut handle = 0;
    // SAFETY: both texts end in a zero and are copied.
    let status = unsafe {
        (library.nvrtcCreateProgram)(
            &raw mut handle,
            source.as_ptr(),
            c"kernels.cu".as_ptr(),
            0,
            std::ptr::null(),
            std::ptr::null(),
        )
    };
    if status != 0 {
        return Err(Error::Cuda(format!("NVRTC cannot start: status {status}")));
    }
    let mut program = Program { library, handle };
    let (mut of_major, mut of_minor) = (0, 0);
    // SAFETY: the pointers are valid for the numbers.
    unsafe { (program.library.nvrtcVersion)(&raw mut of_major, &raw mut of_minor) };
    let code = program.code(&format!("--gpu-architecture=sm_{major}{minor}"));
    // SAFETY: the handle belongs to the program and is not used again.
    unsafe { (program.library.nvrtcDestroyProgram)(&raw mut program.handle) };
    Ok((code?, format!("{of_major}.{of_minor}")))
}

struct Program {
    library: Nvrtc,
    handle: Handle,
}

impl Program {
    fn code(&self, architecture: &str) -> Result<Vec<u8>> {
        let option = CString::new(architecture).expect("no zero byte");
        let options: [*const c_char; 1] = [option.as_ptr()];
        // SAFETY: the array holds one option, as stated.
        let status = unsafe { (self.library.nvrtcCompileProgram)(self.handle, 1, options.as_ptr()) };
        if status != 0 {
            let log = self.log();
            let first = log.lines().find(|line| line.contains("error")).or_else(|| log.lines().next());
            let first = first.unwrap_or_default().trim();
            return Err(Error::Cuda(format!(
                "NVRTC cannot compile the kernels with {architecture} (status {status}: {first}); use an NVRTC that supports \
                 this GPU (CUDA 12 for GPUs before 7.5), or --device cpu"
            )));
        }
        let mut size = 0;
        // SAFETY: the pointer is valid for the size.
        let sized = unsafe { (self.library.nvrtcGetCUBINSize)(self.handle, &raw mut size) };
        let mut code = vec![0_u8; size];
        // SAFETY: the buffer has the size that NVRTC returned.
        let got = unsafe { (self.library.nvrtcGetCUBIN)(self.handle, code.as_mut_ptr().cast()) };
        if (sized, got) != (0, 0) || code.is_empty() {
            return Err(Error::Cuda(format!(
                "NVRTC produced no machine code with {architecture}; update NVRTC"
            )));
        }
        Ok(code)
    }

    /// Returns the compiler's log, or an empty text if that fails.
    fn log(&self) -> String {
        let mut size = 0;
        // SAFETY: the pointer is valid for the size.
        if unsafe { (self.library.nvrtcGetProgramLogSize)(self.handle, &raw mut size) } != 0 {
            return String::new();
        }
        let mut log = vec![0_u8; size + 1];
        // SAFETY: the buffer has the size that NVRTC returned, and a zero after it.
        unsafe { (self.library.nvrtcGetProgramLog)(self.handle, log.as_mut_ptr().cast()) };
        CStr::from_bytes_until_nul(&log).map_or(String::new(), |log| log.to_string_lossy().into_owned())
    }
}
