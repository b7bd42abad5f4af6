// LayerNorm, rung 3: the row stays in registers, so it is read once and not three times.
//
// Registers have no index at run time: how many columns a lane holds must be known when the kernel
// is compiled, and the loops over them are unrolled.
// lab: grid = ceil_div(N, 4), block = 128, COLUMNS = ceil_div(C, 32)
#include "lib/reduce.cuh"

extern "C" __global__ void layernorm_3(floatX* out, float* mean, float* rstd, const floatX* inp,
                                       const floatX* weight, const floatX* bias, int N, int C,
                                       float epsilon) {
    const int n = (blockIdx.x * blockDim.x + threadIdx.x) / WARP, lane = threadIdx.x % WARP;
    if (n >= N) return;  // the same in all lanes
    const floatX* row = inp + (long long)n * C;
    float x[COLUMNS], sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (int i = 0; i < COLUMNS; i++) {
        const int c = i * WARP + lane;
        x[i] = c < C ? to_float(row[c]) : 0.0f;
        sum += x[i];
    }
    const float m = warp_sum(sum) / C;
#pragma unroll
    for (int i = 0; i < COLUMNS; i++)
        if (i * WARP + lane < C) squares += (x[i] - m) * (x[i] - m);
    const float s = 1.0f / sqrtf(warp_sum(squares) / C + epsilon);
#pragma unroll
    for (int i = 0; i < COLUMNS; i++) {
        const int c = i * WARP + lane;
        if (c >= C) continue;
        const float y = (x[i] - m) * s * to_float(weight[c]) + to_float(bias[c]);
        out[(long long)n * C + c] = from_float<floatX>(y);
    }
    if (lane == 0) mean[n] = m;
    if (lane == 0) rstd[n] = s;
}
