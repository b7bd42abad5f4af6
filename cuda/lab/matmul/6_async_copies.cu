// Matmul, rung 6: the next tiles arrive while these are used. K and N are multiples of 4.
// cp.async copies from global to shared memory by itself; the warp goes on. Two stages take turns:
//
//    stage 0   | copy 0 | use 0          | copy 2         | use 2 ...
//    stage 1            | copy 1         | use 1          | copy 3 ...
//
// A copy cannot turn the tile, so k stays the last index. A thread reads 4 steps of k at once,
// 16 bytes; rows are 20 words apart, so that eight of them lie in different banks.
// lab: grid = (ceil_div(N, 128), ceil_div(M, 128)), block = 256
#include "lib/ptx.cuh"
constexpr int SIDE = 128, DEPTH = 16, PITCH = DEPTH + 4;
using Tile = float[SIDE][PITCH];
// Starts copying 128 rows, 16 columns of a matrix (rows, K); what lies outside becomes zero.
__device__ void start_copy(Tile& tile, const float* matrix, int row0, int rows, int k0, int K) {
    for (int i = threadIdx.x; i < SIDE * DEPTH / 4; i += 256) {
        const int r = i / (DEPTH / 4), c = i % (DEPTH / 4) * 4;
        const bool inside = row0 + r < rows && k0 + c < K;
        const float* from = inside ? matrix + (long long)(row0 + r) * K + k0 + c : matrix;
        cp_async16_zfill(&tile[r][c], from, inside ? 16 : 0);
    }
}

extern "C" __global__ void __launch_bounds__(256)
    matmul_6(float* out, const float* a, const float* b, int M, int N, int K) {
    __shared__ __align__(16) Tile a_tile[2], b_tile[2];
    const int m0 = blockIdx.y * SIDE, n0 = blockIdx.x * SIDE;
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    float sum[8][8] = {};
    start_copy(a_tile[0], a, m0, M, 0, K), start_copy(b_tile[0], b, n0, N, 0, K);
    cp_async_commit();
    for (int k0 = 0, stage = 0; k0 < K; k0 += DEPTH, stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads();  // this stage is complete, and nobody uses the other one any more
        if (k0 + DEPTH < K) {
            start_copy(a_tile[stage ^ 1], a, m0, M, k0 + DEPTH, K);
            start_copy(b_tile[stage ^ 1], b, n0, N, k0 + DEPTH, K);
            cp_async_commit();
        }
#pragma unroll
        for (int k = 0; k < DEPTH; k += 4) {
            float4 column[8];
#pragma unroll
            for (int j = 0; j < 8; j++) column[j] = *(const float4*)&b_tile[stage][x + 16 * j][k];
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const float4 u = *(const float4*)&a_tile[stage][y + 16 * i][k];
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    sum[i][j] += u.x * column[j].x, sum[i][j] += u.y * column[j].y;
                    sum[i][j] += u.z * column[j].z, sum[i][j] += u.w * column[j].w;
                }
            }
        }
    }
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 8; j++) {
            const int m = m0 + y + 16 * i, n = n0 + x + 16 * j;
            if (m < M && n < N) out[(long long)m * N + n] = sum[i][j];
        }
}
