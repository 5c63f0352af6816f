// A fake libcublas. Its products are plain loops over column-major matrices, as in BLAS.

typedef unsigned long long u64;
static int set;

int cublasCreate_v2(u64 *handle) { *handle = 0xB0; return 0; }
int cublasDestroy_v2(u64 handle) { return 0; }
int cublasGetProperty(unsigned part, int *value) { *value = part == 0 ? 13 : part == 1 ? 4 : 2; return part > 2 ? 7 : 0; }
int cublasSetStream_v2(u64 handle, u64 stream) { set = stream == 0xE0; return 0; }
int cublasSetWorkspace_v2(u64 handle, u64 address, u64 bytes) { set += address % 256 == 0 && bytes == 32 << 20; return 0; }
int cublasSetMathMode(u64 handle, unsigned mode) { return mode; }

#define GEMM(name, real)                                                                                                     \
    int name(u64 handle, unsigned ta, unsigned tb, int m, int n, int k, const real *alpha, const real *a, int lda, long sa, \
             const real *b, int ldb, long sb, const real *beta, real *c, int ldc, long sc, int batch) {                     \
        if (batch > 65535) return 15;                                                                                       \
        if (handle != 0xB0 || set != 2 || *beta != 0) return 7;                                                             \
        if (lda < (ta ? k : m) || ldb < (tb ? n : k) || ldc < m) return 7;                                                  \
        for (int p = 0; p < batch; p++)                                                                                     \
            for (int j = 0; j < n; j++)                                                                                     \
                for (int i = 0; i < m; i++) {                                                                               \
                    real sum = 0;                                                                                           \
                    for (int l = 0; l < k; l++)                                                                             \
                        sum += a[p * sa + (ta ? l + (long)i * lda : i + (long)l * lda)] *                                   \
                               b[p * sb + (tb ? j + (long)l * ldb : l + (long)j * ldb)];                                    \
                    c[p * sc + i + (long)j * ldc] = *alpha * sum;                                                           \
                }                                                                                                           \
        return 0;                                                                                                           \
    }
GEMM(cublasSgemmStridedBatched, float)
GEMM(cublasDgemmStridedBatched, double)
