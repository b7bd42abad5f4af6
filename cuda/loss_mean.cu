// The mean of the losses of all tokens; contract in ops/loss_mean.py.
#include "lib/block_reduce.cuh"

// mean[0] = scale * sum of losses (N). One block: thread t adds up losses t, t + blockDim.x, ...
extern "C" __global__ void loss_mean(float* mean, const float* losses, int N, float scale) {
    float sum = 0.0f;
    for (int n = threadIdx.x; n < N; n += blockDim.x) sum += losses[n];
    sum = block_sum(sum);
    if (threadIdx.x == 0) mean[0] = sum * scale;
}
