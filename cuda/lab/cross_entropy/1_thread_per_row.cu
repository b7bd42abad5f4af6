// Cross-entropy, rung 1: one thread for each row, three passes over it.
//
// Pass 1 finds the largest logit, pass 2 sums the exponentials, pass 3 writes the gradient. The
// lanes of a warp stand Vp elements apart: 32 sectors for each request, in each pass.
// lab: grid = ceil_div(N, 64), block = 64
#include "lib/packs.cuh"

extern "C" __global__ void cross_entropy_1(float* losses, floatX* logits, const int* targets, int N,
                                           int V, int Vp, float dloss) {
    const int n = blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= N) return;
    floatX* row = logits + (long long)n * Vp;
    const int target = targets[n];
    float largest = -1e30f, sum = 0.0f;
    for (int v = 0; v < V; v++) largest = fmaxf(largest, to_float(row[v]));
    for (int v = 0; v < V; v++) sum += expf(to_float(row[v]) - largest);
    if (target >= 0) losses[n] += logf(sum) - (to_float(row[target]) - largest);
    for (int v = 0; v < Vp; v++) {
        float gradient = 0.0f;
        if (target >= 0 && v < V)
            gradient = dloss * (expf(to_float(row[v]) - largest) / sum - (v == target));
        row[v] = from_float<floatX>(gradient);
    }
}
