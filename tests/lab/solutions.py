"""Solutions of the exercises that only set a goal: each shows that the goal can be reached."""

COLUMN_SUM = """// lab: grid = ceil_div(OC, 32), block = (32, 8)
#include "lib/packs.cuh"
extern "C" __global__ void side_by_side(float* dbias, const floatX* dout, int N, int OC) {
    __shared__ float sums[8][32];
    const int column = blockIdx.x * 32 + threadIdx.x;
    float sum = 0.0f;
    if (column < OC)
        for (int n = threadIdx.y; n < N; n += 8) sum += to_float(dout[(long long)n * OC + column]);
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || column >= OC) return;
    for (int y = 1; y < 8; y++) sum += sums[y][threadIdx.x];
    dbias[column] += sum;
}
"""

ADAMW = """// lab: grid = ceil_div(N, 1024), block = 256
#include "lib/packs.cuh"
extern "C" __global__ void packs(float* params, float* m, float* v, const float* grads,
                                 const float* grad_norm, const float* controls, long long N,
                                 float beta1, float beta2, float epsilon, float weight_decay,
                                 float grad_clip) {
    const long long i = global_thread() * 4;
    if (i >= N) return;
    const float lr = controls[0], of_m = controls[1], of_v = controls[2], norm = grad_norm[0];
    const float clip = 0.0f < grad_clip && grad_clip < norm ? grad_clip / norm : 1.0f;
    Floats<4> p = load<4>(params + i), g = load<4>(grads + i);
    Floats<4> m4 = load<4>(m + i), v4 = load<4>(v + i);
    for (int k = 0; k < 4; k++) {
        m4[k] = beta1 * m4[k] + (1.0f - beta1) * clip * g[k];
        v4[k] = beta2 * v4[k] + (1.0f - beta2) * clip * g[k] * clip * g[k];
        const float denominator = sqrtf(v4[k] / of_v) + epsilon;
        p[k] -= lr * (m4[k] / of_m / denominator + weight_decay * p[k]);
    }
    store(params + i, p), store(m + i, m4), store(v + i, v4);
}
"""
