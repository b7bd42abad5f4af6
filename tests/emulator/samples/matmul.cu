// out[m, n] = sum over k of a[m, k] * b[n, k]; a (M, K), b (N, K), out (M, N); any M and N, K a
// multiple of 4. A block of 64 threads computes a 32 x 32 tile, each thread 4 x 4 of it.
#ifndef BUG
#define BUG none
#endif
// -DBUG=name plants one fault; the line it is reported at carries "BUG: name".
#define none 0
#define missing_sync_after_store 1
#define missing_sync_before_overwrite 2
#define out_of_bounds_write 3
#define out_of_bounds_read 4
#define early_exit 5
#define barrier_in_half_the_block 6
#define different_barriers 7
#define shared_overflow 8
#define inner_overflow 9
#define uninitialised_shared 10
#define cross_block_write 11
#define misaligned_vector 12
#define PLANTED(name) (BUG == name)

constexpr int TILE = 32, DEPTH = 16;

extern "C" __global__ void __launch_bounds__(64)
    matmul(float* __restrict__ out, const float* __restrict__ a, const float* __restrict__ b, int M,
           int N, int K) {
    // With a row of padding, the columns that a store writes lie in different banks.
    __shared__ __align__(16) float As[DEPTH][TILE + 4];
    __shared__ __align__(16) float Bs[DEPTH][TILE + 4];
    const int m0 = blockIdx.y * TILE, n0 = blockIdx.x * TILE;
    const int row = threadIdx.x / 8 * 4, col = threadIdx.x % 8 * 4;
    float sum[4][4] = {};
    for (int k0 = 0; k0 < K; k0 += DEPTH) {
        for (int i = threadIdx.x; i < TILE * DEPTH / 4; i += blockDim.x) {
            const int r = i / (DEPTH / 4), k = i % (DEPTH / 4) * 4;
            float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f), y = x;
            const int rows = PLANTED(out_of_bounds_read) ? M + 1 : M;
            if (m0 + r < rows && k0 + k < K)
                x = *(const float4*)(a + (size_t)(m0 + r) * K + k0 + k);  // BUG: out_of_bounds_read
            if (n0 + r < N && k0 + k < K) y = *(const float4*)(b + (size_t)(n0 + r) * K + k0 + k);
            As[k][r] = x.x;  // BUG: missing_sync_before_overwrite
            As[k + 1][r] = x.y;
            As[k + 2][r] = x.z;
            As[k + 3][r] = x.w;
            Bs[k][r] = y.x;
            Bs[k + 1][r] = y.y;
            Bs[k + 2][r] = y.z;
            Bs[k + 3][r] = y.w;
        }
#if !PLANTED(missing_sync_after_store)
        __syncthreads();
#endif
#if PLANTED(barrier_in_half_the_block)
        if (threadIdx.x < 32) __syncthreads();  // BUG: barrier_in_half_the_block
#endif
#if PLANTED(different_barriers)
        if (threadIdx.x < 32)
            __syncthreads();  // BUG: different_barriers
        else
            __syncthreads();  // BUG: different_barriers
#endif
        for (int k = 0; k < DEPTH; k++) {
            const int shift = PLANTED(misaligned_vector) ? 1 : 0;
            const float* p = &As[k][row + shift];
            const float4 x = *(const float4*)p;  // BUG: misaligned_vector missing_sync_after_store
            const float4 y = *(const float4*)&Bs[k][col];
            const float xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
            for (int i = 0; i < 4; i++)
                for (int j = 0; j < 4; j++) sum[i][j] += xs[i] * ys[j];
        }
#if PLANTED(early_exit)
        if (threadIdx.x == 41) return;
#endif
#if !PLANTED(missing_sync_before_overwrite)
        __syncthreads();  // BUG: early_exit
#endif
    }
    for (int i = 0; i < 4; i++) {
        for (int j = 0; j < 4; j++) {
            const int m = m0 + row + i, n = n0 + col + j;
            const int rows = PLANTED(out_of_bounds_write) ? M + 1 : M;
            if (m < rows && n < N) out[(size_t)m * N + n] = sum[i][j];  // BUG: out_of_bounds_write
        }
    }
#if PLANTED(shared_overflow)
    const int beyond = DEPTH + blockDim.x / 64;
    (&Bs[0][0])[beyond * (TILE + 4)] = 1.0f;  // BUG: shared_overflow
#endif
#if PLANTED(inner_overflow)
    As[3][threadIdx.x % 32 + 5] = 1.0f;  // BUG: inner_overflow
#endif
#if PLANTED(uninitialised_shared)
    if (As[0][TILE + 1] > 0.0f) out[0] = 0.0f;  // BUG: uninitialised_shared
#endif
#if PLANTED(cross_block_write)
    if (threadIdx.x == 0) out[0] = sum[0][0];  // BUG: cross_block_write
#endif
}
