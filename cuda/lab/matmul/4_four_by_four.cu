// Matmul, rung 4: a thread makes 4 x 4 elements. Of 8 numbers that it reads from shared memory it
// makes 16 products; one element alone needs 2 numbers for 1 product.
//
// Tiles are 64 x 64 and 16 deep. k is their first index, so that neighbouring lanes read
// neighbours. Thread (x, y) has the rows y, y + 16, y + 32, y + 48 and the columns x, x + 16, x +
// 32, x + 48.
// lab: grid = (ceil_div(N, 64), ceil_div(M, 64)), block = 256
constexpr int SIDE = 64, DEPTH = 16;

extern "C" __global__ void __launch_bounds__(256)
    matmul_4(float* out, const float* a, const float* b, int M, int N, int K) {
    __shared__ float a_tile[DEPTH][SIDE + 1], b_tile[DEPTH][SIDE + 1];
    const int m0 = blockIdx.y * SIDE, n0 = blockIdx.x * SIDE;
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    float sum[4][4] = {};
    for (int k0 = 0; k0 < K; k0 += DEPTH) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int r = y + 16 * i, k = k0 + x;
            a_tile[x][r] = m0 + r < M && k < K ? a[(long long)(m0 + r) * K + k] : 0.0f;
            b_tile[x][r] = n0 + r < N && k < K ? b[(long long)(n0 + r) * K + k] : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < DEPTH; k++) {
            float row[4], column[4];
#pragma unroll
            for (int i = 0; i < 4; i++) row[i] = a_tile[k][y + 16 * i];
#pragma unroll
            for (int j = 0; j < 4; j++) column[j] = b_tile[k][x + 16 * j];
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) sum[i][j] += row[i] * column[j];
        }
        __syncthreads();
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) {
            const int m = m0 + y + 16 * i, n = n0 + x + 16 * j;
            if (m < M && n < N) out[(long long)m * N + n] = sum[i][j];
        }
}
