//! The libraries of CUDA, loaded on first use. cudarc finds them, but its functions are not called: they panic
//! where one is missing, and return an enum that a library newer than cudarc could break. So the functions are
//! looked up here, all of them at once, and their results stay numbers. Handles are pointers that are never
//! dereferenced: `usize`.

use std::ffi::{c_char, c_int, c_uint, c_void};

/// A pointer to an object of the library.
pub type Handle = usize;

macro_rules! library {
    ($(#[$doc:meta])* $name:ident, $culib:path { $(fn $function:ident($($of:ty),* $(,)?);)* $(let $other:ident: $type:ty;)* }) => {
        $(#[$doc])*
        #[expect(non_snake_case, reason = "the library's names")]
        pub struct $name {
            $(pub $function: unsafe extern "C" fn($($of),*) -> c_uint,)*
            $(pub $other: $type,)*
        }

        impl $name {
            /// Looks up all functions. An error is the name of a missing one.
            ///
            /// # Safety
            /// The library must be present: cudarc's `is_culib_present` must have returned true.
            pub unsafe fn load() -> Result<Self, &'static str> {
                // SAFETY: cudarc panics if there is no library, and the caller guarantees that there is one.
                let library = unsafe { $culib() };
                Ok(Self {
                    // SAFETY: the types are those of the library's headers.
                    $($function: unsafe { *library.get(stringify!($function)).map_err(|_| stringify!($function))? },)*
                    // SAFETY: as above.
                    $($other: unsafe { *library.get(stringify!($other)).map_err(|_| stringify!($other))? },)*
                })
            }
        }
    };
}

library! {
    /// The driver functions that start it and name its errors, which every version has.
    Start, cudarc::driver::sys::culib {
        fn cuInit(c_uint);
        fn cuGetErrorName(c_uint, *mut *const c_char);
        fn cuGetErrorString(c_uint, *mut *const c_char);
    }
}

library! {
    /// The other driver functions, of CUDA 11.2: the first version with memory in stream order.
    Driver, cudarc::driver::sys::culib {
        fn cuDriverGetVersion(*mut c_int);
        fn cuDeviceGetCount(*mut c_int);
        fn cuDeviceGet(*mut c_int, c_int);
        fn cuDeviceGetName(*mut c_char, c_int, c_int);
        fn cuDeviceGetAttribute(*mut c_int, c_uint, c_int);
        fn cuDeviceTotalMem_v2(*mut usize, c_int);
        fn cuDeviceGetDefaultMemPool(*mut Handle, c_int);
        fn cuDevicePrimaryCtxRetain(*mut Handle, c_int);
        fn cuDevicePrimaryCtxRelease_v2(c_int);
        fn cuCtxSetCurrent(Handle);
        fn cuStreamCreate(*mut Handle, c_uint);
        fn cuStreamDestroy_v2(Handle);
        fn cuStreamSynchronize(Handle);
        fn cuEventCreate(*mut Handle, c_uint);
        fn cuEventDestroy_v2(Handle);
        fn cuEventRecord(Handle, Handle);
        fn cuEventSynchronize(Handle);
        fn cuEventElapsedTime(*mut f32, Handle, Handle);
        fn cuMemGetInfo_v2(*mut usize, *mut usize);
        fn cuMemPoolSetAttribute(Handle, c_uint, *mut c_void);
        fn cuMemPoolGetAttribute(Handle, c_uint, *mut c_void);
        fn cuMemAllocAsync(*mut u64, usize, Handle);
        fn cuMemFreeAsync(u64, Handle);
        fn cuMemAlloc_v2(*mut u64, usize);
        fn cuMemFree_v2(u64);
        fn cuMemHostAlloc(*mut *mut c_void, usize, c_uint);
        fn cuMemFreeHost(*mut c_void);
        fn cuMemsetD8Async(u64, u8, usize, Handle);
        fn cuMemcpyHtoDAsync_v2(u64, *const c_void, usize, Handle);
        fn cuMemcpyDtoHAsync_v2(*mut c_void, u64, usize, Handle);
        fn cuMemcpyDtoDAsync_v2(u64, u64, usize, Handle);
        fn cuModuleLoadData(*mut Handle, *const c_void);
        fn cuModuleUnload(Handle);
        fn cuModuleGetFunction(*mut Handle, Handle, *const c_char);
        fn cuFuncSetAttribute(Handle, c_uint, c_int);
        fn cuLaunchKernel(
            Handle,
            c_uint,
            c_uint,
            c_uint,
            c_uint,
            c_uint,
            c_uint,
            c_uint,
            Handle,
            *mut *mut c_void,
            *mut *mut c_void,
        );
    }
}

library! {
    /// The functions of the run-time compiler, NVRTC.
    Nvrtc, cudarc::nvrtc::sys::culib {
        fn nvrtcVersion(*mut c_int, *mut c_int);
        fn nvrtcCreateProgram(
            *mut Handle,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        );
        fn nvrtcCompileProgram(Handle, c_int, *const *const c_char);
        fn nvrtcGetProgramLogSize(Handle, *mut usize);
        fn nvrtcGetProgramLog(Handle, *mut c_char);
        fn nvrtcGetCUBINSize(Handle, *mut usize);
        fn nvrtcGetCUBIN(Handle, *mut c_char);
        fn nvrtcDestroyProgram(*mut Handle);
    }
}

library! {
    /// The functions of cuBLAS for matrix products.
    Cublas, cudarc::cublas::sys::culib {
        fn cublasCreate_v2(*mut Handle);
        fn cublasDestroy_v2(Handle);
        fn cublasGetProperty(c_uint, *mut c_int);
        fn cublasSetStream_v2(Handle, Handle);
        fn cublasSetWorkspace_v2(Handle, u64, usize);
        fn cublasSetMathMode(Handle, c_uint);
        let cublasSgemmStridedBatched: Gemm<f32>;
        let cublasDgemmStridedBatched: Gemm<f64>;
    }
}

/// The type of the GEMM functions. Arguments in order: the handle; whether A and B are transposed; rows,
/// columns and depth; α; each matrix with its column distance and the stride between products, with β before C;
/// the number of products.
type Gemm<T> = unsafe extern "C" fn(
    Handle,
    c_uint,
    c_uint,
    c_int,
    c_int,
    c_int,
    *const T,
    u64,
    c_int,
    i64,
    u64,
    c_int,
    i64,
    *const T,
    u64,
    c_int,
    i64,
    c_int,
) -> c_uint;
