// Runs the kernels on the CPU, by name.
#include "cuda_shim.h"

#include "kernels.cu"

#define SHIM_BOTH(name) SHIM_KERNEL(in_f32::name##_f32), SHIM_KERNEL(in_f64::name##_f64)

#ifdef SHIM_RACES
// Races within and between warps that the check must find, and accesses that it must accept: tests/cuda/races.rs.
namespace probes {
__shared__ int shared_by_all;
void clean(float* out) {
  SHARED_MEMORY(float, buffer);
  buffer[threadIdx.x] = 1;
  if (threadIdx.x == 0) shared_by_all = 0;
  __syncwarp();
  out[threadIdx.x] = buffer[threadIdx.x ^ 1];
  __syncthreads();
  atomicExch(&shared_by_all, 1);
  out[threadIdx.x] += buffer[63 - threadIdx.x];
  __pipeline_memcpy_async(buffer + 64 + threadIdx.x, buffer, 4);
  __pipeline_commit();
  __pipeline_wait_prior(0);
  __syncthreads();
  out[threadIdx.x] += buffer[127 - threadIdx.x] + shared_by_all;
}
void writes(float*) { shared_by_all = int(threadIdx.x); }
void read_of_another_warp(float* out) {
  SHARED_MEMORY(float, buffer);
  buffer[threadIdx.x] = 1;
  __syncwarp();
  out[threadIdx.x] = buffer[63 - threadIdx.x];
}
void read_of_a_lane(float* out) {
  SHARED_MEMORY(float, buffer);
  buffer[threadIdx.x] = 1;
  out[threadIdx.x] = buffer[threadIdx.x ^ 1];
}
void write_of_what_others_read(float* out) {
  SHARED_MEMORY(double, buffer);
  *reinterpret_cast<Quad<double>*>(buffer + 4 * threadIdx.x) = {};
  __syncthreads();
  out[threadIdx.x] = float(buffer[255 - 4 * threadIdx.x]);
  buffer[4 * threadIdx.x + 3] = 1;
}
void read_of_atomics(float* out) {
  if (threadIdx.x % 32 == 0) atomicExch(&shared_by_all, 1);
  if (threadIdx.x == 32) out[0] = float(shared_by_all);
}
void copy_not_waited_for(float* out) {
  SHARED_MEMORY(float, buffer);
  __pipeline_memcpy_async(buffer + threadIdx.x, out, 4);
  __pipeline_commit();
  __syncthreads();
  out[threadIdx.x] = buffer[63 - threadIdx.x];
  __pipeline_wait_prior(0);
}
}  // namespace probes
#endif

static const shim::Kernel KERNELS[] = {
#ifdef SHIM_RACES
    SHIM_KERNEL(probes::clean), SHIM_KERNEL(probes::writes), SHIM_KERNEL(probes::read_of_another_warp), SHIM_KERNEL(probes::read_of_a_lane),
    SHIM_KERNEL(probes::write_of_what_others_read), SHIM_KERNEL(probes::read_of_atomics), SHIM_KERNEL(probes::copy_not_waited_for),
#endif
#define KERNEL(name) SHIM_BOTH(name),
#include "kernels.inc"
#undef KERNEL
};

static const shim::Kernel* found(const char* name) {
  for (const shim::Kernel& kernel : KERNELS)
    if (strcmp(strrchr(kernel.name, ':') + 1, name) == 0) return &kernel;
  return nullptr;
}

struct Call {
  const shim::Kernel* kernel;
  void** arguments;
};

// Returns the kinds of a kernel's arguments, one letter each; null if there is no kernel of that name.
extern "C" __attribute__((visibility("default"))) const char* shim_kinds(const char* name) {
  const shim::Kernel* kernel = found(name);
  return kernel ? kernel->kinds : nullptr;
}

// Returns the race found since the last call, if any.
extern "C" __attribute__((visibility("default"))) const char* shim_race() {
  static char message[256];
  message[0] = 0;
#ifdef SHIM_RACES
  memcpy(message, shim::race, sizeof message);
  shim::race[0] = 0;
#endif
  return message;
}

// Returns 0 on success, 1 if there is no such kernel, and 2 if threads wait at different barriers.
extern "C" __attribute__((visibility("default"))) int shim_launch(const char* name, const unsigned* grid, unsigned block,
                                                                  unsigned shared_bytes, void** arguments, int backwards) {
  const shim::Kernel* kernel = found(name);
  if (!kernel) return 1;
  Call call{kernel, arguments};
  auto run = [](void* what) {
    const Call* call = static_cast<const Call*>(what);
    call->kernel->run(call->arguments);
  };
  const dim3 blocks{grid[0], grid[1], grid[2]}, threads{block, 1, 1};
  return shim::launch(blocks, threads, shared_bytes, backwards != 0, run, &call) ? 0 : 2;
}
