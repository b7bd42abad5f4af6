// LayerNorm (Ba et al. 2016, arXiv:1607.06450) over rows of C; contract in ops/layernorm.py.
//
// A team of ROW_WARPS warps owns a row and keeps it in registers, ROW_PACKS packs per thread: the
// row is read once, and mean and variance are both exact sums. Both constants follow from C
// (ops/layernorm.py, row_defines). Teams of one warp share a block; a larger team is a block.
#include "block_reduce.cuh"
#include "column_sum.cuh"

constexpr int TEAM = ROW_WARPS * WARP;
constexpr int BLOCK_THREADS = ROW_WARPS == 1 ? 8 * WARP : TEAM;
constexpr int BLOCKS_PER_SM = BLOCK_THREADS <= 8 * WARP ? 2 : 1;  // a limit of 128 registers
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

// dinp += gradient of the input, and this block's share of the gradients of weight and bias:
// partials (2, num blocks, C). The rows of a block are fixed by the launch, so are all sums.
// Dynamic shared memory: 2 C floats where several teams share a block.
extern "C" __global__ void __launch_bounds__(BLOCK_THREADS, BLOCKS_PER_SM)
layernorm_backward(floatX* dinp, float* partials, const floatX* dout, const floatX* inp,
                   const floatX* weight, const float* mean, const float* rstd, int N, int C) {
    extern __shared__ float smem[];
    Pack dweight[ROW_PACKS], dbias[ROW_PACKS];
#pragma unroll
    for (int p = 0; p < ROW_PACKS; p++) dweight[p] = dbias[p] = filled<LANES>(0.0f);

    long long stride = (long long)gridDim.x * teams_per_block();
    for (long long n = blockIdx.x * teams_per_block() + team_in_block(); n < N; n += stride) {
        Pack gradient[ROW_PACKS], normed[ROW_PACKS];
        float row_mean = mean[n], row_rstd = rstd[n];
#pragma unroll
        for (int p = 0; p < ROW_PACKS; p++) {
            int column = pack_column(p);
            gradient[p] = normed[p] = filled<LANES>(0.0f);
            if (column < C) {
                gradient[p] = load_pack(dout + n * C + column);
                normed[p] = load_pack(inp + n * C + column);
            }
        }
        float sum = 0.0f, projection = 0.0f;
#pragma unroll
        for (int p = 0; p < ROW_PACKS; p++) {
            int column = pack_column(p);
            if (column >= C) continue;
            Pack w = load_pack(weight + column);
#pragma unroll
            for (int k = 0; k < LANES; k++) {
                normed[p][k] = (normed[p][k] - row_mean) * row_rstd;
                dweight[p][k] += gradient[p][k] * normed[p][k];
                dbias[p][k] += gradient[p][k];
                gradient[p][k] *= w[k];
                sum += gradient[p][k];
                projection += gradient[p][k] * normed[p][k];
            }
        }
        sum = team_sum<0>(sum) / C;
        projection = team_sum<1>(projection) / C;
#pragma unroll
        for (int p = 0; p < ROW_PACKS; p++) {
            int column = pack_column(p);
            if (column >= C) continue;
            Pack total = load_pack(dinp + n * C + column);
#pragma unroll
            for (int k = 0; k < LANES; k++)
                total[k] += (gradient[p][k] - sum - normed[p][k] * projection) * row_rstd;
            store(dinp + n * C + column, total);
        }
    }

    float* dweight_part = partials + (long long)blockIdx.x * C;
    float* dbias_part = dweight_part + (long long)gridDim.x * C;
    if constexpr (ROW_WARPS > 1) {
#pragma unroll
        for (int p = 0; p < ROW_PACKS; p++) {
            int column = pack_column(p);
            if (column >= C) continue;
            store(dweight_part + column, dweight[p]);
            store(dbias_part + column, dbias[p]);
        }
    } else {
        for (int team = 0; team < teams_per_block(); team++) {  // one after the other: fixed order
            if (team == team_in_block()) {
#pragma unroll
                for (int p = 0; p < ROW_PACKS; p++) {
                    int column = pack_column(p);
                    if (column >= C) continue;
                    Pack w = dweight[p], b = dbias[p];
#pragma unroll
                    for (int k = 0; k < LANES; k++) {
                        if (team > 0) w[k] += smem[column + k], b[k] += smem[C + column + k];
                        smem[column + k] = w[k];
                        smem[C + column + k] = b[k];
                    }
                }
            }
            __syncthreads();
        }
        for (int column = threadIdx.x; column < C; column += blockDim.x) {
            dweight_part[column] = smem[column];
            dbias_part[column] = smem[C + column];
        }
    }
}

// dweight += and dbias += the sums of the blocks' shares; partials (2, num_parts, C). Blocks of 256
// threads: (x, 0) has 32 columns of dweight, (x, 1) the same of dbias.
extern "C" __global__ void __launch_bounds__(256)
layernorm_backward_finish(float* dweight, float* dbias, const float* partials, int num_parts,
                          int C) {
    const float* parts = partials + (long long)blockIdx.y * num_parts * C;
    add_column_sums(blockIdx.y == 0 ? dweight : dbias, parts, num_parts, C);
}
