// Sums by a block and by a warp through shared memory.
#ifndef BUG
#define BUG none
#endif
#define none 0
#define missing_sync_after_partials 1
#define missing_sync_before_reuse 2
#define missing_syncwarp 3
#define all_threads_write 4
#define plain_and_atomic 5
#define dynamic_overflow 6
#define missing_sync_after_zero 7
#define missing_sync_before_read 8
#define PLANTED(name) (BUG == name)

__device__ __forceinline__ float warp_sum(float v) {
    for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
    return v;
}

// The sum over the block, in every thread. It may be called again without a barrier.
__device__ float block_sum(float v) {
    __shared__ float partial[32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    v = warp_sum(v);
#if !PLANTED(missing_sync_before_reuse)
    __syncthreads();
#endif
    if (lane == 0) partial[warp] = v;  // BUG: missing_sync_before_reuse
#if !PLANTED(missing_sync_after_partials)
    __syncthreads();
#endif
    v = lane < blockDim.x / 32 ? partial[lane] : 0.0f;  // BUG: missing_sync_after_partials
    return warp_sum(v);
}

// mean[row], var[row] of inp (rows, C); one block per row.
extern "C" __global__ void moments(float* mean, float* var, const float* inp, int C) {
    const float* row = inp + (long long)blockIdx.x * C;
    float sum = 0.0f, squares = 0.0f;
    for (int i = threadIdx.x; i < C; i += blockDim.x) sum += row[i];
    const float m = block_sum(sum) / C;
    for (int i = threadIdx.x; i < C; i += blockDim.x) squares += (row[i] - m) * (row[i] - m);
    const float v = block_sum(squares) / C;
#if PLANTED(all_threads_write)
    mean[blockIdx.x] = m;  // BUG: all_threads_write
#endif
    if (threadIdx.x == 0) {
        mean[blockIdx.x] = m;
        var[blockIdx.x] = v;
    }
}

// out (rows, 32) is inp (rows, 32) with each row reversed; a warp per row.
extern "C" __global__ void __launch_bounds__(128) reverse_rows(float* out, const float* inp) {
    __shared__ float row[4][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int i = warp; i < gridDim.x * 8; i += 4) {
        if (i / 8 != blockIdx.x) continue;
        row[warp][lane] = inp[i * 32 + lane];
#if !PLANTED(missing_syncwarp)
        __syncwarp();
#endif
        out[i * 32 + lane] = row[warp][31 - lane];  // BUG: missing_syncwarp
        __syncwarp();
    }
}

// counts[b] += number of the values equal to b < bins; dynamic shared memory: bins unsigned.
extern "C" __global__ void histogram(unsigned* counts, const int* values, int n, int bins) {
    extern __shared__ unsigned smem[];
    const int bug = PLANTED(dynamic_overflow) ? 1 : 0;
    for (int b = threadIdx.x; b < bins + bug; b += blockDim.x)
        smem[b] = 0;  // BUG: dynamic_overflow
#if !PLANTED(missing_sync_after_zero)
    __syncthreads();
#endif
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        atomicAdd(&smem[values[i]], 1u);  // BUG: missing_sync_after_zero
#if !PLANTED(missing_sync_before_read)
    __syncthreads();
#endif
    for (int b = threadIdx.x; b < bins; b += blockDim.x) {
        const unsigned count = smem[b];  // BUG: missing_sync_before_read
#if PLANTED(plain_and_atomic)
        counts[b] += count;  // BUG: plain_and_atomic
#else
        atomicAdd(&counts[b], count);
#endif
    }
}
