// A linear layer for a few rows, with what stands before and after it in the model. Writing text is
// this product over and over: each token reads all weights once, and the time is that of reading.
//
// A row of `weight` is one output. A team of warps, mostly one warp, has an output, or several for
// the head with its many; its lanes take packs in turn. Every lane starts all its loads of weights
// before anything else. While they are on their way, the block brings the rows of `inp` into shared
// memory, and their LayerNorm is computed there, by each block anew: that takes less time than
// another launch.
//
//    rows, shared      [ x0 | x1 | ... | x31 | x32 | ... ]      x normalised
//                         *    *          *     *
//    weight, output o  [ w0 | w1 | ... | w31 | w32 | ... ]      packs
//    lane                0    1   ...    31     0   ...         sums, one for each row
//                        `------- added up ----'                + bias, GELU, + what out holds
//
// -DROWS of inp, -DOUTPUTS of a team, -DTEAM_WARPS, -DWARPS of a block, -DPACKS of a lane that are
// loaded together, -DNORM, -DGELU and -DADD (0 or 1): which of the three there are.
#include "lib/gelu.cuh"
#include "lib/reduce.cuh"

constexpr int TEAM_LANES = TEAM_WARPS * WARP, TEAMS = WARPS / TEAM_WARPS;
constexpr int SUMS = OUTPUTS * ROWS;  // of a team
// Warps of a multiprocessor: they leave a thread 64, 80 or 128 registers.
constexpr int RESIDENT_WARPS = OUTPUTS > 1 ? 16 : NORM ? 24 : 32;
constexpr int ROUND_COLUMNS = PACKS * TEAM_LANES * PACK_SIZE;

static_assert(WARPS % TEAM_WARPS == 0, "whole teams");

// A lane's packs of its outputs, as they lie in memory.
using Weights = RawPack[OUTPUTS][PACKS];

// Column of this lane's pack p in the round that begins at column `start`.
__device__ __forceinline__ int pack_column(int start, int p) {
    return start + (p * TEAM_LANES + (int)threadIdx.x % TEAM_LANES) * PACK_SIZE;
}

// Step 1: start to load the weights. An output beyond the last one reads the last one.
__device__ __forceinline__ void load_weights(Weights& loaded, const floatX* weight, int first,
                                             int start, int C, int OC) {
#pragma unroll
    for (int o = 0; o < OUTPUTS; o++) {
        const floatX* row = weight + (long long)min(first + o, OC - 1) * C;
#pragma unroll
        for (int p = 0; p < PACKS; p++)
            if (pack_column(start, p) < C) loaded[o][p] = load_raw(row + pack_column(start, p));
    }
}

// Step 2, without a norm: the rows as they are. All threads of the block take part.
__device__ __forceinline__ void copy_rows(floatX* rows, const floatX* inp, int C) {
    for (int i = threadIdx.x * PACK_SIZE; i < ROWS * C; i += WARPS * WARP * PACK_SIZE)
        store_raw(rows + i, load_raw(inp + i));
}

constexpr int KEPT = 3, STRIDE = WARP * PACK_SIZE;  // packs of a row in registers

// A lane's packs of a row: the first ones are in registers, the rest is loaded again each time.
struct LanePacks {
    const floatX* inp;
    int C;
    RawPack kept[KEPT];

    __device__ __forceinline__ static int column(int p) {
        return (p * WARP + (int)threadIdx.x % WARP) * PACK_SIZE;
    }
    __device__ __forceinline__ LanePacks(const floatX* row, int C) : inp(row), C(C) {
#pragma unroll
        for (int p = 0; p < KEPT; p++) {
            kept[p] = RawPack{};
            if (column(p) < C) kept[p] = load_raw(inp + column(p));
        }
    }
    // The sum of term(x) over all elements of the row.
    template <class Term>
    __device__ __forceinline__ float sum(const Term& term) const {
        float sum = 0.0f;
#pragma unroll
        for (int p = 0; p < KEPT; p++) {
            const Pack x = unpack(kept[p]);
            if (column(p) >= C) continue;
#pragma unroll
            for (int k = 0; k < PACK_SIZE; k++) sum += term(x[k]);
        }
#pragma unroll 1
        for (int i = column(KEPT); i < C; i += STRIDE) {
            const Pack x = load_pack(inp + i);
#pragma unroll
            for (int k = 0; k < PACK_SIZE; k++) sum += term(x[k]);
        }
        return warp_sum(sum);
    }
};

// Step 2, with a norm: a warp normalises a row (layernorm.cu has the formula), and rounds it as a
// LayerNorm of its own would store it. All its loads start together.
__device__ __forceinline__ void normalise_row(floatX* row, const floatX* inp, const floatX* scale,
                                              const floatX* shift, int C, float epsilon) {
    const LanePacks x(inp, C), w(scale, C), b(shift, C);
    const float mean = x.sum([](float value) { return value; }) / C;
    const float variance =
        x.sum([mean](float value) { return (value - mean) * (value - mean); }) / C;
    const float rstd = 1.0f / sqrtf(variance + epsilon);
    auto finish = [&](int i, Pack values, const Pack& factor, const Pack& addend) {
#pragma unroll
        for (int k = 0; k < PACK_SIZE; k++)
            values[k] = (values[k] - mean) * rstd * factor[k] + addend[k];
        store(row + i, values);
    };
#pragma unroll
    for (int p = 0; p < KEPT; p++)
        if (x.column(p) < C)
            finish(x.column(p), unpack(x.kept[p]), unpack(w.kept[p]), unpack(b.kept[p]));
#pragma unroll 1
    for (int i = x.column(KEPT); i < C; i += STRIDE)
        finish(i, load_pack(inp + i), load_pack(scale + i), load_pack(shift + i));
}

// Step 3: sums[o][r] += the products of this lane's packs.
__device__ __forceinline__ void add_products(float (&sums)[OUTPUTS][ROWS], const Weights& loaded,
                                             const floatX* rows, int start, int C) {
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        if (pack_column(start, p) >= C) continue;
        Pack w[OUTPUTS];
#pragma unroll
        for (int o = 0; o < OUTPUTS; o++) w[o] = unpack(loaded[o][p]);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const Pack x = load_pack(rows + r * C + pack_column(start, p));
#pragma unroll
            for (int o = 0; o < OUTPUTS; o++)
#pragma unroll
                for (int k = 0; k < PACK_SIZE; k++) sums[o][r] += w[o][k] * x[k];
        }
    }
}

// All steps, see linear_few_rows.
template <class Out>
__device__ __forceinline__ void few_rows(Out* out, const floatX* inp, const floatX* weight,
                                         const floatX* bias, const floatX* scale,
                                         const floatX* shift, int C, int OC, int out_stride,
                                         float epsilon) {
    extern __shared__ __align__(16) floatX smem[];
    __shared__ float of_warp[WARPS][SUMS];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int first_of_block = blockIdx.x * TEAMS * OUTPUTS;
    const int first = first_of_block + warp / TEAM_WARPS * OUTPUTS;

    Weights loaded;
    load_weights(loaded, weight, first, 0, C, OC);
    if constexpr (NORM) {
        for (int r = warp; r < ROWS; r += WARPS)
            normalise_row(smem + r * C, inp + r * C, scale, shift, C, epsilon);
    } else {
        copy_rows(smem, inp, C);
    }
    __syncthreads();

    float sums[OUTPUTS][ROWS] = {};
    for (int start = 0; start < C; start += ROUND_COLUMNS) {
        if (start > 0) load_weights(loaded, weight, first, start, C, OC);
        add_products(sums, loaded, smem, start, C);
    }
#pragma unroll
    for (int o = 0; o < OUTPUTS; o++)
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const float sum = warp_sum(sums[o][r]);
            if (lane == 0) of_warp[warp][o * ROWS + r] = sum;
        }
    __syncthreads();

    for (int i = threadIdx.x; i < TEAMS * SUMS; i += WARPS * WARP) {
        const int team = i / SUMS, o = i % SUMS / ROWS, r = i % ROWS;
        const int output = first_of_block + team * OUTPUTS + o;
        if (output >= OC) continue;
        float value = bias == nullptr ? 0.0f : to_float(bias[output]);
        for (int w = 0; w < TEAM_WARPS; w++) value += of_warp[team * TEAM_WARPS + w][i % SUMS];
        if constexpr (GELU) value *= logistic_of_2u(value);
        Out* target = out + (long long)r * out_stride + output;
        Out rounded = from_float<Out>(value);
        if constexpr (ADD) rounded = from_float<Out>(to_float(*target) + to_float(rounded));
        *target = rounded;
    }
}

// out[r] = f(norm(inp[r]) @ weight.T + bias), or out += that. Written, or updated in place with
// ADD: out (ROWS, >= OC), rows out_stride elements apart. Read: inp (ROWS, C); weight (OC, C); bias
// (OC), if there is one; scale, shift (C) of the norm. Shared: ROWS * C floatX.
// Grid: ceil(OC / (TEAMS * OUTPUTS)).
extern "C" __global__ void __launch_bounds__(WARPS* WARP, RESIDENT_WARPS / WARPS)
    linear_few_rows(floatX* out, const floatX* __restrict__ inp, const floatX* __restrict__ weight,
                    const floatX* __restrict__ bias, const floatX* __restrict__ scale,
                    const floatX* __restrict__ shift, int C, int OC, int out_stride,
                    float epsilon) {
    few_rows(out, inp, weight, bias, scale, shift, C, OC, out_stride, epsilon);
}

// The same for logits, which are not rounded.
extern "C" __global__ void __launch_bounds__(WARPS* WARP, RESIDENT_WARPS / WARPS)
    linear_few_rows_float(float* out, const floatX* __restrict__ inp,
                          const floatX* __restrict__ weight, const floatX* __restrict__ bias,
                          const floatX* __restrict__ scale, const floatX* __restrict__ shift, int C,
                          int OC, int out_stride, float epsilon) {
    few_rows(out, inp, weight, bias, scale, shift, C, OC, out_stride, epsilon);
}
