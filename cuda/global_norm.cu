// The norm of all gradients. Every block writes a partial sum of squares, and a second kernel with
// one block adds them. The order of additions is fixed, so a run repeats bit for bit. Contract in
// ops/global_norm.py; after llm.c global_norm.cuh.
#include "lib/block_reduce.cuh"

// partials[block] = sum of the squares of the packs that the threads of the block visit: a thread
// visits pack `its number in the grid`, and from there every global_threads()-th pack.
extern "C" __global__ void global_norm_partials(float* partials, const float* grads,
                                                long long num_packs) {
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

// norm[0] = sqrt(sum of partials[0 .. num_partials - 1]). One block.
extern "C" __global__ void global_norm_final(float* norm, const float* partials, int num_partials) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < num_partials; i += blockDim.x) sum += partials[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) norm[0] = sqrtf(sum);
}
