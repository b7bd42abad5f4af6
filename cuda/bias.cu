// Addition of a bias to every row, and its gradient; contract in ops/bias.py.
#include "column_sum.cuh"

// out[n, :] += bias; out (N, OC), bias (OC). Threads (x, y): pack x of row y, in strides.
extern "C" __global__ void bias_add(floatX* out, const floatX* bias, int N, int OC) {
    int row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= N) return;
    for (int column = threadIdx.x * LANES; column < OC; column += blockDim.x * LANES) {
        floatX* address = out + (long long)row * OC + column;
        Pack x = load_pack(address), b = load_pack(bias + column);
#pragma unroll
        for (int k = 0; k < LANES; k++) x[k] += b[k];
        store(address, x);
    }
}

constexpr int PACKS = 8;  // of one block's columns: 8 lanes read 128 neighbouring bytes
constexpr int GROUPS = 32;

// partials[chunk, :] = sum of dout[rows of the chunk, :]; dout (N, OC), partials (chunks, OC).
// Block (x, chunk) of 256 threads: 8 packs of columns, rows shared by 32 groups of 8 lanes.
extern "C" __global__ void __launch_bounds__(256)
bias_backward_partials(float* partials, const floatX* dout, int N, int OC, int chunk_rows) {
    __shared__ float sums[GROUPS][PACKS * LANES];
    int lane = threadIdx.x % PACKS, group = threadIdx.x / PACKS;
    int first_column = blockIdx.x * PACKS * LANES, column = first_column + lane * LANES;
    long long start = (long long)blockIdx.y * chunk_rows;
    long long stop = min(start + chunk_rows, (long long)N);
    Pack sum = filled<LANES>(0.0f);
    if (column < OC) {
#pragma unroll 4
        for (long long row = start + group; row < stop; row += GROUPS) {
            Pack x = load_pack(dout + row * OC + column);
#pragma unroll
            for (int k = 0; k < LANES; k++) sum[k] += x[k];
        }
    }
#pragma unroll
    for (int k = 0; k < LANES; k++) sums[group][lane * LANES + k] = sum[k];
    __syncthreads();
    int mine = threadIdx.x;
    if (mine < PACKS * LANES && first_column + mine < OC) {
        float total = 0.0f;
        for (int row = 0; row < GROUPS; row++) total += sums[row][mine];
        partials[(long long)blockIdx.y * OC + first_column + mine] = total;
    }
}

// dbias += sum of the chunks' partial sums. One block of 256 threads per 32 columns.
extern "C" __global__ void __launch_bounds__(256)
bias_backward_finish(float* dbias, const float* partials, int num_chunks, int OC) {
    add_column_sums(dbias, partials, num_chunks, OC);
}
