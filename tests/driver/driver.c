// A fake libcuda. INIT is the result of cuInit. With WHOLE, it has two devices whose memory is the CPU's.
// Kernels only print their arguments. cuDevicePrimaryCtxRelease prints the number of objects that were not
// freed. Environment variables:
//   BROKEN   a bit set for each device that cannot be opened
//   KERNELS  a library of ../cuda/shim.cpp, which computes launched kernels block after block
//   FAILING  name of a kernel that fails
//   BYTES    most bytes that can be allocated, whatever is reported as free
//   LOAD     result of loading the kernels
//   POOLS    0: there is no memory pool
//   MULTIPROCESSORS, SHARED (bytes), MAJOR, MINOR   properties of another GPU

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int cuInit(unsigned flags) { return INIT; }

int cuGetErrorName(int error, const char **text) {
    *text = error == 100 ? "CUDA_ERROR_NO_DEVICE" : error == 803 ? "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" : "CUDA_ERROR_SOME";
    return error == 36 ? 1 : 0;
}

int cuGetErrorString(int error, const char **text) {
    *text = "a meaning\nof two lines";
    return error == 36 ? 1 : 0;
}

#ifdef WHOLE
typedef unsigned long long u64;
// Handles are these numbers plus the device's index.
enum { CONTEXT = 0xC0, POOL = 0xD0, STREAM = 0xE0 };
static __thread u64 current;
static _Atomic int live, contexts, failed;
static const char *text(const char *name) { return getenv(name) ? getenv(name) : ""; }
static long setting(const char *name, long otherwise) { return getenv(name) ? atol(getenv(name)) : otherwise; }
#define ENTERED if ((current & ~1) != CONTEXT) return 201
// Fails unless the handle belongs to the current context.
#define OURS(handle) if ((handle) - STREAM != current - CONTEXT) return 400
#define ALIVE if (failed) return failed

int cuDriverGetVersion(int *version) { *version = 11040; return 0; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int index) { *device = index + 10; return index < 2 ? 0 : 101; }
int cuDeviceGetName(char *name, int bytes, int device) { snprintf(name, bytes, "Make-believe %d", device); return 0; }
int cuDeviceGetAttribute(int *value, unsigned attribute, int device) {
    switch (attribute) {
    case 16: *value = setting("MULTIPROCESSORS", 4); return 0;
    case 75: *value = setting("MAJOR", 8); return 0;
    case 76: *value = setting("MINOR", 0); return 0;
    case 97: *value = setting("SHARED", 166912); return 0;
    case 115: *value = setting("POOLS", 1); return 0;
    default: return 1;
    }
}
int cuDeviceTotalMem_v2(u64 *bytes, int device) { *bytes = 8ull << 30; return 0; }
int cuDeviceGetDefaultMemPool(u64 *pool, int device) { *pool = POOL + device - 10; return 0; }
int cuDevicePrimaryCtxRetain(u64 *context, int device) {
    if (setting("BROKEN", 0) >> (device - 10) & 1) return 999;
    contexts++;
    *context = CONTEXT + device - 10;
    return 0;
}
int cuDevicePrimaryCtxRelease_v2(int device) {
    if (--contexts == 0) fprintf(stderr, "left: %d\n", live);
    return 0;
}
int cuCtxSetCurrent(u64 context) { current = context; return 0; }

int cuStreamCreate(u64 *stream, unsigned flags) { ENTERED; live++; *stream = STREAM + current - CONTEXT; return 0; }
int cuStreamDestroy_v2(u64 stream) { ENTERED; OURS(stream); live--; return 0; }
int cuStreamSynchronize(u64 stream) { ENTERED; OURS(stream); return failed; }
struct event { u64 context; int timed; float at; };
int cuEventCreate(struct event **event, unsigned flags) {
    ENTERED;
    live++;
    *event = malloc(sizeof **event);
    **event = (struct event){current, !(flags & 2), -1};
    return 0;
}
int cuEventDestroy_v2(struct event *event) { ENTERED; live--; free(event); return 0; }
int cuEventRecord(struct event *event, u64 stream) {
    static float now;
    ENTERED; OURS(stream);
    if (event->context != current) return 400;
    event->at = now += 250 * event->timed;
    return failed;
}
int cuEventSynchronize(struct event *event) { ENTERED; return failed; }
int cuEventElapsedTime(float *ms, struct event *from, struct event *to) {
    if (!from->timed || !to->timed || from->at < 0 || to->at < 0) return 400;
    *ms = to->at - from->at;
    return 0;
}

int cuMemGetInfo_v2(u64 *unused, u64 *all) { ENTERED; *unused = 7ull << 30; *all = 8ull << 30; return 0; }
int cuMemPoolSetAttribute(u64 pool, unsigned attribute, void *value) { return (pool & ~1) == POOL && attribute == 4 ? 0 : 1; }
int cuMemPoolGetAttribute(u64 pool, unsigned attribute, void *value) { *(u64 *)value = attribute == 5 ? 1000 : 100; return 0; }
// Allocated memory holds NaN at first. Before it are its size, 0 for memory that is not the GPU's, and its context.
static _Atomic u64 used;
static int take(u64 *address, u64 bytes, int of_gpu) {
    ENTERED;
    char *start;
    if (of_gpu && used + bytes > setting("BYTES", 8ull << 30)) return 2;
    if (posix_memalign((void **)&start, 256, 256 + bytes)) return 2;
    memset(start + 256, 0xff, bytes);
    ((u64 *)start)[0] = bytes * of_gpu;
    ((u64 *)start)[1] = current;
    *address = (u64)start + 256;
    live++;
    used += bytes * of_gpu;
    return 0;
}
static int give(u64 address) {
    if (((u64 *)(address - 256))[1] != current) return 400;
    live--;
    used -= *(u64 *)(address - 256);
    free((void *)(address - 256));
    return 0;
}
int cuMemAllocAsync(u64 *address, u64 bytes, u64 stream) { OURS(stream); return setting("POOLS", 1) ? take(address, bytes, 1) : 801; }
int cuMemFreeAsync(u64 address, u64 stream) { OURS(stream); return setting("POOLS", 1) ? give(address) : 801; }
int cuMemAlloc_v2(u64 *address, u64 bytes) { return take(address, bytes, 1); }
int cuMemFree_v2(u64 address) { return give(address); }
int cuMemHostAlloc(void **address, u64 bytes, unsigned flags) { return take((u64 *)address, bytes, 0); }
int cuMemFreeHost(void *address) { return give((u64)address); }
int cuMemsetD8Async(u64 to, unsigned char byte, u64 bytes, u64 stream) { ENTERED; OURS(stream); ALIVE; memset((void *)to, byte, bytes); return 0; }
int cuMemcpyHtoDAsync_v2(u64 to, void *from, u64 bytes, u64 stream) { ENTERED; OURS(stream); ALIVE; memcpy((void *)to, from, bytes); return 0; }
int cuMemcpyDtoHAsync_v2(void *to, u64 from, u64 bytes, u64 stream) { ENTERED; OURS(stream); ALIVE; memcpy(to, (void *)from, bytes); return 0; }
int cuMemcpyDtoDAsync_v2(u64 to, u64 from, u64 bytes, u64 stream) { ENTERED; OURS(stream); ALIVE; memcpy((void *)to, (void *)from, bytes); return 0; }

int cuModuleLoadData(u64 *module, const char *image) {
    ENTERED;
    if (setting("LOAD", 0)) return setting("LOAD", 0);
    if (!strstr(image, ".version ")) return 218;
    live++;
    *module = 0xF0;
    return 0;
}
int cuModuleUnload(u64 module) { ENTERED; live--; return module == 0xF0 ? 0 : 400; }

struct function { const char *name; int shared; };
static struct function functions[] = {{"show", 49152}, {"fault", 49152}, {"product_f32", 49152}};
static const char *(*kinds)(const char *);
static int (*launch)(const char *, const unsigned *, unsigned, unsigned, void **, int);
int cuModuleGetFunction(u64 *function, u64 module, const char *name) {
    ENTERED;
    if (getenv("KERNELS")) {
        void *library = dlopen(getenv("KERNELS"), RTLD_NOW);
        kinds = dlsym(library, "shim_kinds");
        launch = dlsym(library, "shim_launch");
        if (!kinds(name)) return 500;
        struct function *found = malloc(sizeof *found);
        *found = (struct function){strdup(name), 49152};
        *function = (u64)found;
        return 0;
    }
    for (int i = 0; i < 3; i++)
        if (!strcmp(functions[i].name, name)) { *function = (u64)&functions[i]; return 0; }
    return 500;
}
int cuFuncSetAttribute(struct function *function, unsigned attribute, int value) {
    ENTERED;
    if (attribute != 8 || value > setting("SHARED", 166912)) return 1;
    function->shared = value;
    return 0;
}
int cuLaunchKernel(struct function *f, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   u64 stream, void **arguments, void **extra) {
    ENTERED; OURS(stream); ALIVE;
    if ((int)shared > f->shared) return 1;
    if (!strcmp(f->name, "fault")) failed = 700;
    if (!strcmp(f->name, "show")) {
        double *out = *(double **)arguments[0];
        out[0] = *(unsigned *)arguments[1];
        out[1] = *(long long *)arguments[2];
        out[2] = *(float *)arguments[3];
        out[3] = *(double *)arguments[4];
        out[4] = x * 10000.0 + y * 100 + z;
        out[5] = bx * 10000.0 + by * 100 + bz;
        out[6] = shared;
    }
    if (launch) {
        static pthread_mutex_t alone = PTHREAD_MUTEX_INITIALIZER;
        unsigned grid[] = {x, y, z};
        pthread_mutex_lock(&alone);
        if (!strcmp(f->name, text("FAILING")) || launch(f->name, grid, bx, shared, arguments, 0)) failed = 719;
        pthread_mutex_unlock(&alone);
    } else if (!strcmp(f->name, "product_f32")) **(float **)arguments[8] = 1234;
    return 0;
}
#endif
