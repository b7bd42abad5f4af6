// Matmul, rung 7: tensor cores. One instruction, mma, multiplies 16 x 16 by 16 x 8 numbers; a and b
// are bfloat16, sums and out are float. K is a multiple of 8.
//
// A block has a tile of 128 x 128 of out, and each of its 8 warps 64 x 32: 4 x 4 products of mma
// for each step of 16 along K. ldmatrix reads blocks of 8 rows x 16 bytes from shared memory into
// the registers that mma takes (drawn in attention/mma.cuh). Rows are 80 bytes apart: the 16 bytes
// of eight rows lie in different banks. Copies are asynchronous, as in rung 6.
// lab: grid = (ceil_div(N, 128), ceil_div(M, 128)), block = 256
#include "lib/packs.cuh"
#include "lib/ptx.cuh"
constexpr int SIDE = 128, DEPTH = 32, PITCH = DEPTH + 8;
using Tile = floatX[SIDE][PITCH];

__device__ void start_copy(Tile& tile, const floatX* matrix, int row0, int rows, int k0, int K) {
    for (int i = threadIdx.x; i < SIDE * DEPTH / 8; i += 256) {
        const int r = i / (DEPTH / 8), c = i % (DEPTH / 8) * 8;
        const bool inside = row0 + r < rows && k0 + c < K;
        const floatX* from = inside ? matrix + (long long)(row0 + r) * K + k0 + c : matrix;
        cp_async16_zfill(&tile[r][c], from, inside ? 16 : 0);
    }
}

extern "C" __global__ void __launch_bounds__(256)
    matmul_7(float* out, const floatX* a, const floatX* b, int M, int N, int K) {
    __shared__ __align__(16) Tile a_tile[2], b_tile[2];
    const int m0 = blockIdx.y * SIDE, n0 = blockIdx.x * SIDE;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int row0 = warp / 4 * 64, column0 = warp % 4 * 32;  // of the warp, in the tile
    float sum[4][4][4] = {};
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
        for (int k = 0; k < DEPTH; k += 16) {
            unsigned rows[4][4], columns[4][2];
            for (int i = 0; i < 4; i++)
                ldmatrix_x4(rows[i], &a_tile[stage][row0 + 16 * i + lane % 16][k + lane / 16 * 8]);
            for (int j = 0; j < 4; j++)
                ldmatrix_x2(columns[j],
                            &b_tile[stage][column0 + 8 * j + lane % 8][k + lane / 8 % 2 * 8]);
            for (int i = 0; i < 4; i++)
                for (int j = 0; j < 4; j++)
                    mma_m16n8k16_bf16(sum[i][j], rows[i], columns[j], sum[i][j]);
        }
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++)
            for (int r = 0; r < 4; r++) {
                const int m = m0 + row0 + 16 * i + lane / 4 + r / 2 * 8;
                const int n = n0 + column0 + 8 * j + lane % 4 * 2 + r % 2;
                if (m < M && n < N) out[(long long)m * N + n] = sum[i][j][r];
            }
}
