// Every kernel, in f32 and f64. There are no headers, so that NVRTC needs none. There are no half types or
// tensor cores, so that tests can run the kernels on a CPU, thread by thread.
//
// Letters are those of src/memory/mod.rs: θ η α are the gates of a step; g S U W have the shape of weights; d
// is the width of a head; c is the tokens of a chunk. Matrices are row-major. Sums that end in a norm or a loss
// are joined in f64.
//
//   scan_channels, scan_pair, scan_rows    the recurrences on their own (src/scan/cuda.rs)
//   segment_ends, segment_starts,
//   fused_update                           the memory: S, U and reads, chunk by chunk (src/engine/cuda.rs)
//   attend, attend_backward                attention within chunks
//   product                                small products of matrices, and all where there is no library for them
//   the rest                               what lies between products

#ifndef SHARED_MEMORY
#define SHARED_MEMORY(T, name) \
    extern __shared__ __align__(16) unsigned char shared_bytes[]; \
    T* name = reinterpret_cast<T*>(shared_bytes)
#endif

// Defines both element types of a kernel: NAME_f32 and NAME_f64. A block has at most 256 threads. In f32,
// RESIDENT blocks fit a multiprocessor.
#define BOTH(NAME, RESIDENT, PARAMETERS, ARGUMENTS) \
    namespace in_f32 { typedef float T; extern "C" __global__ void __launch_bounds__(256, RESIDENT) NAME##_f32 PARAMETERS { NAME<T> ARGUMENTS; } } \
    namespace in_f64 { typedef double T; extern "C" __global__ void __launch_bounds__(256, 1) NAME##_f64 PARAMETERS { NAME<T> ARGUMENTS; } }

// Four neighbours, moved 16 bytes at a time.
template <class T> struct alignas(16) Quad { T v[4]; };

template <class T> __device__ T warp_sum(T x) {
    for (int m = 16; m > 0; m /= 2) x += __shfl_xor_sync(0xffffffffu, x, m);
    return x;
}

// Sums four numbers over lanes: lane l gets the sum of number l ÷ 8. The halves of a warp exchange the numbers
// that the other half adds up.
template <class T> __device__ T warp_sums(const T (&x)[4]) {
    const bool upper = threadIdx.x & 16, right = threadIdx.x & 8;
    T a = (upper ? x[2] : x[0]) + __shfl_xor_sync(0xffffffffu, upper ? x[0] : x[2], 16);
    T b = (upper ? x[3] : x[1]) + __shfl_xor_sync(0xffffffffu, upper ? x[1] : x[3], 16);
    a = (right ? b : a) + __shfl_xor_sync(0xffffffffu, right ? a : b, 8);
    for (int m = 4; m > 0; m /= 2) a += __shfl_xor_sync(0xffffffffu, a, m);
    return a;
}

template <class T> __device__ T sigmoid(T x) { return T(1) / (T(1) + exp(-x)); }
__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ inline float exponential(float x) { return expf(x); }
__device__ inline double exponential(double x) { return exp(x); }
// Computes the derivative of x sigmoid(x).
template <class T> __device__ T silu_slope(T x) {
    const T s = sigmoid(x);
    return s * (T(1) + x * (T(1) - s));
}
template <class T> __device__ bool is_finite(T x) { return x - x == T(0); }

// ---- The recurrences on their own -----------------------------------------------------------------------------------

// Steps whose inputs are loaded ahead of their use.
enum { AHEAD = 16 };

// x_t = a_t x_{t−1} + b_t, [batch, steps, channels]: one thread per channel, with neighbours side by side.
// gridDim.y: sequences.
template <class T>
__device__ void scan_channels(const T* gates, unsigned per_step, const T* inputs, const T* initial, T* states,
                              long long steps, long long channels) {
    const long long channel = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (channel >= channels) return;
    const long long sequence = blockIdx.y;
    const T* b = inputs + sequence * steps * channels + channel;
    const T* a = per_step ? gates + sequence * steps : gates + sequence * steps * channels + channel;
    const long long next_gate = per_step ? 1 : channels;
    T* x = states + sequence * steps * channels + channel;
    T state = initial ? initial[sequence * channels + channel] : T(0);
    long long t = 0;
    for (; t + AHEAD <= steps; t += AHEAD) {
        T gate[AHEAD], input[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            gate[i] = a[i * next_gate];
            input[i] = b[i * channels];
        }
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            state = gate[i] * state + input[i];
            x[i * channels] = state;
        }
        a += AHEAD * next_gate;
        b += AHEAD * channels;
        x += AHEAD * channels;
    }
    for (; t < steps; ++t) {
        state = *a * state + *b;
        *x = state;
        a += next_gate;
        b += channels;
        x += channels;
    }
}
BOTH(scan_channels, 1,
     (const T* gates, unsigned per_step, const T* inputs, const T* initial, T* states, long long steps, long long channels),
     (gates, per_step, inputs, initial, states, steps, channels))

// S ← η S − θ g, U ← (1 − α) U + S. Gates are [3, batch, steps]; S and U are [batch, channels], in place. Every
// U is written if requested.
template <class T>
__device__ void scan_pair(const T* gates, const T* surprise, T* momentum, T* update, T* updates, long long steps,
                          long long channels) {
    const long long channel = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (channel >= channels) return;
    const long long sequence = blockIdx.y, of_gate = gridDim.y * steps;
    const T *theta = gates + sequence * steps, *eta = theta + of_gate, *alpha = eta + of_gate;
    const T* g = surprise + sequence * steps * channels + channel;
    T* written = updates ? updates + sequence * steps * channels + channel : nullptr;
    T s = momentum[sequence * channels + channel], u = update[sequence * channels + channel];
    long long t = 0;
    for (; t + AHEAD <= steps; t += AHEAD) {
        T input[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) input[i] = g[i * channels];
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            s = eta[t + i] * s - theta[t + i] * input[i];
            u = (T(1) - alpha[t + i]) * u + s;
            if (written) written[i * channels] = u;
        }
        g += AHEAD * channels;
        if (written) written += AHEAD * channels;
    }
    for (; t < steps; ++t) {
        s = eta[t] * s - theta[t] * *g;
        u = (T(1) - alpha[t]) * u + s;
        if (written) {
            *written = u;
            written += channels;
        }
        g += channels;
    }
    momentum[sequence * channels + channel] = s;
    update[sequence * channels + channel] = u;
}
BOTH(scan_pair, 1,
     (const T* gates, const T* surprise, T* momentum, T* update, T* updates, long long steps, long long channels),
     (gates, surprise, momentum, update, updates, steps, channels))

// x_t = a_t x_{t−1} + b_t along contiguous steps [rows, steps], one block per row. Every thread composes four
// steps into x ↦ a x + b; warps and then the block compose these; the block continues from tile to tile with
// its last state. One row of gates serves `rows_per_gates` rows. Where a product of gates overflows, the tile
// is scanned thread after thread instead.
template <class T>
__device__ void scan_rows(const T* gates, unsigned rows_per_gates, const T* inputs, const T* initial, T* states,
                          long long rows, long long steps) {
    __shared__ T warp_a[32], warp_b[32], carried;
    __shared__ int overflow;
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const bool quads = steps % 4 == 0;
    for (long long row = blockIdx.x; row < rows; row += gridDim.x) {
        const T* a_row = gates + row / rows_per_gates * steps;
        const T* b_row = inputs + row * steps;
        T* x_row = states + row * steps;
        T state = initial ? initial[row] : T(0);
        const long long tile = 4ll * blockDim.x;
        Quad<T> next_a, next_b;
        auto fetch = [&](long long start) {
            const long long t = start + 4ll * threadIdx.x;
            if (quads && t < steps) {
                next_a = *reinterpret_cast<const Quad<T>*>(a_row + t);
                next_b = *reinterpret_cast<const Quad<T>*>(b_row + t);
            } else {
                // Steps past the end do not change the state.
                for (int i = 0; i < 4; ++i) {
                    next_a.v[i] = t + i < steps ? a_row[t + i] : T(1);
                    next_b.v[i] = t + i < steps ? b_row[t + i] : T(0);
                }
            }
        };
        fetch(0);
        for (long long start = 0; start < steps; start += tile) {
            const Quad<T> a = next_a, b = next_b;
            if (start + tile < steps) fetch(start + tile);
            T pa = a.v[0], pb = b.v[0];
#pragma unroll
            for (int i = 1; i < 4; ++i) {
                pb = a.v[i] * pb + b.v[i];
                pa *= a.v[i];
            }
            for (unsigned m = 1; m < 32; m *= 2) {
                const T ea = __shfl_up_sync(0xffffffffu, pa, m), eb = __shfl_up_sync(0xffffffffu, pb, m);
                if (lane >= m) {
                    pb = pa * eb + pb;
                    pa *= ea;
                }
            }
            __syncthreads();
            if (threadIdx.x == 0) overflow = 0;
            if (lane == 31) {
                warp_a[warp] = pa;
                warp_b[warp] = pb;
            }
            __syncthreads();
            if (!is_finite(pa) || !is_finite(pb)) atomicExch(&overflow, 1);
            T before = state, after = state;
            for (unsigned w = 0; w < warps; ++w) {
                if (w == warp) before = after;
                after = warp_a[w] * after + warp_b[w];
            }
            const T ea = __shfl_up_sync(0xffffffffu, pa, 1), eb = __shfl_up_sync(0xffffffffu, pb, 1);
            T x = lane == 0 ? before : ea * before + eb;
            if (!is_finite(after)) atomicExch(&overflow, 1);
            __syncthreads();
            if (overflow) {
                for (unsigned turn = 0; turn < blockDim.x; ++turn) {
                    if (turn == threadIdx.x) {
                        x = turn == 0 ? state : carried;
                        T last = x;
                        for (int i = 0; i < 4; ++i) last = a.v[i] * last + b.v[i];
                        carried = last;
                    }
                    __syncthreads();
                }
                after = carried;
            }
            state = after;
            Quad<T> out;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                x = a.v[i] * x + b.v[i];
                out.v[i] = x;
            }
            const long long t = start + 4ll * threadIdx.x;
            if (quads && t < steps) {
                *reinterpret_cast<Quad<T>*>(x_row + t) = out;
            } else {
                for (int i = 0; i < 4; ++i)
                    if (t + i < steps) x_row[t + i] = out.v[i];
            }
        }
    }
}
BOTH(scan_rows, 1,
     (const T* gates, unsigned rows_per_gates, const T* inputs, const T* initial, T* states, long long rows, long long steps),
     (gates, rows_per_gates, inputs, initial, states, rows, steps))

// ---- Tiles -----------------------------------------------------------------------------------------------------------

// The kernels below work on tiles of 64 × 64, one block of 16 × 16 threads each, 4 × 4 elements per thread:
// rows 4 ty to 4 ty + 3, columns 4 tx to 4 tx + 3. In shared memory, rows are PITCH apart, so that neighbours
// are in different banks.
enum { THREADS = 256, WARPS = 8, TILE = 64 };
template <class T> struct Tiled { enum { VECTOR = 16 / sizeof(T), PITCH = TILE + VECTOR, ELEMENTS = TILE * PITCH }; };

template <class T> __device__ void clear(T (&x)[4][4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) x[i][j] = T(0);
}

template <class T> __device__ const Quad<T>& quad_at(const T* from) { return *reinterpret_cast<const Quad<T>*>(from); }

// sums ← sums + AᵀB over `depth` rows of both, whose rows are LEFT and RIGHT elements apart.
template <int LEFT, int RIGHT, class T>
__device__ void add_outer(T (&sums)[4][4], const T* a, const T* b, unsigned depth) {
#pragma unroll 4
    for (unsigned t = 0; t < depth; ++t) {
        const Quad<T> l = quad_at(a + t * LEFT), r = quad_at(b + t * RIGHT);
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) sums[i][j] += l.v[i] * r.v[j];
    }
}

// sums ← sums + op(A) op(B) over the depth `from` to `to`, in fours; rows are LEFT and RIGHT elements apart. a:
// the first of four rows of op(A). b: the first of four columns of op(B). These are neighbours, or 16 apart
// where B is transposed, which puts them in different banks.
template <bool A_TRANSPOSED, bool B_TRANSPOSED, int LEFT, int RIGHT, class T>
__device__ void add_product(T (&sums)[4][4], const T* a, const T* b, unsigned from, unsigned to) {
#pragma unroll 4
    for (unsigned k = from; k < to; k += 4) {
        Quad<T> x[4], y[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            x[i] = quad_at(A_TRANSPOSED ? a + (k + i) * LEFT : a + i * LEFT + k);
            y[i] = quad_at(B_TRANSPOSED ? b + 16 * i * RIGHT + k : b + (k + i) * RIGHT);
        }
#pragma unroll
        for (int m = 0; m < 4; ++m)
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    sums[i][j] += (A_TRANSPOSED ? x[m].v[i] : x[i].v[m]) * (B_TRANSPOSED ? y[j].v[m] : y[m].v[j]);
    }
}

// Loads four neighbours, of which `there` exist; the others are zero.
template <class T> __device__ Quad<T> quad_of(const T* from, unsigned there, bool vectors) {
    if (vectors && there >= 4) return quad_at(from);
    Quad<T> x;
    for (unsigned i = 0; i < 4; ++i) x.v[i] = i < there ? from[i] : T(0);
    return x;
}
template <class T> __device__ void write_quad(T* to, const T (&x)[4], unsigned there, bool vectors) {
    if (vectors && there >= 4) {
        Quad<T> q;
        for (int i = 0; i < 4; ++i) q.v[i] = x[i];
        *reinterpret_cast<Quad<T>*>(to) = q;
    } else {
        for (unsigned i = 0; i < 4; ++i)
            if (i < there) to[i] = x[i];
    }
}
__device__ inline unsigned left_of(unsigned all, unsigned start) { return all > start ? all - start : 0; }

#if !defined(__CUDA_ARCH__)
// Used in tests.
template <int BYTES> void copy_async(void* to, const void* from) { __pipeline_memcpy_async(to, from, BYTES); }
inline void end_piece() { __pipeline_commit(); }
inline void await_piece(unsigned ahead) { __pipeline_wait_prior(ahead); }
#elif __CUDA_ARCH__ >= 800
// Copies to shared memory without registers.
template <int BYTES> __device__ void copy_async(void* to, const void* from) {
    const unsigned place = static_cast<unsigned>(__cvta_generic_to_shared(to));
    if (BYTES == 16) asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(place), "l"(from) : "memory");
    else asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(place), "l"(from), "n"(BYTES) : "memory");
}
__device__ inline void end_piece() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for all but the last `ahead` pieces.
__device__ inline void await_piece(unsigned ahead) {
    if (ahead >= 2) asm volatile("cp.async.wait_group 2;" ::: "memory");
    else if (ahead == 1) asm volatile("cp.async.wait_group 1;" ::: "memory");
    else asm volatile("cp.async.wait_group 0;" ::: "memory");
}
#else
template <int BYTES> __device__ void copy_async(void* to, const void* from) {
    for (int i = 0; i < BYTES; ++i) static_cast<char*>(to)[i] = static_cast<const char*>(from)[i];
}
__device__ inline void end_piece() {}
__device__ inline void await_piece(unsigned) {}
#endif

// Starts loading V neighbours, or zeros.
template <int V, class T> __device__ void ask(T* to, const T* from, bool there) {
    if (there) copy_async<V * sizeof(T)>(to, from);
    else
        for (int i = 0; i < V; ++i) to[i] = T(0);
}

// Starts loading a tile with rows `stride` elements apart: existing rows and columns, and zeros for the others.
template <int V, class T>
__device__ void ask_quads(T* to, const T* from, long long stride, unsigned rows, unsigned columns) {
    enum { APART = THREADS / (TILE / V) };
    const unsigned first = threadIdx.x / (TILE / V), k = threadIdx.x % (TILE / V) * V;
    to += first * Tiled<T>::PITCH + k;
    from += first * stride + k;
#pragma unroll 2
    for (unsigned row = first; row < TILE; row += APART) {
        ask<V>(to, from, row < rows && k < columns);
        to += APART * Tiled<T>::PITCH;
        from += APART * stride;
    }
}
template <class T>
__device__ void ask_tile(T* to, const T* from, long long stride, unsigned rows, unsigned columns, bool vectors) {
    if (vectors) ask_quads<Tiled<T>::VECTOR>(to, from, stride, rows, columns);
    else ask_quads<1>(to, from, stride, rows, columns);
}

// ---- The memory ------------------------------------------------------------------------------------------------------

// A tile of a weight in registers.
template <class T> struct Weight {
    unsigned ty, tx;
    T g[4][4], s[4][4], u[4][4];

    // S ← η S − θ g, U ← (1 − α) U + S.
    __device__ void step(T theta, T eta, T alpha) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                s[i][j] = eta * s[i][j] - theta * g[i][j];
                u[i][j] = (T(1) - alpha) * u[i][j] + s[i][j];
            }
    }
};

// A sum of squares that all vanished counts as zero only if the 4 × 4 numbers are zero.
template <class T, class F> __device__ void mark_vanished(T& sum, F number) {
    if (sum != T(0)) return;
    bool any = false;
#pragma unroll
    for (int i = 0; i < 16; ++i) any |= number(i / 4, i % 4) != T(0);
    if (any) sum = T(sizeof(T) == 4 ? 1e-44 : 1e-322);
}

// Computes S and U of a head at the end of all time segments but the last, as if they had started from zero.
// Each result is stored at the place of the next segment's start. updates, momenta: [heads, segments,
// elements]. transitions is [heads, segments, 3]: the true S after a segment is larger by p S₀, and the true U
// by q U₀ + r S₀. Factors are as in `fused_update`; keys and d_qkv are those of the first `first` weights,
// which lie side by side.
// grid: (weights × tiles, heads, segments − 1)
template <class T>
__device__ void segment_ends(const T* steps, const T* keys, const T* d_qkv, const T* activated, const T* d_output, T* updates,
                             T* momenta, T* transitions, unsigned elements, unsigned d, unsigned c, unsigned chunks,
                             unsigned each, unsigned segments, unsigned first) {
    enum { AT_ONCE = 16 };
    __shared__ Quad<T> left[AT_ONCE][TILE / 4], right[AT_ONCE][TILE / 4];
    const unsigned across = (d + TILE - 1) / TILE, weight = blockIdx.x / (across * across);
    const unsigned row0 = blockIdx.x / across % across * TILE, col0 = blockIdx.x % across * TILE;
    const unsigned width = weight < first ? first * d : d;
    const long long head = blockIdx.y, segment = blockIdx.z, token = (head * chunks + segment * each) * c;
    const T* a = (weight < first ? keys : activated) + token * d + row0;
    const T* b = (weight < first ? d_qkv + weight * d : d_output) + token * width + col0;
    const T* gates = steps + (head * chunks + segment * each) * 3;
    const unsigned tokens = each * c;
    Weight<T> tile;
    tile.ty = threadIdx.x / 16;
    tile.tx = threadIdx.x % 16;
    clear(tile.g);
    clear(tile.s);
    clear(tile.u);
    T p = T(1), q = T(1), r = T(0);
    const bool vectors = d % 4 == 0;
    const unsigned staged = threadIdx.x / 16, quad = threadIdx.x % 16 * 4;
    Quad<T> next_a, next_b;
    auto fetch = [&](unsigned start) {
        const unsigned t = start + staged;
        next_a = quad_of(a + (long long)t * d + quad, t < tokens ? left_of(d, row0 + quad) : 0, vectors);
        next_b = quad_of(b + (long long)t * width + quad, t < tokens ? left_of(d, col0 + quad) : 0, vectors);
    };
    fetch(0);
    unsigned in_chunk = 0;
    for (unsigned start = 0; start < tokens; start += AT_ONCE) {
        __syncthreads();
        left[staged][quad / 4] = next_a;
        right[staged][quad / 4] = next_b;
        __syncthreads();
        if (start + AT_ONCE < tokens) fetch(start + AT_ONCE);
        const unsigned number = tokens - start < AT_ONCE ? tokens - start : AT_ONCE;
        for (unsigned t = 0; t < number;) {
            const unsigned more = number - t < c - in_chunk ? number - t : c - in_chunk;
            add_outer<TILE, TILE>(tile.g, left[t][tile.ty].v, right[t][tile.tx].v, more);
            t += more;
            in_chunk += more;
            if (in_chunk < c) break;
            in_chunk = 0;
            tile.step(gates[0], gates[1], gates[2]);
            clear(tile.g);
            p *= gates[1];
            q *= T(1) - gates[2];
            r = (T(1) - gates[2]) * r + p;
            gates += 3;
        }
    }
    const long long place = (head * segments + segment + 1) * elements + (long long)weight * d * d;
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
        const unsigned row = row0 + 4 * tile.ty + i, col = col0 + 4 * tile.tx, there = row < d ? left_of(d, col) : 0;
        write_quad(updates + place + (long long)row * d + col, tile.u[i], there, vectors);
        write_quad(momenta + place + (long long)row * d + col, tile.s[i], there, vectors);
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        T* to = transitions + (head * segments + segment) * 3;
        to[0] = p;
        to[1] = q;
        to[2] = r;
    }
}
BOTH(segment_ends, 2,
     (const T* steps, const T* keys, const T* d_qkv, const T* activated, const T* d_output, T* updates, T* momenta,
      T* transitions, unsigned elements, unsigned d, unsigned c, unsigned chunks, unsigned each, unsigned segments, unsigned first),
     (steps, keys, d_qkv, activated, d_output, updates, momenta, transitions, elements, d, c, chunks, each, segments, first))

// Computes the start of every time segment, in place: from the first one's start, [heads, elements], segment by
// segment. One thread per element.
template <class T>
__device__ void segment_starts(const T* update, const T* momentum, const T* transitions, T* updates, T* momenta,
                               unsigned elements, unsigned segments) {
    const long long head = blockIdx.y, i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= elements) return;
    const long long first = head * segments * elements + i;
    const T* of = transitions + head * segments * 3;
    T u = update[head * elements + i], s = momentum[head * elements + i];
    updates[first] = u;
    momenta[first] = s;
#pragma unroll 4
    for (unsigned segment = 1; segment < segments; ++segment, of += 3) {
        const long long place = first + (long long)segment * elements;
        // Products of gates may overflow where the state they multiply is zero.
        const T of_s = s == T(0) ? T(0) : of[2] * s;
        u = (u == T(0) ? T(0) : of[1] * u) + (of_s + updates[place]);
        s = (s == T(0) ? T(0) : of[0] * s) + momenta[place];
        updates[place] = u;
        momenta[place] = s;
    }
}
BOTH(segment_starts, 1,
     (const T* update, const T* momentum, const T* transitions, T* updates, T* momenta, unsigned elements, unsigned segments),
     (update, momentum, transitions, updates, momenta, elements, segments))

// The fused update of a layer of the memory through the chunks. Each block has a tile of a weight of a head,
// with S, U and W in registers and W + U in shared memory. Per chunk it
//   reads rows with the current W + U: queries, and keys if the loss before is requested,
//   forms g = AᵀB from the chunk's factors, updates S and U, sums the squares of g, S, U, W + U,
//   reads keys again if the loss after is requested.
// It transfers factors and reads, and matrices of weight shape once per segment. Operands come in pieces
// through a ring of buffers, and loading starts some pieces ahead. A tile's reads are sums over its own rows.
// Where a weight has several rows of tiles, each writes a part of its own, `of_part` elements after the
// previous one (`join_reads`).
//
// Chunks are divided into time segments of `each`, which run side by side; the last one runs to the end. The
// recurrences are linear, so the start of a segment is known before it runs (segment_ends, segment_starts).
// Without steps, segments are read with the same weights.
//
// grid: (weights × tiles, heads of all sequences, segments)
//
// `base`: W (weights, d, d) of all heads. update, momentum: [heads, segments, elements] before each segment;
// without steps [heads, elements]. new_update, new_momentum: after the last segment, [heads, elements]. first:
// the layer's first weight; its products are together `width` wide. steps: [heads, chunks, 3]. a: (heads,
// chunks c, d); b: (heads, chunks c, width); rows and reads likewise. There may be more chunks of queries.
// norms: [heads, chunks, tiles of all weights, 4]. ring: 2 to 4.
//
// Shared memory, in elements; as in src/engine/cuda/buffers.rs:  W + U: TILE²    ring × PIECE
template <class T> struct FusedUpdate : Weight<T> {
    enum { VECTOR = Tiled<T>::VECTOR, PITCH = Tiled<T>::PITCH, PIECE = Tiled<T>::ELEMENTS, SLICE = 32 };
    enum Part { BEFORE, STORE, AFTER };
    // A piece of a chunk: up to TILE rows to read, or SLICE tokens of the factors and the chunk's gates.
    struct Place { unsigned chunk, part, at; };

    const T *steps, *a, *b, *queries, *keys_before, *keys_after;
    T *query_reads, *reads_before, *reads_after, *norms;
    // Existing rows and columns of the tile.
    unsigned rows_there, columns_there;
    unsigned d, c, width, chunks, query_chunks, end, all_tiles;
    T scale;
    T* read_weights;
    T w[4][4];

    __device__ unsigned rows(const Place& p) const {
        const bool stored = p.chunk < chunks;
        if (p.part == BEFORE) return (p.chunk < query_chunks ? c : 0) + (stored && keys_before ? c : 0);
        return stored && (p.part == STORE || keys_after) ? c : 0;
    }

    // Advances to the next existing part, unless the current one exists.
    __device__ void settle(Place& p) const {
        while (p.chunk < end && rows(p) == 0) {
            if (++p.part > AFTER) {
                p.part = BEFORE;
                ++p.chunk;
            }
        }
    }

    __device__ void advance(Place& p) const {
        p.at += p.part == STORE ? SLICE : TILE;
        if (p.at < rows(p)) return;
        p.at = 0;
        if (++p.part > AFTER) {
            p.part = BEFORE;
            ++p.chunk;
        }
        settle(p);
    }

    // A row to read, and the destination of its products.
    __device__ const T* input(const Place& p, unsigned row) const {
        if (p.part == AFTER) return keys_after + ((long long)p.chunk * c + row) * d;
        const unsigned of_queries = p.chunk < query_chunks ? c : 0;
        return row < of_queries ? queries + ((long long)p.chunk * c + row) * d
                                : keys_before + ((long long)p.chunk * c + row - of_queries) * d;
    }
    __device__ T* output(const Place& p, unsigned row) const {
        if (p.part == AFTER) return reads_after + ((long long)p.chunk * c + row) * width;
        const unsigned of_queries = p.chunk < query_chunks ? c : 0;
        return row < of_queries ? query_reads + ((long long)p.chunk * c + row) * width
                                : reads_before + ((long long)p.chunk * c + row - of_queries) * width;
    }

    template <int V> __device__ void ask_piece(const Place& p, T* staged) const {
        const unsigned left = rows(p) - p.at;
        if (p.part == STORE) {
            const unsigned tokens = left < SLICE ? left : SLICE;
            const long long token = (long long)p.chunk * c + p.at;
            for (unsigned i = threadIdx.x; i < tokens * (TILE / V); i += THREADS) {
                const unsigned t = i / (TILE / V), k = i % (TILE / V) * V;
                ask<V>(staged + t * TILE + k, a + (token + t) * d + k, k < rows_there);
                ask<V>(staged + (SLICE + t) * TILE + k, b + (token + t) * width + k, k < columns_there);
            }
            if (threadIdx.x < 3) ask<1>(staged + 2 * SLICE * TILE + threadIdx.x, steps + p.chunk * 3 + threadIdx.x, true);
        } else {
            // Rows that do not exist may hold anything, because their products are not stored.
            const unsigned number = left < TILE ? left : TILE;
            for (unsigned i = threadIdx.x; i < number * (TILE / V); i += THREADS) {
                const unsigned row = i / (TILE / V), k = i % (TILE / V) * V;
                ask<V>(staged + row * PITCH + k, input(p, p.at + row) + k, k < rows_there);
            }
        }
    }

    // Y ← X (W + U) for up to ROWS rows. If they are few, groups of threads take a part of the depth each and
    // join the parts.
    template <int ROWS> __device__ void read(const Place& p, T* staged, unsigned number) {
        // This space is free here: a chunk's pieces of gradients follow each other, with no read between them.
        T(&sums)[4][4] = this->g;
        clear(sums);
        const unsigned row = this->ty % (ROWS / 4) * 4, part = this->ty / (ROWS / 4);
        add_product<false, false, PITCH, TILE>(sums, staged + row * PITCH, read_weights + 4 * this->tx, part * ROWS, (part + 1) * ROWS);
        const bool vectors = d % 4 == 0;
        if (ROWS == TILE) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const unsigned there = row + i < number ? left_of(columns_there, 4 * this->tx) : 0;
                if (there > 0) write_quad(output(p, p.at + row + i) + 4 * this->tx, sums[i], there, vectors);
            }
            return;
        }
        // Overwrites the rows that were read.
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 4; ++i) write_quad(staged + (part * ROWS + row + i) * TILE + 4 * this->tx, sums[i], 4, true);
        __syncthreads();
        for (unsigned i = threadIdx.x; i < number * TILE; i += THREADS) {
            T sum = staged[i];
#pragma unroll
            for (int from = 1; from < TILE / ROWS; ++from) sum += staged[from * ROWS * TILE + i];
            if (i % TILE < columns_there) output(p, p.at + i / TILE)[i % TILE] = sum;
        }
    }

    __device__ void read(const Place& p, T* staged) {
        const unsigned left = rows(p) - p.at;
        if (left > 32) read<64>(p, staged, left < TILE ? left : TILE);
        else if (left > 16) read<32>(p, staged, left);
        else if (left > 4) read<16>(p, staged, left);
        else read<4>(p, staged, left);
    }

    // Returns whether the chunk is done. squares: those of the thread's warp.
    __device__ bool store(const Place& p, const T* staged, T* squares) {
        if (p.at == 0) clear(this->g);
        const unsigned left = c - p.at;
        const T *of_a = staged + 4 * this->ty, *of_b = staged + SLICE * TILE + 4 * this->tx;
        add_outer<TILE, TILE>(this->g, of_a, of_b, left < SLICE ? left : SLICE);
        if (left > SLICE) return false;
        const T* gates = staged + 2 * SLICE * TILE;
        this->step(gates[0], gates[1], gates[2]);
        T sums[4] = {};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            T r[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                r[j] = w[i][j] + this->u[i][j];
                const T of_g = this->g[i][j] * scale, of_s = this->s[i][j] * scale;
                const T of_u = this->u[i][j] * scale, of_r = r[j] * scale;
                sums[0] += of_g * of_g;
                sums[1] += of_s * of_s;
                sums[2] += of_u * of_u;
                sums[3] += of_r * of_r;
            }
            write_quad(read_weights + (4 * this->ty + i) * TILE + 4 * this->tx, r, 4, true);
        }
        mark_vanished(sums[0], [&](int i, int j) { return this->g[i][j]; });
        mark_vanished(sums[1], [&](int i, int j) { return this->s[i][j]; });
        mark_vanished(sums[2], [&](int i, int j) { return this->u[i][j]; });
        mark_vanished(sums[3], [&](int i, int j) { return w[i][j] + this->u[i][j]; });
        const T sum = warp_sums(sums);
        if (threadIdx.x % 8 == 0) squares[threadIdx.x % 32 / 8] = sum;
        return true;
    }

    __device__ void run(unsigned start, T* staged, unsigned ring) {
        // Sums of squares of the last two chunks, which are joined after the next barrier.
        __shared__ T squares[2][WARPS][4];
        const bool vectors = d % VECTOR == 0;
        const unsigned pieces_ahead = ring - 2, warp = threadIdx.x / 32;
        Place here = {start, BEFORE, 0};
        settle(here);
        Place next = here;
        unsigned asked = 0, used = 0, done = chunks;
        auto ask_next = [&] {
            if (next.chunk < end) {
                T* to = staged + asked * PIECE;
                if (vectors) ask_piece<VECTOR>(next, to);
                else ask_piece<1>(next, to);
                asked = asked + 1 == ring ? 0 : asked + 1;
                advance(next);
            }
            end_piece();
        };
        auto join_squares = [&] {
            if (done < chunks && threadIdx.x < 4) {
                T sum = squares[done % 2][0][threadIdx.x];
                for (int w = 1; w < WARPS; ++w) sum += squares[done % 2][w][threadIdx.x];
                norms[(long long)done * all_tiles * 4 + threadIdx.x] = sum;
            }
            done = chunks;
        };
        for (unsigned ahead = 0; here.chunk < end;) {
            // Loads into the buffer of the piece before last, which all threads have finished.
            ask_next();
            if (ahead < pieces_ahead) {
                ++ahead;
                continue;
            }
            await_piece(pieces_ahead);
            __syncthreads();
            join_squares();
            T* piece = staged + used * PIECE;
            if (here.part != STORE) read(here, piece);
            else if (store(here, piece, squares[here.chunk % 2][warp])) done = here.chunk;
            used = used + 1 == ring ? 0 : used + 1;
            advance(here);
        }
        __syncthreads();
        join_squares();
    }
};

template <class T>
__device__ void fused_update(const T* base, const T* update, const T* momentum, T* new_update, T* new_momentum, unsigned elements,
                             unsigned d, unsigned first, unsigned width, unsigned c, unsigned chunks, const T* steps, const T* a,
                             const T* b, unsigned query_chunks, const T* queries, T* query_reads, const T* keys_before,
                             T* reads_before, const T* keys_after, T* reads_after, long long of_query_part, long long of_key_part,
                             T* norms, T scale, unsigned ring, unsigned each) {
    SHARED_MEMORY(T, memory);
    const unsigned across = (d + TILE - 1) / TILE, in_layer = blockIdx.x / (across * across), weight = first + in_layer;
    const unsigned part = blockIdx.x / across % across, row0 = part * TILE, col0 = blockIdx.x % across * TILE;
    const unsigned all = chunks > query_chunks ? chunks : query_chunks, from = blockIdx.z * each;
    const bool last = blockIdx.z + 1 == gridDim.z, vectors = d % 4 == 0;
    const long long head = blockIdx.y, column = in_layer * d + col0, stored = head * chunks * c, asked = head * query_chunks * c;
    const long long before = (chunks > 0 ? head * gridDim.z + blockIdx.z : head) * elements + (long long)weight * d * d;
    FusedUpdate<T> my;
    my.ty = threadIdx.x / 16;
    my.tx = threadIdx.x % 16;
    my.steps = steps + head * chunks * 3;
    my.a = a + stored * d + row0;
    my.b = b + stored * width + column;
    my.queries = queries + asked * d + row0;
    my.query_reads = query_reads + part * of_query_part + asked * width + column;
    my.keys_before = keys_before ? keys_before + stored * d + row0 : nullptr;
    my.reads_before = reads_before + part * of_key_part + stored * width + column;
    my.keys_after = keys_after ? keys_after + stored * d + row0 : nullptr;
    my.reads_after = reads_after + part * of_key_part + stored * width + column;
    my.all_tiles = elements / (d * d) * (across * across);
    my.norms = norms + (head * chunks * my.all_tiles + first * (across * across) + blockIdx.x) * 4;
    my.rows_there = d - row0 < TILE ? d - row0 : TILE;
    my.columns_there = d - col0 < TILE ? d - col0 : TILE;
    my.d = d;
    my.c = c;
    my.width = width;
    my.chunks = chunks;
    my.query_chunks = query_chunks;
    my.end = last ? all : from + each;
    my.scale = scale;
    my.read_weights = memory;
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
        const unsigned row = row0 + 4 * my.ty + i, col = col0 + 4 * my.tx, there = row < d ? left_of(d, col) : 0;
        const long long place = (long long)row * d + col;
        const Quad<T> w = quad_of(base + (long long)weight * d * d + place, there, vectors);
        const Quad<T> u = quad_of(update + before + place, there, vectors);
        const Quad<T> s = quad_of(momentum + before + place, chunks > 0 ? there : 0, vectors);
        T r[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            my.w[i][j] = w.v[j];
            my.u[i][j] = u.v[j];
            my.s[i][j] = s.v[j];
            r[j] = w.v[j] + u.v[j];
        }
        write_quad(memory + (4 * my.ty + i) * TILE + 4 * my.tx, r, 4, true);
    }
    my.run(from, memory + TILE * TILE, ring);
    if (chunks == 0 || !last) return;
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
        const unsigned row = row0 + 4 * my.ty + i, col = col0 + 4 * my.tx, there = row < d ? left_of(d, col) : 0;
        const long long place = head * elements + ((long long)weight * d + row) * d + col;
        write_quad(new_update + place, my.u[i], there, vectors);
        write_quad(new_momentum + place, my.s[i], there, vectors);
    }
}
BOTH(fused_update, 2,
     (const T* base, const T* update, const T* momentum, T* new_update, T* new_momentum, unsigned elements, unsigned d,
      unsigned first, unsigned width, unsigned c, unsigned chunks, const T* steps, const T* a, const T* b, unsigned query_chunks,
      const T* queries, T* query_reads, const T* keys_before, T* reads_before, const T* keys_after, T* reads_after,
      long long of_query_part, long long of_key_part, T* norms, T scale, unsigned ring, unsigned each),
     (base, update, momentum, new_update, new_momentum, elements, d, first, width, c, chunks, steps, a, b, query_chunks, queries,
      query_reads, keys_before, reads_before, keys_after, reads_after, of_query_part, of_key_part, norms, scale, ring, each))

// Sums the parts [parts, count] that rows of tiles have read, for up to three readers (blockIdx.y).
template <class T>
__device__ void join_reads(const T* of_queries, T* query_reads, long long queries, const T* before, T* reads_before,
                           const T* after, T* reads_after, long long keys, unsigned parts) {
    const T* from = blockIdx.y == 0 ? of_queries : blockIdx.y == 1 ? before : after;
    T* to = blockIdx.y == 0 ? query_reads : blockIdx.y == 1 ? reads_before : reads_after;
    const long long count = blockIdx.y == 0 ? queries : keys;
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < count; i += (long long)gridDim.x * blockDim.x) {
        T sum = from[i];
        for (unsigned part = 1; part < parts; ++part) sum += from[part * count + i];
        to[i] = sum;
    }
}
BOTH(join_reads, 1,
     (const T* of_queries, T* query_reads, long long queries, const T* before, T* reads_before, const T* after, T* reads_after,
      long long keys, unsigned parts),
     (of_queries, query_reads, queries, before, reads_before, after, reads_after, keys, parts))

// Computes norms per weight from sums of squares of tiles: parts [count, tiles, 4] → norms [count, 4].
// out_of_range[0] becomes 0 if a sum is past the range of T, and out_of_range[1] if a nonzero sum is not above
// `least`.
template <class T>
__device__ void weight_norms(const T* parts, double* norms, unsigned* out_of_range, long long count, unsigned tiles, double least) {
    const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i >= count * 4) return;
    const T* part = parts + i / 4 * tiles * 4 + i % 4;
    double sum = 0;
#pragma unroll 4
    for (unsigned tile = 0; tile < tiles; ++tile) sum += part[tile * 4];
    norms[i] = sqrt(sum);
    if (sum > least ? !is_finite(sum) : sum > 0) out_of_range[sum > 1 ? 0 : 1] = 0;
}
BOTH(weight_norms, 1,
     (const T* parts, double* norms, unsigned* out_of_range, long long count, unsigned tiles, double least),
     (parts, norms, out_of_range, count, tiles, least))

// ---- Attention within chunks of at most TILE tokens --------------------------------------------------------------------

// A block has as many whole chunks as a tile holds, and TILE of the d columns. Scores are in rows 4 ty + i and
// columns tx + 16 j.
// grid: (chunks ÷ chunks per tile, column tiles)
template <class T> struct Chunks {
    enum { PITCH = Tiled<T>::PITCH };
    const T* qkv;
    long long first_row;
    unsigned c, d, rows, tx, ty, column;
    bool vectors;

    __device__ Chunks(const T* all_qkv, long long chunks, unsigned c, unsigned d) : c(c), d(d) {
        const unsigned at_once = TILE / c;
        const long long first = blockIdx.x * (long long)at_once;
        first_row = first * c;
        qkv = all_qkv + first_row * 3 * d;
        rows = (chunks - first < at_once ? unsigned(chunks - first) : at_once) * c;
        tx = threadIdx.x % 16;
        ty = threadIdx.x / 16;
        column = blockIdx.y * TILE;
        vectors = d % 4 == 0;
    }

    // TILE columns of q, k or v.
    __device__ void ask(unsigned which, unsigned from, T* to) const {
        ask_tile(to, qkv + which * d + from, 3ll * d, rows, left_of(d, from), vectors);
    }
    __device__ unsigned row(int i) const { return 4 * ty + i; }
    __device__ unsigned key(int j) const { return tx + 16 * j; }
    // Start of a row's chunk; past all keys for a row that does not exist.
    __device__ unsigned start(unsigned row) const { return row < rows ? row / c * c : TILE; }
    __device__ T* place(T* of, unsigned row) const { return of + (first_row + row) * d + column + 4 * tx; }
    // Existing columns of the tile.
    __device__ unsigned there(unsigned row) const { return row < rows ? left_of(d, column + 4 * tx) : 0; }
};

// Recomputes products over a tile that came out non-finite, over the rows of their own chunks alone: the
// weights of other chunks' rows are 0, and 0 times a non-finite value is NaN. weight(row, k): of row k. This is
// rare, and kept small because a kernel's code must be loaded.
template <class T, class F>
__device__ void keep_apart(T (&sums)[4][4], const Chunks<T>& my, const T* rows, F weight) {
    bool finite = true;
    unsigned start[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        start[i] = my.start(my.row(i));
#pragma unroll
        for (int j = 0; j < 4; ++j) finite &= is_finite(sums[i][j]);
    }
    if (finite) return;
    clear(sums);
#pragma unroll 1
    for (unsigned k = 0; k < my.rows; ++k) {
        const Quad<T> x = quad_at(rows + k * Tiled<T>::PITCH + 4 * my.tx);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (k < start[i] || k >= start[i] + my.c) continue;
            const T w = weight(my.row(i), k);
#pragma unroll
            for (int j = 0; j < 4; ++j) sums[i][j] += w * x.v[j];
        }
    }
}

// Reduces over a row's scores: those of a thread and of the 15 beside it.
template <class T> __device__ T sum_of_row(T x) {
    for (int m = 8; m > 0; m /= 2) x += __shfl_xor_sync(0xffffffffu, x, m);
    return x;
}
template <class T> __device__ T largest_of_row(T x) {
    for (int m = 8; m > 0; m /= 2) {
        const T other = __shfl_xor_sync(0xffffffffu, x, m);
        x = other > x ? other : x;
    }
    return x;
}

// Computes silu(P v) with P = causal softmax(q kᵀ · scale), from [q k v] (chunks c, 3 d). P (chunks c, c) and P
// v (chunks c, d) are written if requested.
//
// Shared memory: three tiles.
template <class T>
__device__ void attend(const T* qkv, T* softmax, T* hidden, T* activated, long long chunks, unsigned c, unsigned d, T scale) {
    SHARED_MEMORY(T, left);
    enum { PITCH = Tiled<T>::PITCH };
    T *right = left + Tiled<T>::ELEMENTS, *values = right + Tiled<T>::ELEMENTS;
    const Chunks<T> my(qkv, chunks, c, d);
    T sums[4][4];
    clear(sums);
    for (unsigned k = 0; k < d; k += TILE) {
        if (k > 0) __syncthreads();
        my.ask(0, k, left);
        my.ask(1, k, right);
        end_piece();
        if (k == 0) {
            my.ask(2, my.column, values);
            end_piece();
        }
        await_piece(k == 0);
        __syncthreads();
        add_product<false, true, PITCH, PITCH>(sums, left + 4 * my.ty * PITCH, right + my.tx * PITCH, 0, TILE);
    }
    // P replaces q: a warp has whole rows of either to itself.
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const unsigned row = my.row(i), start = my.start(row);
        T largest = T(-1) / T(0);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            sums[i][j] *= scale;
            if (my.key(j) >= start && my.key(j) <= row && sums[i][j] > largest) largest = sums[i][j];
        }
        largest = largest_of_row(largest);
        T sum = 0;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const bool seen = my.key(j) >= start && my.key(j) <= row;
            sums[i][j] = seen ? exponential(sums[i][j] - largest) : T(0);
            sum += sums[i][j];
        }
        sum = sum_of_row(sum);
        const T inverse = start < TILE ? T(1) / sum : T(0);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const unsigned key = my.key(j);
            const T p = sums[i][j] * inverse;
            left[row * PITCH + key] = p;
            const bool kept = softmax && my.column == 0 && key >= start && key < start + c;
            if (kept) softmax[(my.first_row + row) * c + key - start] = p;
        }
    }
    await_piece(0);
    __syncthreads();
    clear(sums);
    add_product<false, false, PITCH, PITCH>(sums, left + 4 * my.ty * PITCH, values + 4 * my.tx, 0, TILE);
    keep_apart(sums, my, values, [=](unsigned row, unsigned k) { return left[row * PITCH + k]; });
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const unsigned row = my.row(i), there = my.there(row);
        if (hidden) write_quad(my.place(hidden, row), sums[i], there, my.vectors);
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] *= sigmoid(sums[i][j]);
        write_quad(my.place(activated, row), sums[i], there, my.vectors);
    }
}
BOTH(attend, 2, (const T* qkv, T* softmax, T* hidden, T* activated, long long chunks, unsigned c, unsigned d, T scale),
     (qkv, softmax, hidden, activated, chunks, c, d, scale))

// Computes cotangents of [q k v] from those of silu(P v), `d_activated`.
//
// Shared memory: five tiles.
template <class T>
__device__ void attend_backward(const T* qkv, const T* softmax, const T* hidden, const T* d_activated, T* d_qkv,
                                long long chunks, unsigned c, unsigned d, T scale) {
    SHARED_MEMORY(T, d_hidden);
    enum { PITCH = Tiled<T>::PITCH, ELEMENTS = Tiled<T>::ELEMENTS };
    // d_scores replaces v.
    T *values = d_hidden + ELEMENTS, *d_scores = values, *keys = values + ELEMENTS, *queries = keys + ELEMENTS, *p = queries + ELEMENTS;
    const Chunks<T> my(qkv, chunks, c, d);
    const unsigned tiles = gridDim.y;
    T sums[4][4];
    clear(sums);
    for (unsigned tile = 1; tile <= tiles; ++tile) {
        // The block's own columns come last, because d_hidden is needed again for them.
        const unsigned k = (blockIdx.y + tile) % tiles * TILE;
        if (tile > 1) __syncthreads();
        my.ask(2, k, values);
        end_piece();
        if (tile == 1) {
            my.ask(1, my.column, keys);
            my.ask(0, my.column, queries);
            end_piece();
        }
        Quad<T> x[4], y[4];
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) {
            const unsigned row = my.ty + 16 * i, column = k + 4 * my.tx, there = row < my.rows ? left_of(d, column) : 0;
            const long long place = (my.first_row + row) * d + column;
            x[i] = quad_of(hidden + place, there, my.vectors);
            y[i] = quad_of(d_activated + place, there, my.vectors);
        }
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) {
#pragma unroll
            for (int j = 0; j < 4; ++j) y[i].v[j] *= silu_slope(x[i].v[j]);
            *reinterpret_cast<Quad<T>*>(d_hidden + (my.ty + 16 * i) * PITCH + 4 * my.tx) = y[i];
        }
        await_piece(tile == 1);
        __syncthreads();
        add_product<false, true, PITCH, PITCH>(sums, d_hidden + 4 * my.ty * PITCH, values + my.tx * PITCH, 0, TILE);
    }
    await_piece(0);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const unsigned row = my.row(i), start = my.start(row);
        T of_p[4], dot = 0;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const unsigned key = my.key(j);
            const bool seen = key >= start && key <= row;
            of_p[j] = seen ? softmax[(my.first_row + row) * c + key - start] : T(0);
            if (seen) dot += sums[i][j] * of_p[j];
        }
        dot = sum_of_row(dot);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const unsigned key = my.key(j);
            const bool seen = key >= start && key <= row;
            p[row * PITCH + key] = of_p[j];
            d_scores[row * PITCH + key] = seen ? of_p[j] * (sums[i][j] - dot) * scale : T(0);
        }
    }
    __syncthreads();
    auto write = [&](unsigned which) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            T* to = d_qkv + ((my.first_row + my.row(i)) * 3 + which) * d + my.column + 4 * my.tx;
            write_quad(to, sums[i], my.there(my.row(i)), my.vectors);
        }
        clear(sums);
    };
    clear(sums);
    add_product<false, false, PITCH, PITCH>(sums, d_scores + 4 * my.ty * PITCH, keys + 4 * my.tx, 0, TILE);
    keep_apart(sums, my, keys, [=](unsigned row, unsigned k) { return d_scores[row * PITCH + k]; });
    write(0);
    add_outer<PITCH, PITCH>(sums, d_scores + 4 * my.ty, queries + 4 * my.tx, my.rows);
    keep_apart(sums, my, queries, [=](unsigned row, unsigned k) { return d_scores[k * PITCH + row]; });
    write(1);
    add_outer<PITCH, PITCH>(sums, p + 4 * my.ty, d_hidden + 4 * my.tx, my.rows);
    keep_apart(sums, my, d_hidden, [=](unsigned row, unsigned k) { return p[k * PITCH + row]; });
    write(2);
}
BOTH(attend_backward, 2,
     (const T* qkv, const T* softmax, const T* hidden, const T* d_activated, T* d_qkv, long long chunks, unsigned c, unsigned d, T scale),
     (qkv, softmax, hidden, d_activated, d_qkv, chunks, c, d, scale))

// ---- Between products: a warp a row, unless said otherwise -------------------------------------------------------------

__device__ inline long long my_row() { return blockIdx.x * (long long)(blockDim.x / 32) + threadIdx.x / 32; }

// x ← x · rsqrt(mean(x²) + ε) · weight, for up to two row batches (blockIdx.y). Rows without a weight do not change.
template <class T>
__device__ void rms_norm(T* rows, const T* weight, long long count, T* more_rows, const T* more_weight, long long more,
                         unsigned width, double epsilon) {
    const unsigned lane = threadIdx.x % 32;
    const long long row = my_row();
    const T* w = blockIdx.y == 0 ? weight : more_weight;
    if (row >= (blockIdx.y == 0 ? count : more) || !w) return;
    T* x = (blockIdx.y == 0 ? rows : more_rows) + row * width;
    double squares = 0;
    for (unsigned i = lane; i < width; i += 32) squares += (double)x[i] * x[i];
    const T scale = T(1.0 / sqrt(warp_sum(squares) / width + epsilon));
    for (unsigned i = lane; i < width; i += 32) x[i] = x[i] * scale * w[i];
}
BOTH(rms_norm, 1,
     (T* rows, const T* weight, long long count, T* more_rows, const T* more_weight, long long more, unsigned width, double epsilon),
     (rows, weight, count, more_rows, more_weight, more, width, epsilon))

// Computes the gates of every chunk, one block each, from the mean of its normed tokens. tokens (sequences,
// chunks c, D), weights (D, 3 heads): θ, η, then α. steps [sequences, heads, chunks, 3]. A fixed gate is its
// value; a learned gate's value is added to its logit.
template <class T>
__device__ void gate_values(const T* tokens, const T* weights, T* steps, unsigned chunks, unsigned c, unsigned width,
                            unsigned heads, unsigned fixed, double rate, double momentum, double decay) {
    SHARED_MEMORY(T, mean);
    const long long sequence = blockIdx.y, chunk = blockIdx.x;
    const T* x = tokens + (sequence * chunks + chunk) * c * width;
    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
        T sum = 0;
        for (unsigned t = 0; t < c; ++t) sum += x[(long long)t * width + i];
        mean[i] = sum / T(c);
    }
    __syncthreads();
    const unsigned lane = threadIdx.x % 32;
    for (unsigned column = threadIdx.x / 32; column < 3 * heads; column += blockDim.x / 32) {
        T part = 0;
        for (unsigned i = lane; i < width; i += 32) part += mean[i] * weights[(long long)i * 3 * heads + column];
        const T logit = warp_sum(part);
        if (lane != 0) continue;
        const unsigned gate = column / heads;
        const double setting = gate == 0 ? rate : gate == 1 ? momentum : decay;
        double value = setting;
        if (!(fixed >> gate & 1)) {
            value = 1.0 / (1.0 + exp(-((double)logit + setting)));
            if (gate == 0) value = exp(-15.0 * value);
        }
        steps[((sequence * heads + column % heads) * chunks + chunk) * 3 + gate] = T(value);
    }
}
BOTH(gate_values, 1,
     (const T* tokens, const T* weights, T* steps, unsigned chunks, unsigned c, unsigned width, unsigned heads, unsigned fixed,
      double rate, double momentum, double decay),
     (tokens, weights, steps, chunks, c, width, heads, fixed, rate, momentum, decay))

// Rows (c, c) of chunks: row r ← softmax of its first r + 1 numbers, with zeros after them.
template <class T> __device__ void causal_softmax(T* rows, long long count, unsigned c) {
    const unsigned lane = threadIdx.x % 32;
    const long long row = my_row();
    if (row >= count) return;
    T* p = rows + row * c;
    const unsigned seen = row % c + 1;
    T largest = p[0];
    for (unsigned i = lane; i < seen; i += 32) largest = p[i] > largest ? p[i] : largest;
    for (int m = 16; m > 0; m /= 2) {
        const T other = __shfl_xor_sync(0xffffffffu, largest, m);
        largest = other > largest ? other : largest;
    }
    T sum = 0;
    for (unsigned i = lane; i < c; i += 32) {
        const T e = i < seen ? exponential(p[i] - largest) : T(0);
        p[i] = e;
        sum += e;
    }
    const T scale = T(1) / warp_sum(sum);
    for (unsigned i = lane; i < seen; i += 32) p[i] *= scale;
}
BOTH(causal_softmax, 1, (T* rows, long long count, unsigned c), (rows, count, c))

// Converts dP to the scores' cotangents, in place: p (dp − Σ dp p) · scale, with zeros in the future.
template <class T>
__device__ void softmax_backward(const T* softmax, T* cotangents, long long count, unsigned c, T scale) {
    const unsigned lane = threadIdx.x % 32;
    const long long row = my_row();
    if (row >= count) return;
    const T* p = softmax + row * c;
    T* d = cotangents + row * c;
    const unsigned seen = row % c + 1;
    T dot = 0;
    for (unsigned i = lane; i < seen; i += 32) dot += d[i] * p[i];
    dot = warp_sum(dot);
    for (unsigned i = lane; i < c; i += 32) d[i] = i < seen ? p[i] * (d[i] - dot) * scale : T(0);
}
BOTH(softmax_backward, 1, (const T* softmax, T* cotangents, long long count, unsigned c, T scale),
     (softmax, cotangents, count, c, scale))

// Uses one thread per element.
template <class T> __device__ void silu(const T* hidden, T* activated, long long count) {
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < count; i += (long long)gridDim.x * blockDim.x)
        activated[i] = hidden[i] * sigmoid(hidden[i]);
}
BOTH(silu, 1, (const T* hidden, T* activated, long long count), (hidden, activated, count))

// Computes cotangents of silu's input.
template <class T> __device__ void silu_backward(const T* hidden, T* cotangents, long long count) {
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < count; i += (long long)gridDim.x * blockDim.x)
        cotangents[i] *= silu_slope(hidden[i]);
}
BOTH(silu_backward, 1, (const T* hidden, T* cotangents, long long count), (hidden, cotangents, count))

// Computes for every chunk, one block each, the sum over its c rows of the mean over d of (y − v)². With
// `zero_losses`, also the same of an answer of zeros, v², and y ← its cotangents, 2 (y − v) ÷ d.
template <class T>
__device__ void chunk_losses(T* predicted, const T* values, T* losses, T* zero_losses, unsigned c, unsigned d) {
    __shared__ double parts[2][WARPS];
    const unsigned elements = c * d;
    T* y = predicted + blockIdx.x * (long long)elements;
    const T *v = values + blockIdx.x * (long long)elements, slope = T(2) / T(d);
    const bool vectors = elements % 4 == 0;
    double squares = 0, zero_squares = 0;
    // Four quads are loaded ahead of the first use.
    for (unsigned start = 0; start < elements; start += 16 * THREADS) {
        Quad<T> of_y[4], of_v[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const unsigned at = start + 4 * (i * THREADS + threadIdx.x);
            of_y[i] = quad_of(y + at, left_of(elements, at), vectors);
            of_v[i] = quad_of(v + at, left_of(elements, at), vectors);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const unsigned at = start + 4 * (i * THREADS + threadIdx.x);
            T error[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                error[j] = of_y[i].v[j] - of_v[i].v[j];
                squares += (double)error[j] * error[j];
                zero_squares += (double)of_v[i].v[j] * of_v[i].v[j];
                error[j] *= slope;
            }
            if (zero_losses) write_quad(y + at, error, left_of(elements, at), vectors);
        }
    }
    squares = warp_sum(squares);
    zero_squares = warp_sum(zero_squares);
    if (threadIdx.x % 32 == 0) {
        parts[0][threadIdx.x / 32] = squares;
        parts[1][threadIdx.x / 32] = zero_squares;
    }
    __syncthreads();
    if (threadIdx.x > 1) return;
    T* to = threadIdx.x == 0 ? losses : zero_losses;
    if (!to) return;
    double sum = 0;
    for (int w = 0; w < WARPS; ++w) sum += parts[threadIdx.x][w];
    to[blockIdx.x] = T(sum / d);
}
BOTH(chunk_losses, 1, (T* predicted, const T* values, T* losses, T* zero_losses, unsigned c, unsigned d),
     (predicted, values, losses, zero_losses, c, d))

// Puts heads side by side: reads (sequences, heads, padded, d) → merged (sequences, rows, heads d). The first
// `unready` rows are zero.
template <class T>
__device__ void merge_heads(const T* reads, T* merged, unsigned heads, unsigned padded, unsigned rows, unsigned d,
                            unsigned unready) {
    const long long sequence = blockIdx.y, count = (long long)rows * heads * d;
    for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < count; i += (long long)gridDim.x * blockDim.x) {
        const long long row = i / (heads * d);
        const unsigned head = i / d % heads, column = i % d;
        const T x = reads[((sequence * heads + head) * padded + row) * d + column];
        merged[sequence * count + i] = row < unready ? T(0) : x;
    }
}
BOTH(merge_heads, 1, (const T* reads, T* merged, unsigned heads, unsigned padded, unsigned rows, unsigned d, unsigned unready),
     (reads, merged, heads, padded, rows, d, unready))

// first[heads + sequences] is the least row, from `from` up to `to`, with a non-finite number: first for each
// head's rows of `of_head` elements, then for each sequence's of `of_sequence`. It is combined with the old
// contents.
template <class T>
__device__ void first_nonfinite(const T* of_heads, unsigned heads, long long of_head, unsigned d, const T* of_sequences,
                                long long of_sequence, unsigned dim, unsigned* first, unsigned from, unsigned to) {
    const unsigned lane = threadIdx.x % 32, row_batch = blockIdx.y, width = row_batch < heads ? d : dim;
    const long long row = from + my_row();
    if (row >= to) return;
    const T* x = (row_batch < heads ? of_heads + row_batch * of_head : of_sequences + (row_batch - heads) * of_sequence) + row * width;
    int bad = 0;
    for (unsigned i = lane; i < width; i += 32) bad |= !is_finite(x[i]);
    for (int m = 16; m > 0; m /= 2) bad |= __shfl_xor_sync(0xffffffffu, bad, m);
    if (bad && lane == 0) atomicMin(first + row_batch, (unsigned)row);
}
BOTH(first_nonfinite, 1,
     (const T* of_heads, unsigned heads, long long of_head, unsigned d, const T* of_sequences, long long of_sequence,
      unsigned dim, unsigned* first, unsigned from, unsigned to),
     (of_heads, heads, of_head, d, of_sequences, of_sequence, dim, first, from, to))

// ---- Products ----------------------------------------------------------------------------------------------------------

// C ← scale · op(A) op(B), `batch` pairs, one tile per block, as in src/cuda/product.rs. It is made for depths
// of one or two tiles, so nothing is loaded ahead.
//
// Shared memory: two tiles.
template <class T>
__device__ void product(const T* a, long long a_row, long long a_stride, unsigned a_transposed, const T* b, long long b_row,
                        long long b_stride, unsigned b_transposed, T* c, long long c_row, long long c_stride,
                        unsigned rows, unsigned cols, unsigned depth, unsigned batch, T scale) {
    SHARED_MEMORY(T, left);
    enum { PITCH = Tiled<T>::PITCH };
    T* right = left + Tiled<T>::ELEMENTS;
    const unsigned col0 = blockIdx.x * TILE, tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    // Whether quads of all rows are aligned, and either all exist or none.
    auto in_quads = [](const T* of, long long row, long long stride, unsigned across) {
        return row % 4 == 0 && stride % 4 == 0 && across % 4 == 0 && (unsigned long long)of % sizeof(Quad<T>) == 0;
    };
    const bool a_quads = in_quads(a, a_row, a_stride, a_transposed ? rows : depth);
    const bool b_quads = in_quads(b, b_row, b_stride, b_transposed ? depth : cols);
    const bool c_quads = in_quads(c, c_row, c_stride, cols);
    for (unsigned pair = blockIdx.z; pair < batch; pair += gridDim.z) {
        const T *am = a + pair * a_stride, *bm = b + pair * b_stride;
        for (unsigned row0 = blockIdx.y * TILE; row0 < rows; row0 += gridDim.y * TILE) {
            T sums[4][4];
            clear(sums);
            for (unsigned k = 0; k < depth; k += TILE) {
                __syncthreads();
                if (a_transposed) ask_tile(left, am + k * a_row + row0, a_row, depth - k, rows - row0, a_quads);
                else ask_tile(left, am + row0 * a_row + k, a_row, rows - row0, depth - k, a_quads);
                if (b_transposed) ask_tile(right, bm + col0 * b_row + k, b_row, cols - col0, depth - k, b_quads);
                else ask_tile(right, bm + k * b_row + col0, b_row, depth - k, cols - col0, b_quads);
                end_piece();
                await_piece(0);
                __syncthreads();
                const unsigned to = depth - k < TILE ? depth - k : TILE;
                const T *rows_of_a = left + 4 * ty * PITCH, *columns_of_a = left + 4 * ty;
                const T *rows_of_b = right + tx * PITCH, *columns_of_b = right + 4 * tx;
                if (a_transposed && b_transposed) add_product<true, true, PITCH, PITCH>(sums, columns_of_a, rows_of_b, 0, to);
                else if (a_transposed) add_product<true, false, PITCH, PITCH>(sums, columns_of_a, columns_of_b, 0, to);
                else if (b_transposed) add_product<false, true, PITCH, PITCH>(sums, rows_of_a, rows_of_b, 0, to);
                else add_product<false, false, PITCH, PITCH>(sums, rows_of_a, columns_of_b, 0, to);
            }
#pragma unroll
            for (unsigned i = 0; i < 4; ++i) {
                const unsigned row = row0 + 4 * ty + i;
                T* to = c + pair * c_stride + row * c_row + col0;
#pragma unroll
                for (unsigned j = 0; j < 4; ++j) {
                    sums[i][j] *= scale;
                    const unsigned col = tx + 16 * j;
                    if (b_transposed && row < rows && col0 + col < cols) to[col] = sums[i][j];
                }
                if (!b_transposed) write_quad(to + 4 * tx, sums[i], row < rows ? left_of(cols, col0 + 4 * tx) : 0, c_quads);
            }
        }
    }
}
BOTH(product, 1,
     (const T* a, long long a_row, long long a_stride, unsigned a_transposed, const T* b, long long b_row, long long b_stride,
      unsigned b_transposed, T* c, long long c_row, long long c_stride, unsigned rows, unsigned cols, unsigned depth, unsigned batch, T scale),
     (a, a_row, a_stride, a_transposed, b, b_row, b_stride, b_transposed, c, c_row, c_stride, rows, cols, depth, batch, scale))
