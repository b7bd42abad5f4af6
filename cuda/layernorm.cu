// LayerNorm (Ba et al. 2016, arXiv:1607.06450) over rows of C channels; contract in
// ops/layernorm.py.
//
// Each row gets mean 0 and variance 1, then channel c is scaled by weight[c] and shifted by
// bias[c]. The threads of a row read it once and keep it in registers. So the variance is summed
// from the exact mean, and memory is read once, not three times.
//
// A row of C channels is C / PACK_SIZE packs. Neighbouring threads take neighbouring packs, in
// rounds: here 3 rounds of 32 threads, so each thread holds 3 packs.
//
//    pack     0   1   2  ...  31 | 32  33  34  ...  63 | 64  65  66  ...  95
//    thread   0   1   2  ...  31 |  0   1   2  ...  31 |  0   1   2  ...  31
//                 p = 0          |       p = 1         |       p = 2
//
//    short rows: WARPS_PER_ROW = 1           long rows: WARPS_PER_ROW = 4
//    a block has a few warps, each a row     a block has one row
//
//      warp 0  [ ----- row 0 ----- ]           [ warp 0 | warp 1 | warp 2 | warp 3 ]
//      warp 1  [ ----- row 1 ----- ]             `---------- row 0 -----------'
//
// -DWARPS_PER_ROW, -DPACKS_PER_THREAD: follow from C, see forward_launch in ops/layernorm.py.
#include "lib/block_reduce.cuh"

constexpr int THREADS_PER_ROW = WARPS_PER_ROW * WARP;

// ---- who has which part of which row ------------------------------------------------------------

__device__ __forceinline__ int thread_row() {
    return blockIdx.x * (blockDim.x / THREADS_PER_ROW) + threadIdx.x / THREADS_PER_ROW;
}
// First column of this thread's pack p.
__device__ __forceinline__ int pack_column(int p) {
    return (p * THREADS_PER_ROW + (int)threadIdx.x % THREADS_PER_ROW) * PACK_SIZE;
}

// The sum along a row, over its threads. Calls alternate between SLOT 0 and 1 (see block_reduce).
template <int SLOT>
__device__ __forceinline__ float sum_along_row(float value) {
    if constexpr (WARPS_PER_ROW == 1) return warp_sum(value);
    return block_sum<SLOT>(value);
}

// ---- the steps ----------------------------------------------------------------------------------

// A thread's packs of a row as they lie in memory: in bfloat16, half the registers of floats.
using RowPacks = RawPack[PACKS_PER_THREAD];

// Step 1: read the row; zeros beyond C.
__device__ __forceinline__ void load_row(RowPacks& row, const floatX* inp, int C) {
#pragma unroll
    for (int p = 0; p < PACKS_PER_THREAD; p++) {
        row[p] = RawPack{};
        if (pack_column(p) < C) row[p] = load_raw(inp + pack_column(p));
    }
}

// Step 2: the mean.
__device__ __forceinline__ float mean_of_row(const RowPacks& row, int C) {
    float sum = 0.0f;
#pragma unroll
    for (int p = 0; p < PACKS_PER_THREAD; p++) {
        const Pack x = unpack(row[p]);
#pragma unroll
        for (int k = 0; k < PACK_SIZE; k++) sum += x[k];
    }
    return sum_along_row<0>(sum) / C;
}

// Step 3: one over the standard deviation.
__device__ __forceinline__ float rstd_of_row(const RowPacks& row, float mean, int C,
                                             float epsilon) {
    float squares = 0.0f;
#pragma unroll
    for (int p = 0; p < PACKS_PER_THREAD; p++) {
        if (pack_column(p) >= C) continue;  // the zeros there do not count
        const Pack x = unpack(row[p]);
#pragma unroll
        for (int k = 0; k < PACK_SIZE; k++) squares += (x[k] - mean) * (x[k] - mean);
    }
    return 1.0f / sqrtf(sum_along_row<1>(squares) / C + epsilon);
}

// Step 4: out = (row - mean) * rstd * weight + bias.
__device__ __forceinline__ void write_normalized(floatX* out, const RowPacks& row, float mean,
                                                 float rstd, const floatX* weight,
                                                 const floatX* bias, int C) {
#pragma unroll
    for (int p = 0; p < PACKS_PER_THREAD; p++) {
        const int column = pack_column(p);
        if (column >= C) continue;
        const Pack w = load_pack(weight + column), b = load_pack(bias + column);
        Pack x = unpack(row[p]);
#pragma unroll
        for (int k = 0; k < PACK_SIZE; k++) x[k] = (x[k] - mean) * rstd * w[k] + b[k];
        store(out + column, x);
    }
}

// Steps 2 to 4 of a row that is in registers.
__device__ __forceinline__ void normalize(floatX* out, float* mean_out, float* rstd_out,
                                          const RowPacks& row, const floatX* weight,
                                          const floatX* bias, int C, float epsilon) {
    const float mean = mean_of_row(row, C);
    const float rstd = rstd_of_row(row, mean, C, epsilon);
    write_normalized(out, row, mean, rstd, weight, bias, C);
    if (threadIdx.x % THREADS_PER_ROW == 0) *mean_out = mean, *rstd_out = rstd;
}

// x += y, rounded to floatX.
__device__ __forceinline__ void add_rounded(RawPack& x, const RawPack& y) {
    Pack sum = unpack(x);
    const Pack addend = unpack(y);
#pragma unroll
    for (int k = 0; k < PACK_SIZE; k++) sum[k] += addend[k];
    x = pack_raw(sum);
}

// ---- the kernels --------------------------------------------------------------------------------

// Written: out (N, C), mean (N), rstd (N). Read: inp (N, C), weight (C), bias (C).
// Block: THREADS_PER_ROW threads for each of its rows; several rows only if WARPS_PER_ROW is 1.
// Grid: ceil(N / rows of a block).
extern "C" __global__ void layernorm_forward(floatX* out, float* mean, float* rstd,
                                             const floatX* inp, const floatX* weight,
                                             const floatX* bias, int N, int C, float epsilon) {
    const int n = thread_row();
    if (n >= N) return;  // the same in all threads of the row
    const long long offset = (long long)n * C;
    RowPacks row;
    load_row(row, inp + offset, C);
    normalize(out + offset, mean + n, rstd + n, row, weight, bias, C, epsilon);
}

// residual = inp1 + inp2, and the LayerNorm of the residual as it is stored, which is what backward
// reads. Written: residual (N, C), out (N, C), mean (N), rstd (N). Read: inp1, inp2 (N, C), weight,
// bias (C). Grid and block as for layernorm_forward.
extern "C" __global__ void residual_layernorm_forward(floatX* residual, floatX* out, float* mean,
                                                      float* rstd, const floatX* inp1,
                                                      const floatX* inp2, const floatX* weight,
                                                      const floatX* bias, int N, int C,
                                                      float epsilon) {
    const int n = thread_row();
    if (n >= N) return;  // the same in all threads of the row
    const long long offset = (long long)n * C;
    RowPacks row, other;
    load_row(row, inp1 + offset, C);
    load_row(other, inp2 + offset, C);
#pragma unroll
    for (int p = 0; p < PACKS_PER_THREAD; p++) {
        add_rounded(row[p], other[p]);
        if (pack_column(p) < C) store_raw(residual + offset + pack_column(p), row[p]);
    }
    normalize(out + offset, mean + n, rstd + n, row, weight, bias, C, epsilon);
}
