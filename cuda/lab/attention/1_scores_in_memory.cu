// Attention, rung 1: three kernels, and the scores of all pairs in memory.
//
// For each head, scores (T, T) are written, read and written again by the softmax, and read by the
// last product: at T = 1024 four times 4 MB for each head, where queries, keys and values of 64
// columns are 0.75 MB.
// lab: scores = B * NH * T * T
// lab: grid = (ceil_div(T, 128), T, B * NH), block = 128
// lab: grid = ceil_div(B * NH * T, 128), block = 128
// lab: grid = (T, B * NH), block = HS
#include "lib/packs.cuh"

// The start of row t, part 0 (queries), 1 (keys) or 2 (values), of head bh in qkv (B, T, 3, NH,
// HS).
__device__ const floatX* head_row(const floatX* qkv, int bh, int t, int part, int T, int NH) {
    return qkv + (((long long)(bh / NH) * T + t) * 3 + part) * NH * HS + bh % NH * HS;
}

// scores[bh, t, s] = q_t . k_s / sqrt(HS), for the keys s up to t.
extern "C" __global__ void attention_1_scores(float* scores, const floatX* qkv, int B, int T,
                                              int NH) {
    const int s = blockIdx.x * blockDim.x + threadIdx.x, t = blockIdx.y, bh = blockIdx.z;
    if (s > t) return;
    const floatX* query = head_row(qkv, bh, t, 0, T, NH);
    const floatX* key = head_row(qkv, bh, s, 1, T, NH);
    float sum = 0.0f;
    for (int i = 0; i < HS; i++) sum += to_float(query[i]) * to_float(key[i]);
    scores[((long long)bh * T + t) * T + s] = sum / sqrtf(float(HS));
}

// Each row of scores becomes its softmax; lse[bh, t] = log of the sum of exp(score).
extern "C" __global__ void attention_1_softmax(float* scores, float* lse, int B, int T, int NH) {
    const long long row = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= (long long)B * NH * T) return;
    float largest = -1e30f, sum = 0.0f;
    for (int s = 0; s <= row % T; s++) largest = fmaxf(largest, scores[row * T + s]);
    for (int s = 0; s <= row % T; s++) sum += expf(scores[row * T + s] - largest);
    for (int s = 0; s <= row % T; s++)
        scores[row * T + s] = expf(scores[row * T + s] - largest) / sum;
    lse[row] = largest + logf(sum);
}

// out[b, t, h] = the sum over s of scores[bh, t, s] v_s. One thread for each of the HS columns.
extern "C" __global__ void attention_1_values(floatX* out, const float* scores, const floatX* qkv,
                                              int B, int T, int NH) {
    const int t = blockIdx.x, bh = blockIdx.y, column = threadIdx.x;
    float sum = 0.0f;
    for (int s = 0; s <= t; s++)
        sum += scores[((long long)bh * T + t) * T + s] *
               to_float(head_row(qkv, bh, s, 2, T, NH)[column]);
    out[(((long long)(bh / NH) * T + t) * NH + bh % NH) * HS + column] = from_float<floatX>(sum);
}
