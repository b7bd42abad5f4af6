"""Kernels that are right and look like no rung."""

from cupygpt.lab.contracts.contract import Contract
from cupygpt.lab.contracts.table import ADAMW, COLUMN_SUM, GELU_FORWARD, LAYERNORM_FORWARD, MATMUL

RIGHT: list[tuple[Contract, str, str]] = [
    (
        GELU_FORWARD,
        "a grid of fixed size",
        """// lab: grid = 2, block = 96
#include "lib/packs.cuh"
extern "C" __global__ void loop(floatX* y, const floatX* x, long long n) {
    for (long long i = global_thread(); i < n; i += global_threads()) {
        const float v = to_float(x[i]);
        const float u = 0.7978845608f * (v + 0.044715f * v * v * v);
        y[i] = from_float<floatX>(0.5f * v * (1.0f + tanhf(u)));
    }
}
""",
    ),
    (
        COLUMN_SUM,
        "a warp for four columns",
        """// lab: grid = ceil_div(OC, 4), block = 32
#include "lib/reduce.cuh"
extern "C" __global__ void columns(float* dbias, const floatX* dout, int N, int OC) {
    for (int column = 4 * blockIdx.x; column < min(4 * (int)blockIdx.x + 4, OC); column++) {
        float sum = 0.0f;
        for (int n = threadIdx.x; n < N; n += 32) sum += to_float(dout[(long long)n * OC + column]);
        sum = warp_sum(sum);
        if (threadIdx.x == 0) dbias[column] += sum;
    }
}
""",
    ),
    (
        LAYERNORM_FORWARD,
        "a block for a row",
        """// lab: grid = N, block = 96
#include "lib/block_reduce.cuh"
extern "C" __global__ void block_row(floatX* out, float* mean, float* rstd, const floatX* inp,
                                     const floatX* w, const floatX* b, int N, int C, float eps) {
    const floatX* row = inp + (long long)blockIdx.x * C;
    float sum = 0.0f, squares = 0.0f;
    for (int c = threadIdx.x; c < C; c += blockDim.x) sum += to_float(row[c]);
    const float m = block_sum<0>(sum) / C;
    for (int c = threadIdx.x; c < C; c += blockDim.x)
        squares += (to_float(row[c]) - m) * (to_float(row[c]) - m);
    const float s = rsqrtf(block_sum<1>(squares) / C + eps);
    for (int c = threadIdx.x; c < C; c += blockDim.x)
        out[(long long)blockIdx.x * C + c] =
            from_float<floatX>((to_float(row[c]) - m) * s * to_float(w[c]) + to_float(b[c]));
    if (threadIdx.x == 0) mean[blockIdx.x] = m, rstd[blockIdx.x] = s;
}
""",
    ),
    (
        MATMUL,
        "tiles of 16",
        """// lab: grid = (ceil_div(M, 16), ceil_div(N, 16)), block = (16, 16)
extern "C" __global__ void sixteen(float* out, const float* a, const float* b, int M, int N,
                                   int K) {
    __shared__ float u[16][16], v[16][17];
    const int x = threadIdx.x, y = threadIdx.y, m = blockIdx.x * 16 + y, n = blockIdx.y * 16;
    float sum = 0.0f;
    for (int k = 0; k < K; k += 16) {
        u[y][x] = m < M && k + x < K ? a[m * K + k + x] : 0.0f;
        v[y][x] = n + y < N && k + x < K ? b[(n + y) * K + k + x] : 0.0f;
        __syncthreads();
        for (int i = 0; i < 16; i++) sum += u[y][i] * v[x][i];
        __syncthreads();
    }
    if (m < M && n + x < N) out[m * N + n + x] = sum;
}
""",
    ),
    (
        ADAMW,
        "two parameters a thread",
        """// lab: grid = ceil_div(N, 128), block = 64
extern "C" __global__ void two(float* p, float* m, float* v, const float* g, const float* norm,
                               const float* c, long long N, float b1, float b2, float eps,
                               float wd, float limit) {
    const float clip = limit > 0.0f && norm[0] > limit ? limit / norm[0] : 1.0f;
    for (int k = 0; k < 2; k++) {
        const long long i = (long long)blockIdx.x * 128 + k * 64 + threadIdx.x;
        if (i >= N) continue;
        const float x = clip * g[i];
        m[i] = b1 * m[i] + (1.0f - b1) * x;
        v[i] = b2 * v[i] + (1.0f - b2) * x * x;
        p[i] -= c[0] * (m[i] / c[1] / (sqrtf(v[i] / c[2]) + eps) + wd * p[i]);
    }
}
""",
    ),
]
