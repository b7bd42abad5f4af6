// Attention, rung 4: four lanes share four queries, and each lane has a quarter of the columns of
// all four. A number that a lane reads from shared memory now serves four products, not one.
//
//    lane % 4          0          1          2          3
//    columns      0 4 8 12 ..  1 5 9 ..   2 6 10 ..  3 7 11 ..    in groups of 4 numbers, 16 bytes
//
// A score is the sum of the four lanes' shares: two shuffles. The block copies tiles as in rung 3.
// lab: grid = (ceil_div(T, 128), B * NH), block = 128
#include "lib/packs.cuh"

constexpr int KEYS = 32, PACKS = HS / PACK_SIZE, QUERIES = 4, OWN = HS / 4;
#define EACH(i, n) _Pragma("unroll") for (int i = 0; i < n; i++)

extern "C" __global__ void attention_4(floatX* out, float* lse, const floatX* qkv, int B, int T,
                                       int NH) {
    __shared__ __align__(16) float keys[KEYS][HS], values[KEYS][HS];
    const int bh = blockIdx.y, quarter = threadIdx.x % 4;
    const int t0 = blockIdx.x * blockDim.x + threadIdx.x / 4 * QUERIES;
    auto column = [&](int i) { return (i / 4 * 4 + quarter) * 4 + i % 4; };  // of own number i
    const long long stride = 3LL * NH * HS;
    const floatX* head = qkv + bh / NH * T * stride + bh % NH * HS;
    float query[QUERIES][OWN], sums[QUERIES][OWN] = {}, largest[QUERIES], denominator[QUERIES] = {};
    EACH(q, QUERIES) largest[q] = -1e30f;
    EACH(q, QUERIES) EACH(i, OWN) {
        const floatX* row = head + min(t0 + q, T - 1) * stride;
        query[q][i] = to_float(row[column(i)]) / sqrtf(float(HS));
    }
    const int end = min((blockIdx.x + 1) * blockDim.x, T);
    for (int first = 0; first < end; first += KEYS) {
        __syncthreads();  // nobody uses the last tile any more
        for (int i = threadIdx.x; i < KEYS * PACKS; i += blockDim.x) {
            const int s = min(first + i / PACKS, T - 1), at = i % PACKS * PACK_SIZE;
            const floatX* key = head + s * stride + NH * HS + at;
            store(&keys[i / PACKS][at], load_pack(key));
            store(&values[i / PACKS][at], load_pack(key + NH * HS));
        }
        __syncthreads();
        for (int s = 0; s < KEYS; s++) {
            float key[OWN], value[OWN];
            EACH(i, OWN) key[i] = keys[s][column(i)], value[i] = values[s][column(i)];
            EACH(q, QUERIES) {
                float score = 0.0f;
                EACH(i, OWN) score += query[q][i] * key[i];
                score += __shfl_xor_sync(FULL_WARP, score, 1);
                score += __shfl_xor_sync(FULL_WARP, score, 2);
                if (first + s > t0 + q) continue;  // a later key, or a copy behind the last row
                const float larger = fmaxf(largest[q], score);
                const float scale = __expf(largest[q] - larger), weight = __expf(score - larger);
                largest[q] = larger;
                denominator[q] = denominator[q] * scale + weight;
                EACH(i, OWN) sums[q][i] = sums[q][i] * scale + weight * value[i];
            }
        }
    }
    for (int q = 0; q < QUERIES && t0 + q < T; q++) {
        floatX* row = out + (((long long)(bh / NH) * T + t0 + q) * NH + bh % NH) * HS;
        EACH(i, OWN) row[column(i)] = from_float<floatX>(sums[q][i] / denominator[q]);
        if (quarter == 0) lse[(long long)bh * T + t0 + q] = largest[q] + logf(denominator[q]);
    }
}
