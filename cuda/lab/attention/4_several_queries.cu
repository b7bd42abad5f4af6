// Attention, rung 4: two lanes share two queries, and each lane has half of the columns of both. A
// number that a lane reads from shared memory now serves two products, not one.
//
//    lane % 2             0              1
//    columns      0-3  8-11  ...   4-7  12-15  ...      in groups of 4 numbers, 16 bytes
//
// A score is the sum of the two lanes' shares: one shuffle. The block copies tiles as in rung 3.
// lab: grid = (ceil_div(T, 128), B * NH), block = 128
#include "lib/packs.cuh"
constexpr int KEYS = 32, PACKS = HS / PACK_SIZE, QUERIES = 2, OWN = HS / QUERIES;
#define EACH(i, n) _Pragma("unroll") for (int i = 0; i < n; i++)

extern "C" __global__ void attention_4(floatX* out, float* lse, const floatX* qkv, int B, int T,
                                       int NH) {
    __shared__ __align__(16) float keys[KEYS][HS], values[KEYS][HS];
    const int bh = blockIdx.y, half = threadIdx.x % 2;
    const int t0 = blockIdx.x * blockDim.x + threadIdx.x / 2 * QUERIES;
    auto column = [&](int i) { return (i / 4 * 2 + half) * 4 + i % 4; };  // of own number i
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
            float score[QUERIES] = {};
            EACH(i, OWN) EACH(q, QUERIES) score[q] += query[q][i] * keys[s][column(i)];
            EACH(q, QUERIES) {
                score[q] += __shfl_xor_sync(FULL_WARP, score[q], 1);
                if (first + s > t0 + q) score[q] = -1e30f;  // a later key, or behind the last row
                if (score[q] > largest[q]) {
                    const float scale = __expf(largest[q] - score[q]);
                    denominator[q] *= scale;
                    EACH(i, OWN) sums[q][i] *= scale;
                    largest[q] = score[q];
                }
                score[q] = __expf(score[q] - largest[q]);
                denominator[q] += score[q];
            }
            EACH(i, OWN) EACH(q, QUERIES) sums[q][i] += score[q] * values[s][column(i)];
        }
    }
    for (int q = 0; q < QUERIES && t0 + q < T; q++) {
        floatX* row = out + (((long long)(bh / NH) * T + t0 + q) * NH + bh % NH) * HS;
        EACH(i, OWN) row[column(i)] = from_float<floatX>(sums[q][i] / denominator[q]);
        if (half == 0) lse[(long long)bh * T + t0 + q] = largest[q] + logf(denominator[q]);
    }
}
