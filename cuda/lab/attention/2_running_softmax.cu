// Attention, rung 2: one thread for each query, and no scores in memory.
//
// The thread walks over the keys. It keeps the largest score so far, the sum of exp(score -
// largest) and the sum of the values with these weights. A larger score scales both sums down
// (online softmax; FlashAttention, Dao et al. 2022, arXiv:2205.14135). Query and sums stay in
// registers.
//
// All threads of a warp read the same key at the same time, but the next warp reads it again.
// lab: grid = (ceil_div(T, 64), B * NH), block = 64
#include "lib/packs.cuh"

extern "C" __global__ void attention_2(floatX* out, float* lse, const floatX* qkv, int B, int T,
                                       int NH) {
    const int t = blockIdx.x * blockDim.x + threadIdx.x, bh = blockIdx.y;
    if (t >= T) return;
    const long long stride = 3LL * NH * HS;
    const floatX* head = qkv + bh / NH * T * stride + bh % NH * HS;
    float query[HS], sums[HS] = {}, largest = -1e30f, denominator = 0.0f;
#pragma unroll
    for (int i = 0; i < HS; i++) query[i] = to_float(head[t * stride + i]) / sqrtf(float(HS));
    for (int s = 0; s <= t; s++) {
        const floatX* key = head + s * stride + NH * HS;
        const floatX* value = key + NH * HS;
        float score = 0.0f;
#pragma unroll
        for (int i = 0; i < HS; i++) score += query[i] * to_float(key[i]);
        if (score > largest) {
            const float scale = __expf(largest - score);
            denominator *= scale;
#pragma unroll
            for (int i = 0; i < HS; i++) sums[i] *= scale;
            largest = score;
        }
        const float weight = __expf(score - largest);
        denominator += weight;
#pragma unroll
        for (int i = 0; i < HS; i++) sums[i] += weight * to_float(value[i]);
    }
    floatX* row = out + (((long long)(bh / NH) * T + t) * NH + bh % NH) * HS;
#pragma unroll
    for (int i = 0; i < HS; i++) row[i] = from_float<floatX>(sums[i] / denominator);
    lse[(long long)bh * T + t] = largest + logf(denominator);
}
