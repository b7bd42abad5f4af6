// Which rows of which head a block works on, and where they lie in memory. Every attention kernel
// but the one for decoding begins with these lines.
//
// A head of one sequence has the index bh = b * NH + h. In qkv (B, T, 3, NH, HS), one position of
// one sequence is
//
//     | q head 0 | q head 1 | ... | k head 0 | k head 1 | ... | v head 0 | v head 1 | ... |
//      <-- HS -->
//      <-------- NH * HS --------> <-------- NH * HS --------> <-------- NH * HS -------->
//
// so the next row of the same head is 3 * NH * HS elements away. In out (B, T, NH, HS) it is NH *
// HS elements away.
//
// Causality: query t sees the keys 0 to t. Of the T x T scores of a head, cut into tiles, a kernel
// computes only those on and below the diagonal:
//
//                       keys
//                  0    1    2    3
//                +----+----+----+----+        ##  every score of the tile counts
//              0 | \  |    |    |    |         \  scores above the diagonal are masked
//                +----+----+----+----+            empty: skipped
//     queries  1 | ## | \  |    |    |
//                +----+----+----+----+        forward and dq: a block owns a row of this picture
//              2 | ## | ## | \  |    |        and walks over its tiles of keys and values.
//                +----+----+----+----+        dkdv: a block owns a column and walks over its tiles
//              3 | ## | ## | ## | \  |        of queries and dout.
//                +----+----+----+----+
//
// Blocks of one head are neighbours in the grid: they share the streamed rows in the L2 cache. The
// blocks with the most tiles come first (the last queries, the first keys), so that the launch ends
// with short blocks and no multiprocessor works alone for long.
//
// -DHS head size.
#pragma once
#include "lib/packs.cuh"

// Elements from one row of a head to the next: in qkv and dqkv, and in out and dout.
__device__ __forceinline__ long long qkv_stride(int NH) { return 3LL * NH * HS; }
__device__ __forceinline__ long long out_stride(int NH) { return (long long)NH * HS; }

// The rows that a block owns.
struct BlockRows {
    int first;     // the first of them, within its sequence
    int bh, b, h;  // their head

    // Row 0 of a slot in an array whose rows are `stride` elements apart.
    template <class Element>
    __device__ __forceinline__ Element* slot(Element* array, int T, long long stride,
                                             int index) const {
        return array + b * T * stride + index * HS;
    }
    // Row 0 of the head in an array (B, NH, T) with one entry for each query.
    template <class Element>
    __device__ __forceinline__ Element* statistics(Element* array, int T) const {
        return array + (long long)bh * T;
    }
};

// ROWS queries for each block; the last queries come first.
template <int ROWS>
__device__ __forceinline__ BlockRows block_of_queries(int T, int NH) {
    const int num_blocks = (T + ROWS - 1) / ROWS;
    const int first = (num_blocks - 1 - int(blockIdx.x % num_blocks)) * ROWS;
    const int bh = blockIdx.x / num_blocks;
    return {first, bh, bh / NH, bh % NH};
}

// ROWS keys for each block, or for SPLITS neighbouring blocks that share the columns; the first
// keys come first.
template <int ROWS, int SPLITS = 1>
__device__ __forceinline__ BlockRows block_of_keys(int T, int NH) {
    const int num_blocks = (T + ROWS - 1) / ROWS;
    const int first = blockIdx.x / SPLITS % num_blocks * ROWS;
    const int bh = blockIdx.x / SPLITS / num_blocks;
    return {first, bh, bh / NH, bh % NH};
}
