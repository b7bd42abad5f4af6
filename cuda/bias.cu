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

struct Plain {
    using Loaded = RawPack;
    const floatX* dout;
    __device__ __forceinline__ Loaded load(long long offset) const {
        return load_raw(dout + offset);
    }
    __device__ __forceinline__ Pack finish(const Loaded& loaded, long long) const {
        return unpack(loaded);
    }
};

// partials[chunk, :] = sum of dout[rows of the chunk, :]; dout (N, OC), partials (chunks, OC).
extern "C" __global__ void __launch_bounds__(MAX_SUM_THREADS, 4)
    bias_backward_partials(float* partials, const floatX* dout, int N, int OC, int chunk_rows) {
    sum_chunk(partials, Plain{dout}, N, OC, chunk_rows);
}

// dbias += sum of the chunks' partial sums. One block of 1024 threads per 32 columns.
extern "C" __global__ void __launch_bounds__(1024)
    bias_backward_finish(float* dbias, const float* partials, int num_chunks, int OC) {
    add_column_sums(dbias, partials, num_chunks, OC);
}
