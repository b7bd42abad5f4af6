// The norm of all gradients in two steps; contract in ops/global_norm.py, after llm.c's idea of
// block sums that one more block adds up (global_norm.cuh).
#include "lib/reduce.cuh"

// partials[block] = sum of squares of the packs block * blockDim + thread, + total threads, ...
extern "C" __global__ void squares(float* partials, const float* grads, long long num_packs) {
    float sum = 0.0f;
#pragma unroll 4
    for (long long pack = global_thread(); pack < num_packs; pack += global_threads()) {
        Floats<4> g = load<4>(grads + pack * 4);
#pragma unroll
        for (int k = 0; k < 4; k++) sum += g[k] * g[k];
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// norm[0] = sqrt(sum of the partials). One block.
extern "C" __global__ void norm_of_squares(float* norm, const float* partials, int num_parts) {
    float sum = 0.0f;
    for (int part = threadIdx.x; part < num_parts; part += blockDim.x) sum += partials[part];
    sum = block_sum(sum);
    if (threadIdx.x == 0) norm[0] = sqrtf(sum);
}
