// Matmul, rung 2: tiles of 32 x 32 in shared memory. A number is fetched once for each block that
// needs it, not once for each thread.
//
//             b (N, K)                       All 1024 threads copy a tile of a and a tile of b,
//             [ tile ] ->                    meet, add up 32 products each, meet again, and go on
//    a (M, K) [ tile ] ->  out [ tile ]      along K.
//
// But a warp's lanes read one column of the tile of b: 32 words that lie in one bank, so they come
// one after another.
// lab: grid = (ceil_div(N, 32), ceil_div(M, 32)), block = (32, 32)
extern "C" __global__ void matmul_2(float* out, const float* a, const float* b, int M, int N,
                                    int K) {
    __shared__ float a_tile[32][32], b_tile[32][32];
    const int x = threadIdx.x, y = threadIdx.y;
    const int n = blockIdx.x * 32 + x, m = blockIdx.y * 32 + y, b_row = blockIdx.x * 32 + y;
    float sum = 0.0f;
    for (int k0 = 0; k0 < K; k0 += 32) {
        a_tile[y][x] = m < M && k0 + x < K ? a[(long long)m * K + k0 + x] : 0.0f;
        b_tile[y][x] = b_row < N && k0 + x < K ? b[(long long)b_row * K + k0 + x] : 0.0f;
        __syncthreads();
        for (int k = 0; k < 32; k++) sum += a_tile[y][k] * b_tile[x][k];
        __syncthreads();
    }
    if (m < M && n < N) out[(long long)m * N + n] = sum;
}
