// Addition of a bias to every row, and its gradient; contract in ops/bias.py.
#include "lib/row_sums.cuh"

// out[n, :] += bias; out (N, OC), bias (OC). Threads (x, y): pack x of row y, in strides.
extern "C" __global__ void bias_add(floatX* out, const floatX* bias, int N, int OC) {
    int row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= N) return;
    for (int column = threadIdx.x * PACK_SIZE; column < OC; column += blockDim.x * PACK_SIZE) {
        floatX* address = out + (long long)row * OC + column;
        Pack x = load_pack(address), b = load_pack(bias + column);
#pragma unroll
        for (int k = 0; k < PACK_SIZE; k++) x[k] += b[k];
        store(address, x);
    }
}

// The elements of dout as they are.
struct DirectLoad {
    using Raw = RawPack;
    const floatX* dout;
    __device__ __forceinline__ Raw load(long long offset) const { return load_raw(dout + offset); }
    __device__ __forceinline__ Pack finish(const Raw& raw, long long) const { return unpack(raw); }
};

// partials[chunk, :] = sum of dout[rows of the chunk, :]; dout (N, OC), partials (chunks, OC).
extern "C" __global__ void __launch_bounds__(SUM_THREADS, 4)
    bias_backward_partials(float* partials, const floatX* dout, int N, int OC, int chunk_rows) {
    sum_chunk<ROWS_IN_FLIGHT>(partials, DirectLoad{dout}, N, OC, chunk_rows);
}

// dbias += sum of the chunks' partial sums. Grid ceil(OC / WARP), block SQUARE_THREADS.
extern "C" __global__ void __launch_bounds__(SQUARE_THREADS)
    bias_backward_finish(float* dbias, const float* partials, int num_chunks, int OC) {
    add_column_sums(dbias, partials, num_chunks, OC);
}
