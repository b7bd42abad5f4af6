// Attention, rung 3: the block fetches 32 keys and values at a time into shared memory, as floats.
// All its queries use them there: what is fetched falls by the number of warps in a block, and
// accesses have 128 bits.
// lab: grid = (ceil_div(T, 128), B * NH), block = 128
#include "lib/packs.cuh"

constexpr int KEYS = 32, PACKS = HS / PACK_SIZE;

extern "C" __global__ void attention_3(floatX* out, float* lse, const floatX* qkv, int B, int T,
                                       int NH) {
    __shared__ __align__(16) float keys[KEYS][HS], values[KEYS][HS];
    const int t = blockIdx.x * blockDim.x + threadIdx.x, bh = blockIdx.y;
    const long long stride = 3LL * NH * HS;
    const floatX* head = qkv + bh / NH * T * stride + bh % NH * HS;
    float query[HS], sums[HS] = {}, largest = -1e30f, denominator = 0.0f;
#pragma unroll
    for (int i = 0; i < HS; i++)
        query[i] = t < T ? to_float(head[t * stride + i]) / sqrtf(float(HS)) : 0.0f;
    const int end = min((blockIdx.x + 1) * blockDim.x, T);
    for (int first = 0; first < end; first += KEYS) {
        __syncthreads();  // nobody uses the last tile any more
        for (int i = threadIdx.x; i < KEYS * PACKS; i += blockDim.x) {
            const int s = min(first + i / PACKS, T - 1), column = i % PACKS * PACK_SIZE;
            const floatX* key = head + s * stride + NH * HS + column;
            store(&keys[i / PACKS][column], load_pack(key));
            store(&values[i / PACKS][column], load_pack(key + NH * HS));
        }
        __syncthreads();
        for (int s = first; s < min(first + KEYS, t + 1); s++) {
            float score = 0.0f;
#pragma unroll
            for (int i = 0; i < HS; i++) score += query[i] * keys[s - first][i];
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
            for (int i = 0; i < HS; i++) sums[i] += weight * values[s - first][i];
        }
    }
    if (t >= T) return;
    floatX* row = out + (((long long)(bh / NH) * T + t) * NH + bh % NH) * HS;
#pragma unroll
    for (int i = 0; i < HS; i += PACK_SIZE) {
        Pack pack;
        for (int k = 0; k < PACK_SIZE; k++) pack[k] = sums[i + k] / denominator;
        store(row + i, pack);
    }
    lse[(long long)bh * T + t] = largest + logf(denominator);
}
