// The gradient of a bias, which is added to every row of a matrix: the sum of the rows of the
// matrix's gradient. Contract in ops/bias.py.
#include "lib/chunk_sums.cuh"
#include "lib/column_sums.cuh"

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
