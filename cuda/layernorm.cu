// LayerNorm (Ba et al. 2016, arXiv:1607.06450) over rows of C; contract in ops/layernorm.py.
//
// A team of ROW_WARPS warps owns a row and keeps it in registers, ROW_PACKS packs per thread: the
// row is read once, and mean and variance are both exact sums. Both constants follow from C
// (ops/layernorm.py, row_defines). Teams of one warp share a block; a larger team is a block.
#include "block_reduce.cuh"

constexpr int TEAM = ROW_WARPS * WARP;
constexpr float EPSILON = 1e-5f;

// Calls alternate between SLOT 0 and 1 (see block_reduce).
template <int SLOT>
__device__ __forceinline__ float team_sum(float value) {
    if constexpr (ROW_WARPS == 1) return warp_sum(value);
    return block_sum<SLOT>(value);
}
__device__ __forceinline__ int team_in_block() { return threadIdx.x / TEAM; }
__device__ __forceinline__ int teams_per_block() { return blockDim.x / TEAM; }
// First column of this thread's pack p.
__device__ __forceinline__ int pack_column(int p) {
    return (p * TEAM + (int)threadIdx.x % TEAM) * LANES;
}

// Writes out = (row - mean) * rstd * weight + bias, and the two statistics.
__device__ __forceinline__ void normalize(floatX* out, float* mean_out, float* rstd_out,
                                          Pack (&row)[ROW_PACKS], const floatX* weight,
                                          const floatX* bias, int C) {
    float sum = 0.0f;
#pragma unroll
    for (int p = 0; p < ROW_PACKS; p++)
#pragma unroll
        for (int k = 0; k < LANES; k++) sum += row[p][k];  // packs beyond C hold zeros
    float mean = team_sum<0>(sum) / C;
    float squares = 0.0f;
#pragma unroll
    for (int p = 0; p < ROW_PACKS; p++) {
        if (pack_column(p) >= C) continue;
#pragma unroll
        for (int k = 0; k < LANES; k++) {
            row[p][k] -= mean;
            squares += row[p][k] * row[p][k];
        }
    }
    float rstd = 1.0f / sqrtf(team_sum<1>(squares) / C + EPSILON);
#pragma unroll
    for (int p = 0; p < ROW_PACKS; p++) {
        int column = pack_column(p);
        if (column >= C) continue;
        Pack w = load_pack(weight + column), b = load_pack(bias + column);
#pragma unroll
        for (int k = 0; k < LANES; k++) row[p][k] = row[p][k] * rstd * w[k] + b[k];
        store(out + column, row[p]);
    }
    if (threadIdx.x % TEAM == 0) *mean_out = mean, *rstd_out = rstd;
}

// out (N, C), mean and rstd (N) from inp (N, C), weight and bias (C).
extern "C" __global__ void layernorm_forward(floatX* out, float* mean, float* rstd,
                                             const floatX* inp, const floatX* weight,
                                             const floatX* bias, int N, int C) {
    int n = blockIdx.x * teams_per_block() + team_in_block();
    if (n >= N) return;  // the whole team
    long long offset = (long long)n * C;
    Pack row[ROW_PACKS];
#pragma unroll
    for (int p = 0; p < ROW_PACKS; p++) {
        int column = pack_column(p);
        row[p] = column < C ? load_pack(inp + offset + column) : filled<LANES>(0.0f);
    }
    normalize(out + offset, mean + n, rstd + n, row, weight, bias, C);
}

// residual = inp1 + inp2, and out, mean, rstd from the residual as stored.
extern "C" __global__ void residual_layernorm_forward(floatX* residual, floatX* out, float* mean,
                                                      float* rstd, const floatX* inp1,
                                                      const floatX* inp2, const floatX* weight,
                                                      const floatX* bias, int N, int C) {
    int n = blockIdx.x * teams_per_block() + team_in_block();
    if (n >= N) return;  // the whole team
    long long offset = (long long)n * C;
    Pack row[ROW_PACKS], other[ROW_PACKS];
#pragma unroll
    for (int p = 0; p < ROW_PACKS; p++) {
        int column = pack_column(p);
        row[p] = other[p] = filled<LANES>(0.0f);
        if (column < C) {
            row[p] = load_pack(inp1 + offset + column);
            other[p] = load_pack(inp2 + offset + column);
        }
    }
#pragma unroll
    for (int p = 0; p < ROW_PACKS; p++) {
        int column = pack_column(p);
#pragma unroll
        for (int k = 0; k < LANES; k++) row[p][k] = rounded<floatX>(row[p][k] + other[p][k]);
        if (column < C) store(residual + offset + column, row[p]);
    }
    normalize(out + offset, mean + n, rstd + n, row, weight, bias, C);
}
