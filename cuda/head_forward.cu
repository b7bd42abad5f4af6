// The head's logits and their softmax, for few channels; contract in ops/head.py.
//
// With C <= 128 the logits (N x Vp) take longer to write than to compute, so they leave the block
// once, and their softmax statistics are taken while they are in registers (online softmax,
// Milakov and Gimelshein 2018, arXiv:1805.02867). -DSTORE_LOGITS=0: they are not written at all.
#include "head_tiles.cuh"

constexpr int DEPTHS = CHANNELS / DEPTH;
constexpr int COLUMN_WARPS = 2;                 // the block's four warps are 2 x 2,
constexpr int WARP_TILE = TILE / COLUMN_WARPS;  // each has 64 x 64 of a tile
constexpr int ROW_TILES = WARP_TILE / 16, COLUMN_PAIRS = WARP_TILE / 16;
constexpr float MASKED = -1e30f;  // logit of a padding column, for the statistics: exp2 makes it 0

// sums[m][n] += own rows x (rows of wte)^T over one slab. Column i of n-tile 2 p + j of a warp is
// column 16 p + 4 (i / 2) + 2 j + i % 2 of its tile: so a thread gets four neighbouring columns.
__device__ __forceinline__ void multiply_slab(float (&sums)[ROW_TILES][2 * COLUMN_PAIRS][4],
                                              const float* own, const float* stream) {
    const int lane = threadIdx.x % WARP;
    const int own_row = lane % 16, own_unit = lane / 16 * 4;
    const int i = lane % 8;
    const int stream_row = i / 2 * 4 + lane / 16 * 2 + i % 2, stream_unit = lane / 8 % 2 * 4;
#pragma unroll 2  // whole, it would take more registers than there are
    for (int step = 0; step < DEPTH; step += 8) {
        unsigned a[ROW_TILES][4];
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++)
            ldmatrix_x4(a[m], own + 16 * m * DEPTH +
                                  place<EightRows, DEPTH>(own_row, step + own_unit));
#pragma unroll
        for (int pair = 0; pair < COLUMN_PAIRS; pair++) {
            unsigned raw[4];
            ldmatrix_x4(raw, stream + 16 * pair * DEPTH +
                                 place<FourPairs, DEPTH>(stream_row, step + stream_unit));
            unsigned b[2][2];
#pragma unroll
            for (int r = 0; r < 4; r++) b[r / 2][r % 2] = tf32_round(__uint_as_float(raw[r]));
#pragma unroll
            for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
                for (int j = 0; j < 2; j++)
                    mma_m16n8k8_tf32(sums[m][2 * pair + j], a[m], b[j], sums[m][2 * pair + j]);
        }
    }
}

// Written: logits (N, Vp), if STORE_LOGITS; statistics (N, splits, COLUMN_WARPS, 2): over the
// columns below V of a split that one warp had, the largest logit in units of log 2, and the sum of
// exp(logit - largest). Read: lnf (N, C), wte (Vp, C).
// Grid: ceil(N / TILE) * splits. Dynamic shared memory: (DEPTHS + 2) * SLAB floats.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    head_logits(float* __restrict__ logits, float* __restrict__ statistics,
                const float* __restrict__ lnf, const float* __restrict__ wte, int N, int V, int Vp,
                int splits) {
    extern __shared__ __align__(16) float smem[];
    float* own = smem;                     // the block's rows of lnf: DEPTHS slabs, rounded
    float* stream = smem + DEPTHS * SLAB;  // two slabs of wte
    const int warp = threadIdx.x / WARP, group = threadIdx.x % WARP / 4, member = threadIdx.x % 4;
    const int warp_row = warp / COLUMN_WARPS * WARP_TILE;
    const int warp_column = warp % COLUMN_WARPS * WARP_TILE;

    // Neighbouring blocks have the same columns: they find a tile of wte in the L2 cache.
    const int row_blocks = (N + TILE - 1) / TILE;
    const int first_row = blockIdx.x % row_blocks * TILE, split = blockIdx.x / row_blocks;
    const int first_tile = Vp / TILE * split / splits;
    const int last_tile = Vp / TILE * (split + 1) / splits;
    const int num_slabs = (last_tile - first_tile) * DEPTHS;

    auto start_copy = [&](int slab) {
        const float* rows = wte + (long long)(first_tile + slab / DEPTHS) * TILE * CHANNELS;
        copy_tile<FourPairs, TILE, DEPTH>(stream + slab % 2 * SLAB, rows + slab % DEPTHS * DEPTH,
                                          CHANNELS, TILE);
        cp_async_commit();
    };
    for (int depth = 0; depth < DEPTHS; depth++)
        copy_tile<EightRows, TILE, DEPTH>(own + depth * SLAB,
                                          lnf + (long long)first_row * CHANNELS + depth * DEPTH,
                                          CHANNELS, N - first_row);
    start_copy(0);
    cp_async_wait<0>();
    for (int depth = 0; depth < DEPTHS; depth++)
        round_copied<EightRows, TILE, DEPTH>(own + depth * SLAB);

    // Per row of this thread (16 m + 8 half + group), over the columns it has seen.
    float largest[ROW_TILES][2], denominator[ROW_TILES][2] = {};
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++) largest[m][0] = largest[m][1] = MASKED;

    int slab = 0;
    for (int tile = first_tile; tile < last_tile; tile++) {
        float sums[ROW_TILES][2 * COLUMN_PAIRS][4] = {};
#pragma unroll 1
        for (int depth = 0; depth < DEPTHS; depth++, slab++) {
            cp_async_wait<0>();
            // Behind this barrier the slab is complete, and nobody reads the previous one any more.
            __syncthreads();
            if (slab + 1 < num_slabs) start_copy(slab + 1);
            multiply_slab(sums, own + depth * SLAB + warp_row * DEPTH,
                          stream + slab % 2 * SLAB + warp_column * DEPTH);
        }

        const int first_column = tile * TILE + warp_column + 4 * member;
#if STORE_LOGITS
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int row = first_row + warp_row + 16 * m + 8 * half + group;
                if (row >= N) continue;
                float* to = logits + ((long long)row * Vp + first_column);
#pragma unroll
                for (int pair = 0; pair < COLUMN_PAIRS; pair++) {
                    const float(&left)[4] = sums[m][2 * pair], (&right)[4] = sums[m][2 * pair + 1];
                    __stcs(reinterpret_cast<float4*>(to + 16 * pair),
                           make_float4(left[2 * half], left[2 * half + 1], right[2 * half],
                                       right[2 * half + 1]));
                }
            }
#endif
        if (tile * TILE + TILE > V) {
#pragma unroll
            for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
                for (int n = 0; n < 2 * COLUMN_PAIRS; n++)
#pragma unroll
                    for (int r = 0; r < 4; r++)
                        if (first_column + n / 2 * 16 + n % 2 * 2 + r % 2 >= V)
                            sums[m][n][r] = MASKED;
        }
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float highest = sums[m][0][2 * half];
#pragma unroll
                for (int n = 0; n < 2 * COLUMN_PAIRS; n++)
                    highest = fmaxf(highest, fmaxf(sums[m][n][2 * half], sums[m][n][2 * half + 1]));
                float shift = fmaxf(largest[m][half], highest * LOG2E);
                float sum = denominator[m][half] * exp2_approx(largest[m][half] - shift);
#pragma unroll
                for (int n = 0; n < 2 * COLUMN_PAIRS; n++)
#pragma unroll
                    for (int r = 2 * half; r < 2 * half + 2; r++)
                        sum += exp2_approx(sums[m][n][r] * LOG2E - shift);
                largest[m][half] = shift;
                denominator[m][half] = sum;
            }
    }

#pragma unroll
    for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float highest = largest[m][half];
            highest = fmaxf(highest, __shfl_xor_sync(FULL_WARP, highest, 1));
            highest = fmaxf(highest, __shfl_xor_sync(FULL_WARP, highest, 2));
            float sum = denominator[m][half] * exp2_approx(largest[m][half] - highest);
            sum += __shfl_xor_sync(FULL_WARP, sum, 1);
            sum += __shfl_xor_sync(FULL_WARP, sum, 2);
            int row = first_row + warp_row + 16 * m + 8 * half + group;
            if (member == 0 && row < N) {
                long long index = ((long long)row * splits + split) * COLUMN_WARPS +
                                  warp % COLUMN_WARPS;
                reinterpret_cast<float2*>(statistics)[index] = make_float2(highest, sum);
            }
        }
}

// losses[n] += lse[n] - lnf[n] . wte[targets[n]] for targets that are not -1.
// Written: lse (N), the log of the row's sum of exp(logit), in units of log 2; infinite for a
// target of -1, which makes every exp(logit - lse) of the row 0. Read: statistics (N, parts, 2) of
// head_logits, lnf (N, C), wte (Vp, C), targets (N). One warp per row.
extern "C" __global__ void head_softmax(float* losses, float* lse, const float* statistics,
                                        const float* lnf, const float* wte, const int* targets,
                                        int N, int parts) {
    const int lane = threadIdx.x % WARP;
    const int n = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (n >= N) return;  // the whole warp
    auto* own = reinterpret_cast<const float2*>(statistics) + (long long)n * parts;
    float highest = MASKED;
    for (int part = lane; part < parts; part += WARP) highest = fmaxf(highest, own[part].x);
    highest = warp_max(highest);
    float sum = 0.0f;
    for (int part = lane; part < parts; part += WARP)
        sum += own[part].y * exp2_approx(own[part].x - highest);
    sum = warp_sum(sum);
    const float row_lse = highest + log2f(sum);

    // The target's logit once more, from the same rounded factors: evaluation stores none.
    const int target = targets[n];
    const float* row = lnf + (long long)n * CHANNELS;
    const float* column = wte + (long long)max(target, 0) * CHANNELS;
    float dot = 0.0f;
#pragma unroll
    for (int c = lane; c < CHANNELS; c += WARP)
        dot += __uint_as_float(tf32_round(row[c])) * __uint_as_float(tf32_round(column[c]));
    dot = warp_sum(dot);
    if (lane == 0) {
        lse[n] = target < 0 ? __uint_as_float(0x7f800000u) : row_lse;
        if (target >= 0) losses[n] += row_lse / LOG2E - dot;
    }
}
