// Cross-entropy, rung 3: the lanes of a warp join their results by shuffles.
//
// Lanes hand their registers to each other without shared memory and without a barrier. What is
// left is one barrier for each reduction, when the 8 warps join (block_max, block_sum).
// lab: grid = N, block = 256
#include "lib/block_reduce.cuh"

constexpr int THREADS = 256;  // known to the compiler, which then unrolls the loops

extern "C" __global__ void cross_entropy_3(float* losses, floatX* logits, const int* targets, int N,
                                           int V, int Vp, float dloss) {
    const int n = blockIdx.x, target = targets[n];
    floatX* row = logits + (long long)n * Vp;
    const float target_logit = target >= 0 ? to_float(row[target]) : 0.0f;
    float largest = -1e30f, sum = 0.0f;
    for (int v = threadIdx.x; v < V; v += THREADS) largest = fmaxf(largest, to_float(row[v]));
    largest = block_max(largest);
    for (int v = threadIdx.x; v < V; v += THREADS) sum += expf(to_float(row[v]) - largest);
    sum = block_sum(sum);  // its barrier: all have read target_logit
    if (threadIdx.x == 0 && target >= 0) losses[n] += logf(sum) - (target_logit - largest);
    for (int v = threadIdx.x; v < Vp; v += THREADS) {
        float gradient = 0.0f;
        if (target >= 0 && v < V)
            gradient = dloss * (expf(to_float(row[v]) - largest) / sum - (v == target));
        row[v] = from_float<floatX>(gradient);
    }
}
