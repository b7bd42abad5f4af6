// Building blocks of the fused head (head_forward.cu, head_backward.cu): products in TF32 by mma
// m16n8k8 over tiles that cp.async brings to shared memory.
//
// Needs -DCHANNELS, C: a multiple of 32 up to 128. Lane = 4 * group + member throughout.
#pragma once

#include "common.cuh"
#include "ptx.cuh"

constexpr int THREADS = 128;
constexpr int TILE = 128;  // rows, and columns, of logits that a block has in hand at once
constexpr int DEPTH = 32;  // contraction of one stage of a pipeline
constexpr int SLAB = TILE * DEPTH;
constexpr float LOG2E = 1.4426950408889634f;

// Two blocks of an H100, or one of a consumer GPU with 99 KiB, hold all tiles of this many columns.
static_assert(CHANNELS % DEPTH == 0 && CHANNELS <= 128, "more channels need other tiles");

// ---- tiles in shared memory ------------------------------------------------------------------
//
// Rows of 32 or more floats begin in the same bank, so a column would be read from one bank. The
// 16-byte units of a row therefore change places: unit u lies at u ^ key(row). Which rows a warp
// reads at once decides about the key.

struct EightRows {  // neighbouring ones
    static __device__ __forceinline__ int key(int row) { return row % 8; }
};
struct FourPairs {  // 4 i and 4 i + 1, or 4 i + 2 and 4 i + 3, for four neighbouring i
    static __device__ __forceinline__ int key(int row) { return row / 4 % 4 * 2 + row % 2; }
};
struct FourRows {  // neighbouring ones, two neighbouring units (2 u and 2 u + 1) of each
    static __device__ __forceinline__ int key(int row) { return row % 4 * 2; }
};

// Offset of (row, column) in a tile of rows of WIDTH floats; column is a multiple of 4.
template <class Rows, int WIDTH>
__device__ __forceinline__ int place(int row, int column) {
    static_assert(WIDTH % 32 == 0, "the key has three bits");
    return row * WIDTH + (column ^ 4 * Rows::key(row));
}

// Calls work(row, column) for the 16-byte units of a tile that fall to this thread.
template <int ROWS, int WIDTH, class Work>
__device__ __forceinline__ void for_own_units(Work work) {
    static_assert(ROWS * WIDTH / 4 % THREADS == 0, "all threads have equally many");
#pragma unroll
    for (int first = 0; first < ROWS * WIDTH / 4; first += THREADS) {
        int unit = first + threadIdx.x;
        work(unit / (WIDTH / 4), unit % (WIDTH / 4) * 4);
    }
}

// Starts copying ROWS rows of WIDTH floats; rows from rows_left on become zeros. `stride` is the
// distance of two rows of the source.
template <class Rows, int ROWS, int WIDTH>
__device__ __forceinline__ void copy_tile(float* tile, const float* source, int stride,
                                          int rows_left) {
    for_own_units<ROWS, WIDTH>([&](int row, int column) {
        bool inside = row < rows_left;
        const float* from = inside ? source + (row * stride + column) : source;
        cp_async16_zfill(tile + place<Rows, WIDTH>(row, column), from, inside ? 16 : 0);
    });
}

// Rounds to TF32 what this thread copied and has waited for.
template <class Rows, int ROWS, int WIDTH>
__device__ __forceinline__ void round_copied(float* tile) {
    for_own_units<ROWS, WIDTH>([&](int row, int column) {
        auto* unit = reinterpret_cast<uint4*>(tile + place<Rows, WIDTH>(row, column));
        uint4 bits = *unit;
        bits.x = tf32_round(__uint_as_float(bits.x));
        bits.y = tf32_round(__uint_as_float(bits.y));
        bits.z = tf32_round(__uint_as_float(bits.z));
        bits.w = tf32_round(__uint_as_float(bits.w));
        *unit = bits;
    });
}

// tf32_round for values that are not NaN, in one instruction instead of three: half a unit of the
// last place is added, and mma does not look at the bits below it.
__device__ __forceinline__ unsigned tf32_round_number(float value) {
    return __float_as_uint(value) + 0x1000u;
}
