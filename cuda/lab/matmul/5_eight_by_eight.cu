// Matmul, rung 5: 8 x 8 elements for each thread, and 128-bit accesses to both memories: 4 reads of
// 16 bytes for 64 products. K and N are multiples of 4.
//
// Tiles are 128 x 128 and 8 deep. A thread has two groups of four neighbours in each direction:
//
//    rows  4 y .. 4 y + 3  and  64 + 4 y .. 64 + 4 y + 3;   columns the same with x
// lab: grid = (ceil_div(N, 128), ceil_div(M, 128)), block = 256
constexpr int SIDE = 128, DEPTH = 8;

extern "C" __global__ void __launch_bounds__(256)
    matmul_5(float* out, const float* a, const float* b, int M, int N, int K) {
    __shared__ __align__(16) float a_tile[DEPTH][SIDE + 4], b_tile[DEPTH][SIDE + 4];
    const int m0 = blockIdx.y * SIDE, n0 = blockIdx.x * SIDE;
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    const int r = threadIdx.x / 2, c = threadIdx.x % 2 * 4;  // of the tile, what it copies
    float sum[8][8] = {};
    for (int k0 = 0; k0 < K; k0 += DEPTH) {
        float4 u = make_float4(0, 0, 0, 0), v = u;
        if (m0 + r < M && k0 + c < K) u = *(const float4*)(a + (long long)(m0 + r) * K + k0 + c);
        if (n0 + r < N && k0 + c < K) v = *(const float4*)(b + (long long)(n0 + r) * K + k0 + c);
        a_tile[c][r] = u.x, a_tile[c + 1][r] = u.y, a_tile[c + 2][r] = u.z, a_tile[c + 3][r] = u.w;
        b_tile[c][r] = v.x, b_tile[c + 1][r] = v.y, b_tile[c + 2][r] = v.z, b_tile[c + 3][r] = v.w;
        __syncthreads();
#pragma unroll
        for (int k = 0; k < DEPTH; k++) {
            float row[8], column[8];
            *(float4*)row = *(const float4*)&a_tile[k][4 * y];
            *(float4*)(row + 4) = *(const float4*)&a_tile[k][64 + 4 * y];
            *(float4*)column = *(const float4*)&b_tile[k][4 * x];
            *(float4*)(column + 4) = *(const float4*)&b_tile[k][64 + 4 * x];
#pragma unroll
            for (int i = 0; i < 8; i++)
#pragma unroll
                for (int j = 0; j < 8; j++) sum[i][j] += row[i] * column[j];
        }
        __syncthreads();
    }
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 8; j += 4) {
            const int m = m0 + i / 4 * 64 + 4 * y + i % 4, n = n0 + j / 4 * 64 + 4 * x;
            const float4 four = make_float4(sum[i][j], sum[i][j + 1], sum[i][j + 2], sum[i][j + 3]);
            if (m < M && n < N) *(float4*)(out + (long long)m * N + n) = four;
        }
}
