// LayerNorm, rung 1: one thread for each row. Correct, and that is all.
//
// The 32 lanes of a warp stand at the same column of 32 rows. What they ask for at once lies C
// elements apart: 32 sectors of 32 bytes for 32 numbers.
// lab: grid = ceil_div(N, 128), block = 128
#include "lib/packs.cuh"

extern "C" __global__ void layernorm_1(floatX* out, float* mean, float* rstd, const floatX* inp,
                                       const floatX* weight, const floatX* bias, int N, int C,
                                       float epsilon) {
    const int n = blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= N) return;
    const floatX* row = inp + (long long)n * C;
    float sum = 0.0f;
    for (int c = 0; c < C; c++) sum += to_float(row[c]);
    const float m = sum / C;
    float squares = 0.0f;
    for (int c = 0; c < C; c++) squares += (to_float(row[c]) - m) * (to_float(row[c]) - m);
    const float s = 1.0f / sqrtf(squares / C + epsilon);
    for (int c = 0; c < C; c++) {
        const float normed = (to_float(row[c]) - m) * s;
        out[(long long)n * C + c] =
            from_float<floatX>(normed * to_float(weight[c]) + to_float(bias[c]));
    }
    mean[n] = m;
    rstd[n] = s;
}
