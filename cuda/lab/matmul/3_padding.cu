// Matmul, rung 3: a row of the tile of b is one word longer, so that a column of it lies in 32
// different banks.
//
//    word k of row x lies in bank   (32 x + k) mod 32 = k         all lanes in one bank: 32 turns
//                                   (33 x + k) mod 32 = x + k     each lane in its own:   1 turn
// lab: grid = (ceil_div(N, 32), ceil_div(M, 32)), block = (32, 32)
extern "C" __global__ void matmul_3(float* out, const float* a, const float* b, int M, int N,
                                    int K) {
    __shared__ float a_tile[32][32], b_tile[32][33];
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
