// Matmul, rung 1: one thread for each element of out. out (M, N) = a (M, K) times b (N, K)
// transposed.
//
// Each thread reads a row of a and a row of b from memory: 2 K loads for K products. The lanes of a
// warp stand on 32 rows of b, K elements apart, so each load of b asks for 32 sectors.
// lab: grid = (ceil_div(N, 32), ceil_div(M, 8)), block = (32, 8)
extern "C" __global__ void matmul_1(float* out, const float* a, const float* b, int M, int N,
                                    int K) {
    const int n = blockIdx.x * 32 + threadIdx.x, m = blockIdx.y * 8 + threadIdx.y;
    if (m >= M || n >= N) return;
    float sum = 0.0f;
    for (int k = 0; k < K; k++) sum += a[(long long)m * K + k] * b[(long long)n * K + k];
    out[(long long)m * N + n] = sum;
}
