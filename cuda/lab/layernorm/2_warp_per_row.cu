// LayerNorm, rung 2: one warp for each row, so that neighbouring lanes read neighbouring columns.
//
//    lane     0   1   2  ...  31 |  0   1   2  ...
//    column   0   1   2  ...  31 | 32  33  34  ...
//
// 32 floats are 4 sectors, all of which are used. The lanes' sums are joined by shuffles.
// lab: grid = ceil_div(N, 4), block = 128
#include "lib/reduce.cuh"

extern "C" __global__ void layernorm_2(floatX* out, float* mean, float* rstd, const floatX* inp,
                                       const floatX* weight, const floatX* bias, int N, int C,
                                       float epsilon) {
    const int n = (blockIdx.x * blockDim.x + threadIdx.x) / WARP, lane = threadIdx.x % WARP;
    if (n >= N) return;  // the same in all lanes
    const floatX* row = inp + (long long)n * C;
    float sum = 0.0f;
    for (int c = lane; c < C; c += WARP) sum += to_float(row[c]);
    const float m = warp_sum(sum) / C;
    float squares = 0.0f;
    for (int c = lane; c < C; c += WARP) squares += (to_float(row[c]) - m) * (to_float(row[c]) - m);
    const float s = 1.0f / sqrtf(warp_sum(squares) / C + epsilon);
    for (int c = lane; c < C; c += WARP) {
        const float normed = (to_float(row[c]) - m) * s;
        out[(long long)n * C + c] =
            from_float<floatX>(normed * to_float(weight[c]) + to_float(bias[c]));
    }
    if (lane == 0) mean[n] = m;
    if (lane == 0) rstd[n] = s;
}
