// CUDA C on the CPU, for tests of the kernels' results. Blocks run one after another. The threads of a block
// are fibres that switch only at __syncthreads and warp intrinsics, so that a run is deterministic. Threads run
// in forward or backward order, and a missing barrier shows as a difference between the two. Asynchronous
// copies are done immediately in forward order; in backward order they are done as late as possible, when they
// are waited for.
//
// With SHIM_RACES, and compiled with -fsanitize=thread but linked without its library, accesses of shared
// memory are checked like in compute-sanitizer's racecheck. It reports accesses of two threads, one of them a
// write, with no barrier between, and any access beside a copy that has not been waited for. Accesses of global
// memory are not checked.
//
// There are no half types, tensor cores or clocks. Masks of warp intrinsics are assumed to be full, and only
// one launch runs at a time.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <type_traits>
#include <utility>
#include <vector>
#ifndef __x86_64__
#include <ucontext.h>
#endif

struct dim3 { unsigned x, y, z; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __align__(n) alignas(n)
#define __launch_bounds__(...)
#define __shared__ static
#define __constant__ static const
#define SHARED_MEMORY(T, name) T* name = reinterpret_cast<T*>(shim::shared)

#ifdef SHIM_RACES
// The shim's own accesses are not checked.
#define SHIM_PLAIN __attribute__((no_sanitize("thread")))
#else
#define SHIM_PLAIN
#endif

namespace shim {

enum Wait { NOTHING, BLOCK, WARP };
enum { STACK = 64 << 10 };

#ifdef __x86_64__
// Saves the registers that a callee must preserve, and continues on another stack.
extern "C" __attribute__((visibility("hidden"))) void shim_switch(void** from, void* to);
asm(".text\n.hidden shim_switch\n.globl shim_switch\n.type shim_switch, @function\nshim_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n"
    ".size shim_switch, .-shim_switch\n");
struct Context {
  void* top;
  void start(char* stack, void (*entry)()) {
    // The stack looks as if shim_switch had been called at entry's first instruction: six registers, a return
    // address, and no caller.
    void** top = reinterpret_cast<void**>(stack + STACK) - 2;
    *top-- = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *top-- = nullptr;
    this->top = top + 1;
  }
  void leave_for(Context& other) { shim_switch(&top, other.top); }
};
#else
struct Context {
  ucontext_t context;
  void start(char* stack, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = STACK;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
  }
  void leave_for(Context& other) { swapcontext(&context, &other.context); }
};
#endif

// Bytes in transfer, with others that are waited for together.
struct Copy {
  void* to;
  const void* from;
  size_t bytes;
  unsigned group;
};

struct Fibre {
  Context context;
  std::vector<Copy> copies;
  unsigned groups;
  dim3 thread;
  unsigned number;
  bool done;
  Wait wait;
  uint64_t given;
  // Barriers that the thread has passed: of the block, since the library was loaded, and of its warp.
  uint64_t barriers, warp_barriers;
};

inline std::vector<Fibre> fibres;
inline std::vector<char> stacks;
inline std::vector<char> shared_storage;
inline char* shared;
inline Fibre* current;
inline Context scheduler;
inline void (*run)(void*);
inline void* what;
inline dim3 block_index, block_size, grid_size;
inline bool late_copies;
inline uint64_t barriers;

SHIM_PLAIN inline void entry() {
  run(what);
  current->done = true;
  for (;;) current->context.leave_for(scheduler);
}

SHIM_PLAIN inline void wait(Wait kind) {
  current->wait = kind;
  current->context.leave_for(scheduler);
  ++(kind == BLOCK ? current->barriers : current->warp_barriers);
}

#ifdef SHIM_RACES
// The last write of a word, and its readers since the last barrier of the block: one thread, whether others of
// its warp read too, and whether threads of other warps did.
struct Word {
  uint64_t written = ~0ull, read = ~0ull;
  uint64_t written_in_warp, read_in_warp;
  unsigned writer, reader;
  // Kind of the write: atomic; by several threads since the last barrier; by a copy in transfer.
  bool many, other_warps, atomic = false, several = false, pending = false;
};
inline std::vector<Word> dynamic_words, static_words;
// These are pointers, because functions called here are not checked.
inline Word *of_dynamic, *of_statics;
inline size_t dynamic_bytes;
extern "C" __attribute__((visibility("hidden"))) char __bss_start, _end;
// Start of the static variables, in whole words.
inline char* statics;
#endif

// Runs one block to its end. Returns false if threads wait for each other at different barriers.
SHIM_PLAIN inline bool run_block(unsigned threads, bool backwards) {
  for (unsigned i = 0; i < threads; ++i) {
    Fibre& fibre = fibres[i];
    fibre.number = i;
    fibre.done = false;
    fibre.wait = NOTHING;
    fibre.copies.clear();
    fibre.groups = 0;
    fibre.barriers = barriers;
    fibre.warp_barriers = 0;
    fibre.thread = dim3{i % block_size.x, i / block_size.x % block_size.y, i / (block_size.x * block_size.y)};
    fibre.context.start(stacks.data() + size_t(i) * STACK, entry);
  }
  const unsigned warps = (threads + 31) / 32;
  for (;;) {
    bool live = false, all_at_block = true;
    for (unsigned k = 0; k < warps; ++k) {
      const unsigned first = 32 * (backwards ? warps - 1 - k : k), end = first + 32 < threads ? first + 32 : threads;
      bool any = true, all_at_warp = true, at_block = true;
      // A warp runs as far as it can before the next one continues.
      while (any && all_at_warp) {
        for (unsigned i = first; i < end; ++i) {
          Fibre& fibre = fibres[backwards ? first + end - 1 - i : i];
          fibre.wait = NOTHING;
          current = &fibre;
          if (!fibre.done) scheduler.leave_for(fibre.context);
        }
        any = false;
        at_block = true;
        for (unsigned i = first; i < end; ++i)
          if (!fibres[i].done) {
            any = live = true;
            all_at_warp &= fibres[i].wait == WARP;
            at_block &= fibres[i].wait == BLOCK;
          }
      }
      all_at_block &= at_block;
    }
    // All threads pass the barrier together.
    ++barriers;
    if (!live) return true;
    if (!all_at_block) return false;
  }
}

// Runs all blocks. Dynamic shared memory holds NaN before each.
SHIM_PLAIN inline bool launch(dim3 grid, dim3 block, size_t shared_bytes, bool backwards, void (*function)(void*), void* argument) {
  const unsigned threads = block.x * block.y * block.z;
  grid_size = grid;
  block_size = block;
  run = function;
  what = argument;
#ifdef SHIM_RACES
  late_copies = true;
#else
  late_copies = backwards;
#endif
  if (fibres.size() < threads) {
    fibres.resize(threads);
    stacks.resize(size_t(threads) * STACK);
  }
  shared_storage.resize(shared_bytes + 256);
#ifdef SHIM_RACES
  dynamic_words.resize(shared_bytes / 4 + 1);
  statics = &__bss_start - reinterpret_cast<uintptr_t>(&__bss_start) % 8;
  static_words.resize((&_end - statics) / 4 + 1);
  of_dynamic = dynamic_words.data();
  of_statics = static_words.data();
  dynamic_bytes = shared_bytes;
#endif
  shared = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(shared_storage.data()) + 127) / 128 * 128);
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        block_index = dim3{x, y, z};
        memset(shared, 0xff, shared_bytes);
        const bool done = run_block(threads, backwards);
        current = nullptr;
        if (!done) return false;
      }
  return true;
}

template <class T> SHIM_PLAIN T exchange(T x, unsigned source) {
  static_assert(sizeof(T) <= 8, "at most 8 bytes");
  memcpy(&current->given, &x, sizeof x);
  wait(WARP);
  // A GPU does not define the value of a lane that has returned.
  const unsigned first = current->number / 32 * 32, threads = block_size.x * block_size.y * block_size.z;
  for (unsigned i = first; i < first + 32 && i < threads; ++i)
    if (fibres[i].done) __builtin_trap();
  T got = x;
  if (source < block_size.x * block_size.y * block_size.z) memcpy(&got, &fibres[source].given, sizeof got);
  wait(WARP);
  return got;
}
SHIM_PLAIN inline unsigned lane() { return current->number % 32; }
SHIM_PLAIN inline unsigned first_lane() { return current->number - lane(); }

// Kinds of arguments, as in nmem::cuda::Argument.
template <class T> constexpr char kind_of() {
  if (std::is_pointer<T>::value) return 'p';
  if (std::is_same<T, float>::value) return 'f';
  if (std::is_same<T, double>::value) return 'd';
  if (std::is_same<T, unsigned>::value) return 'u';
  if (std::is_same<T, long long>::value) return 'l';
  return '?';
}

// A kernel with packed arguments.
struct Kernel {
  const char* name;
  const char* kinds;
  void (*run)(void**);
};
template <class... A> struct Unpacked {
  static constexpr char kinds[] = {kind_of<A>()..., 0};
  template <void (*F)(A...), size_t... I> static void call(void** arguments, std::integer_sequence<size_t, I...>) {
    F(*static_cast<A*>(arguments[I])...);
  }
  template <void (*F)(A...)> static void run(void** arguments) { call<F>(arguments, std::index_sequence_for<A...>{}); }
};
template <class... A> Unpacked<A...> unpacked(void (*)(A...));

#ifdef SHIM_RACES
inline char race[256];

enum Access { READ, WRITE, ATOMIC, ASKED, COPIED };
SHIM_PLAIN inline void watch(const void* address, size_t bytes, Access access) {
  if (!current) return;
  const char* at = static_cast<const char*>(address);
  const bool dynamic = at >= shared && at < shared + dynamic_bytes;
  if (!dynamic && (at < statics || at >= &_end)) return;
  const size_t first = at - (dynamic ? shared : statics);
  Word* const words = dynamic ? of_dynamic : of_statics;
  const unsigned me = current->number;
  const bool write = access != READ;
  const uint64_t now = current->barriers, in_warp = current->warp_barriers;
  auto found = [&](const char* what, unsigned other) SHIM_PLAIN {
    if (race[0]) return;
    snprintf(race, sizeof race, "%s: thread %u and thread %u of block (%u, %u, %u), byte %zu of its %s shared memory", what, other, me,
             block_index.x, block_index.y, block_index.z, first, dynamic ? "dynamic" : "static");
  };
  for (size_t i = first / 4; i * 4 < first + bytes; ++i) {
    Word& word = words[i];
    if (access == COPIED) word.pending = false;
    if (word.pending) found("an access beside a copy", word.writer);
    const bool recent = word.written == now, both_atomic = access == ATOMIC && word.atomic;
    const bool at_once = word.writer / 32 != me / 32 || word.written_in_warp == in_warp;
    if (recent && !both_atomic && (word.several || (word.writer != me && at_once)))
      found(write ? "two writes" : "a read beside a write", word.writer);
    const bool seen = word.read == now, mine = seen && word.reader / 32 == me / 32, together = mine && word.read_in_warp == in_warp;
    if (write) {
      if (seen && (!mine || word.other_warps || (together && (word.many || word.reader != me)))) found("a write beside a read", word.reader);
      word.several = recent && both_atomic && (word.several || word.writer != me);
      word.written = now;
      word.written_in_warp = in_warp;
      word.writer = me;
      word.atomic = access == ATOMIC;
      word.pending = access == ASKED;
    } else if (seen && !mine) {
      word.other_warps = true;
    } else {
      word.many = together && (word.many || word.reader != me);
      word.other_warps = seen && word.other_warps;
      word.read = now;
      word.read_in_warp = in_warp;
      word.reader = me;
    }
  }
}
#endif

}  // namespace shim

#ifdef SHIM_RACES
#define SHIM_HOOK extern "C" __attribute__((visibility("hidden"), no_sanitize("thread"), used)) inline void
#define SHIM_HOOKS(n)                                                          \
  SHIM_HOOK __tsan_read##n(void* p) { shim::watch(p, n, shim::READ); }         \
  SHIM_HOOK __tsan_write##n(void* p) { shim::watch(p, n, shim::WRITE); }       \
  SHIM_HOOK __tsan_unaligned_read##n(void* p) { shim::watch(p, n, shim::READ); } \
  SHIM_HOOK __tsan_unaligned_write##n(void* p) { shim::watch(p, n, shim::WRITE); }
SHIM_HOOKS(1)
SHIM_HOOKS(2)
SHIM_HOOKS(4)
SHIM_HOOKS(8)
SHIM_HOOKS(16)
SHIM_HOOK __tsan_read_range(void* p, size_t n) { shim::watch(p, n, shim::READ); }
SHIM_HOOK __tsan_write_range(void* p, size_t n) { shim::watch(p, n, shim::WRITE); }
// The names that clang calls.
extern "C" __attribute__((visibility("hidden"), no_sanitize("thread"), used)) inline void* __tsan_memcpy(void* to, const void* from, size_t n) {
  shim::watch(from, n, shim::READ);
  shim::watch(to, n, shim::WRITE);
  return memcpy(to, from, n);
}
extern "C" __attribute__((visibility("hidden"), no_sanitize("thread"), used)) inline void* __tsan_memset(void* to, int byte, size_t n) {
  shim::watch(to, n, shim::WRITE);
  return memset(to, byte, n);
}
SHIM_HOOK __tsan_init() {}
SHIM_HOOK __tsan_func_entry(void*) {}
SHIM_HOOK __tsan_func_exit() {}
#endif
#define SHIM_KERNEL(f) shim::Kernel{#f, decltype(shim::unpacked(f))::kinds, decltype(shim::unpacked(f))::run<f>}

#define threadIdx (shim::current->thread)
#define blockIdx (shim::block_index)
#define blockDim (shim::block_size)
#define gridDim (shim::grid_size)
#define warpSize 32

inline void __syncthreads() { shim::wait(shim::BLOCK); }
inline void __syncwarp(unsigned = 0xffffffffu) { shim::wait(shim::WARP); }
inline void __threadfence() {}
inline void __threadfence_block() {}

SHIM_PLAIN inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes) {
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % bytes != 0) __builtin_trap();
#ifdef SHIM_RACES
  shim::watch(to, bytes, shim::ASKED);
#endif
  if (shim::late_copies) shim::current->copies.push_back({to, from, bytes, shim::current->groups});
  else memcpy(to, from, bytes);
}
SHIM_PLAIN inline void __pipeline_commit() { ++shim::current->groups; }
// Waits until all but the last `ahead` groups have arrived.
SHIM_PLAIN inline void __pipeline_wait_prior(unsigned ahead) {
  std::vector<shim::Copy>& copies = shim::current->copies;
  size_t done = 0;
  for (; done < copies.size() && copies[done].group + ahead < shim::current->groups; ++done) {
    memcpy(copies[done].to, copies[done].from, copies[done].bytes);
#ifdef SHIM_RACES
    shim::watch(copies[done].to, copies[done].bytes, shim::COPIED);
#endif
  }
  copies.erase(copies.begin(), copies.begin() + done);
}

template <class T> T __shfl_sync(unsigned, T x, int lane) { return shim::exchange(x, shim::first_lane() + (lane & 31)); }
template <class T> T __shfl_up_sync(unsigned, T x, unsigned by) {
  const unsigned lane = shim::lane();
  return shim::exchange(x, shim::first_lane() + (lane >= by ? lane - by : lane));
}
template <class T> T __shfl_down_sync(unsigned, T x, unsigned by) {
  const unsigned lane = shim::lane();
  return shim::exchange(x, shim::first_lane() + (lane + by < 32 ? lane + by : lane));
}
template <class T> T __shfl_xor_sync(unsigned, T x, int mask) {
  return shim::exchange(x, shim::first_lane() + (shim::lane() ^ unsigned(mask)));
}
inline unsigned __ballot_sync(unsigned, int predicate) {
  unsigned bits = unsigned(predicate != 0) << shim::lane();
  for (int m = 16; m > 0; m /= 2) bits |= __shfl_xor_sync(0xffffffffu, bits, m);
  return bits;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
SHIM_PLAIN inline int __syncthreads_or(int predicate) {
  static int any;
  __syncthreads();
  any = 0;
  __syncthreads();
  any |= predicate != 0;
  __syncthreads();
  return any;
}

#ifdef SHIM_RACES
#define SHIM_ATOMIC(p) shim::watch(p, sizeof *p, shim::ATOMIC)
#else
#define SHIM_ATOMIC(p) (void)0
#endif
template <class T> SHIM_PLAIN T atomicAdd(T* p, T x) { SHIM_ATOMIC(p); const T old = *p; *p = old + x; return old; }
template <class T> SHIM_PLAIN T atomicMin(T* p, T x) { SHIM_ATOMIC(p); const T old = *p; if (x < old) *p = x; return old; }
template <class T> SHIM_PLAIN T atomicMax(T* p, T x) { SHIM_ATOMIC(p); const T old = *p; if (x > old) *p = x; return old; }
template <class T> SHIM_PLAIN T atomicOr(T* p, T x) { SHIM_ATOMIC(p); const T old = *p; *p = old | x; return old; }
template <class T> SHIM_PLAIN T atomicExch(T* p, T x) { SHIM_ATOMIC(p); const T old = *p; *p = x; return old; }
template <class T> T __ldg(const T* p) { return *p; }
template <class T> T __ldcs(const T* p) { return *p; }
template <class T> void __stcs(T* p, T x) { *p = x; }
template <class T> T min(T a, T b) { return a < b ? a : b; }
template <class T> T max(T a, T b) { return a > b ? a : b; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float __expf(float x) { return expf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
