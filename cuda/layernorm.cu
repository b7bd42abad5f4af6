// LayerNorm (Ba et al. 2016, arXiv:1607.06450) over rows of C; contract in ops/layernorm.py.
//
// A team of ROW_WARPS warps owns a row and keeps it in registers as it lies in memory, ROW_PACKS packs
// per thread: the row is read once, and mean and variance are both exact sums. Both constants follow
// from C (ops/layernorm.py, row_defines). Teams of one warp share a block; a larger team is a block.
#include "lib/reduce.cuh"

constexpr int TEAM = ROW_WARPS * WARP;
constexpr float EPSILON = 1e-5f;

// Calls alternate between SLOT 0 and 1 (see block_reduce).
template <int SLOT>
__device__ __forceinline__ float team_sum(float value) {
    if constexpr (ROW_WARPS == 1) return warp_sum(value);
    return block_sum<SLOT>(value);
}
// This team's row.
__device__ __forceinline__ int team_row() {
    return blockIdx.x * (blockDim.x / TEAM) + threadIdx.x / TEAM;
}
// First column of this thread's pack p.
__device__ __forceinline__ int pack_column(int p) {
    return (p * TEAM + (int)threadIdx.x % TEAM) * PACK_SIZE;
}

// This thread's packs of a row, zeros beyond C.
__device__ __forceinline__ void load_row(RawPack (&row)[ROW_PACKS], const floatX* inp, int C) {
#pragma unroll
    for (int p = 0; p < ROW_PACKS; p++) {
        row[p] = RawPack{};
        if (pack_column(p) < C) row[p] = load_raw(inp + pack_column(p));
    }
}

// Writes out = (row - mean) * rstd * weight + bias, and the two statistics.
__device__ __forceinline__ void normalize(floatX* out, float* mean_out, float* rstd_out,
                                          const RawPack (&row)[ROW_PACKS], const floatX* weight,
                                          const floatX* bias, int C) {
    float sum = 0.0f;
#pragma unroll
    for (int p = 0; p < ROW_PACKS; p++) {
        const Pack x = unpack(row[p]);
#pragma unroll
        for (int k = 0; k < PACK_SIZE; k++) sum += x[k];
    }
    const float mean = team_sum<0>(sum) / C;
    float squares = 0.0f;
#pragma unroll
    for (int p = 0; p < ROW_PACKS; p++) {
        if (pack_column(p) >= C) continue;
        const Pack x = unpack(row[p]);
#pragma unroll
        for (int k = 0; k < PACK_SIZE; k++) squares += (x[k] - mean) * (x[k] - mean);
    }
    const float rstd = 1.0f / sqrtf(team_sum<1>(squares) / C + EPSILON);
#pragma unroll
    for (int p = 0; p < ROW_PACKS; p++) {
        const int column = pack_column(p);
        if (column >= C) continue;
        const Pack w = load_pack(weight + column), b = load_pack(bias + column);
        Pack x = unpack(row[p]);
#pragma unroll
        for (int k = 0; k < PACK_SIZE; k++) x[k] = (x[k] - mean) * rstd * w[k] + b[k];
        store(out + column, x);
    }
    if (threadIdx.x % TEAM == 0) *mean_out = mean, *rstd_out = rstd;
}

// out (N, C), mean and rstd (N) from inp (N, C), weight and bias (C).
extern "C" __global__ void layernorm_forward(floatX* out, float* mean, float* rstd,
                                             const floatX* inp, const floatX* weight,
                                             const floatX* bias, int N, int C) {
    const int n = team_row();
    if (n >= N) return;  // the whole team
    const long long offset = (long long)n * C;
    RawPack row[ROW_PACKS];
    load_row(row, inp + offset, C);
    normalize(out + offset, mean + n, rstd + n, row, weight, bias, C);
}

// residual = inp1 + inp2, and out, mean, rstd from the residual as stored.
extern "C" __global__ void residual_layernorm_forward(floatX* residual, floatX* out, float* mean,
                                                      float* rstd, const floatX* inp1,
                                                      const floatX* inp2, const floatX* weight,
                                                      const floatX* bias, int N, int C) {
    const int n = team_row();
    if (n >= N) return;  // the whole team
    const long long offset = (long long)n * C;
    RawPack row[ROW_PACKS], other[ROW_PACKS];
    load_row(row, inp1 + offset, C);
    load_row(other, inp2 + offset, C);
#pragma unroll
    for (int p = 0; p < ROW_PACKS; p++) {
        Pack sum = unpack(row[p]);
        const Pack addend = unpack(other[p]);
#pragma unroll
        for (int k = 0; k < PACK_SIZE; k++) sum[k] += addend[k];
        row[p] = pack_raw(sum);
        if (pack_column(p) < C) store_raw(residual + offset + pack_column(p), row[p]);
    }
    normalize(out + offset, mean + n, rstd + n, row, weight, bias, C);
}
