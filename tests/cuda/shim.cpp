// The kernels on the processor, by name.
#include "cuda_shim.h"

#include "kernels.cu"

#define SHIM_BOTH(name) SHIM_KERNEL(in_f32::name##_f32), SHIM_KERNEL(in_f64::name##_f64)

static const shim::Kernel KERNELS[] = {
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

// What a kernel takes, a letter an argument, or nothing where there is none of that name.
extern "C" __attribute__((visibility("default"))) const char* shim_kinds(const char* name) {
  const shim::Kernel* kernel = found(name);
  return kernel ? kernel->kinds : nullptr;
}

// What was found of threads that race, once.
extern "C" __attribute__((visibility("default"))) const char* shim_race() {
  static char told[256];
  told[0] = 0;
#ifdef SHIM_RACES
  memcpy(told, shim::race, sizeof told);
  shim::race[0] = 0;
#endif
  return told;
}

// 0: done. 1: no such kernel. 2: threads wait at different barriers.
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
