// LayerNorm, rung 4: a lane takes packs of 16 bytes, so a warp asks for 512 bytes at once.
//
//    lane           0       1       2    ...   31   |   0    ...
//    pack         [0-3]   [4-7]  [8-11]  ... [124-127] [128-131]      columns, in float
//
// A bfloat16 pack stays packed until it is used: then the row takes half the registers.
// lab: grid = ceil_div(N, 4), block = 128, PACKS = ceil_div(C, 32 * PACK_SIZE)
#include "lib/reduce.cuh"

extern "C" __global__ void layernorm_4(floatX* out, float* mean, float* rstd, const floatX* inp,
                                       const floatX* weight, const floatX* bias, int N, int C,
                                       float epsilon) {
    const int n = (blockIdx.x * blockDim.x + threadIdx.x) / WARP, lane = threadIdx.x % WARP;
    if (n >= N) return;  // the same in all lanes
    const long long row = (long long)n * C;
    RawPack raw[PACKS];
    float sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        const int c = (p * WARP + lane) * PACK_SIZE;
        raw[p] = c < C ? load_raw(inp + row + c) : RawPack{};
    }
#pragma unroll
    for (int p = 0; p < PACKS; p++)
#pragma unroll
        for (int k = 0; k < PACK_SIZE; k++) sum += unpack(raw[p])[k];
    const float m = warp_sum(sum) / C;
#pragma unroll
    for (int p = 0; p < PACKS; p++)
#pragma unroll
        for (int k = 0; k < PACK_SIZE; k++) {
            const float centred = unpack(raw[p])[k] - m;
            if ((p * WARP + lane) * PACK_SIZE < C) squares += centred * centred;
        }
    const float s = 1.0f / sqrtf(warp_sum(squares) / C + epsilon);
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        const int c = (p * WARP + lane) * PACK_SIZE;
        if (c >= C) continue;
        Pack x = unpack(raw[p]);
        const Pack w = load_pack(weight + c), b = load_pack(bias + c);
#pragma unroll
        for (int k = 0; k < PACK_SIZE; k++) x[k] = (x[k] - m) * s * w[k] + b[k];
        store(out + row + c, x);
    }
    if (lane == 0) mean[n] = m, rstd[n] = s;
}
